"""Who stopped which job: kept on disk, so that a stopped job stays stopped over restarts of daemon and host.

One small file a job beside the job files, in ``.stopped``. It is written before the job is stopped and
removed before it is started, so whatever is interrupted, the file says what was asked last. A disk that
cannot be written keeps nobody from stopping a job: then only this daemon remembers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from taskmaster.core import names

FOLDER: Final = ".stopped"
_MAX_BYTES: Final = 4096
_MAX_NOTE: Final = 256
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stopped(msgspec.Struct, frozen=True):
    """Who stopped a job, and when (UTC, ISO 8601)."""

    by: str
    at: str


_decode: Final = msgspec.json.Decoder(Stopped).decode


class Stops:
    """The jobs that an administrator stopped, below the job directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / FOLDER
        self._stopped: dict[str, Stopped] = {}
        self._load()

    def get(self, job: str) -> Stopped | None:
        """Who stopped the job; None where nobody did, or somebody started it since."""
        return self._stopped.get(job)

    def stop(self, job: str, by: str, at: str) -> OSError | None:
        """Remember that the job was stopped; the error where only this daemon can."""
        entry = Stopped(by[:_MAX_NOTE].encode("utf-8", "replace").decode(), at)
        self._stopped[job] = entry
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            folder = os.open(self._directory, _FOLDER_FLAGS)
            try:
                _write(folder, job, msgspec.json.encode(entry))
            finally:
                os.close(folder)
        except OSError as error:
            return error
        return None

    def start(self, job: str) -> OSError | None:
        """Forget that the job was stopped; the error where the disk does not."""
        if self._stopped.pop(job, None) is None:
            return None
        try:
            folder = os.open(self._directory, _FOLDER_FLAGS)
            try:
                os.unlink(job, dir_fd=folder)
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error
        return None

    def _load(self) -> None:
        try:
            folder = os.open(self._directory, _FOLDER_FLAGS)
        except OSError:
            return  # nobody has stopped anything yet; a link or a file of that name is not ours to use
        try:
            about = os.fstat(folder)
            if about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return
            for name in os.listdir(folder):
                if names.is_valid(name):
                    self._read(folder, name)
        finally:
            os.close(folder)

    def _read(self, folder: int, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
        except OSError:
            return
        try:
            self._stopped[name] = _decode(os.read(fd, _MAX_BYTES))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            # That there is a file is what counts: a stopped job must not start because of a torn one.
            self._stopped[name] = Stopped("somebody", "an unknown time")
        finally:
            os.close(fd)


def _write(folder: int, name: str, data: bytes) -> None:
    temporary = f".{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600, dir_fd=folder)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
