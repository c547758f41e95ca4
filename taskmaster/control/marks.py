"""Small notes about jobs that have to outlive daemon and host: one file a job, in a folder beside the job files.

A note is whole or not there, and durable when ``put`` returns without an error. It is read as what others may
have left: a folder or a file that is not ours alone is not believed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from taskmaster.core import names

_MAX_BYTES: Final = 4096
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Note = TypeVar("Note", bound=msgspec.Struct)


class Marks(Generic[Note]):
    """The notes in ``folder``. ``torn``: what one counts as that cannot be read, None where as nothing."""

    def __init__(
        self, folder: Path, kind: type[Note], torn: Callable[[], Note | None] = lambda: None
    ) -> None:
        self._folder = folder
        self._decode: Callable[[bytes], Note] = msgspec.json.Decoder(kind).decode
        self._torn = torn
        self._notes: dict[str, Note] = {}
        #: Those of which the disk does not say so.
        self._unwritten: set[str] = set()
        self._load()

    @property
    def all(self) -> Mapping[str, Note]:
        """Every note, by job."""
        return self._notes

    def know(self, job: str, note: Note) -> None:
        """Keep a note without the disk, if there is none."""
        self._notes.setdefault(job, note)

    def is_kept(self, job: str) -> bool:
        """Whether there is a note, and on the disk too."""
        there = job in self._notes and job not in self._unwritten
        return there and os.path.lexists(self._folder / job)

    def look(self, job: str) -> Note | None:
        """The note of one job, be it that the folder has only come with a mount since."""
        if job not in self._notes:
            self._load({job})
        return self._notes.get(job)

    def put(self, job: str, note: Note) -> OSError | None:
        """Keep a note; the error where only this daemon can."""
        self._notes[job] = note
        self._unwritten.add(job)
        try:
            # Not what it is in: a job directory that was moved away is not to be in the way when it comes back.
            try:
                os.mkdir(self._folder, 0o700)
            except FileExistsError:
                pass
            folder = os.open(self._folder, _FOLDER_FLAGS)
            try:
                _write(folder, job, msgspec.json.encode(note))
            finally:
                os.close(folder)
        except OSError as error:
            return error
        self._unwritten.discard(job)
        return None

    def remove(self, job: str) -> OSError | None:
        """Forget a note; the error where the disk does not."""
        self._unwritten.discard(job)
        if self._notes.pop(job, None) is None:
            return None
        try:
            folder = os.open(self._folder, _FOLDER_FLAGS)
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

    def _load(self, wanted: Container[str] | None = None) -> None:
        try:
            folder = os.open(self._folder, _FOLDER_FLAGS)
        except OSError:
            return  # there is none yet; a link or a file of that name is not ours to use
        try:
            about = os.fstat(folder)
            if about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return
            for name in os.listdir(folder):
                if names.is_valid(name) and (wanted is None or name in wanted):
                    self._read(folder, name)
        finally:
            os.close(folder)

    def _read(self, folder: int, name: str) -> None:
        try:
            fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
        except OSError:
            return
        try:
            note: Note | None = self._decode(os.read(fd, _MAX_BYTES))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            note = self._torn()
        finally:
            os.close(fd)
        if note is not None:
            self._notes[name] = note


def short(text: str, at_most: int) -> str:
    """Text for a note: cut, and without the half surrogates of an undecodable name."""
    return text[:at_most].encode("utf-8", "replace").decode()


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
