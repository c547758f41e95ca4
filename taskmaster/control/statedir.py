"""The state directory: made, checked, locked; one folder for each job.

Whoever holds its lock is the daemon. It is 0700 and the daemon's own, or the daemon does not start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from taskmaster import procfs
from taskmaster.core import names
from taskmaster.errors import FileError, Held

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FLOCK: Final = struct.Struct("hhqqi4x")


class StateDirectory:
    """The locked state directory; ``lock``: the lock as handed over by the program before. It has made the
    folder, and nothing is made then; with -1, for a program on trial, nothing is changed either.

    Raises Held where another daemon has it, FileError where it is unfit.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self.fd = _private_folder(path, make=lock is None, mend=lock != -1)
        #: To be handed to the program that this one re-executes: a descriptor of the lock's file that is
        #: closed gives the lock up.
        self.lock = self._take_lock() if lock is None else lock

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open("lock", flags, 0o600, dir_fd=self.fd)
        except OSError as error:
            found = "a symbolic link" if error.errno == errno.ELOOP else error.strerror or ""
            raise FileError(f"{self.path}/lock", "", found, "a regular file or none") from None
        try:
            # A POSIX lock: neither watchdogs nor jobs inherit it, and a SIGKILL gives it up at once.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise Held(
                f"{self.path} is held by another taskmasterd{_named(_holder(lock))}; "
                "one daemon to a stateDirectory"
            ) from None
        return lock

    def job(self, name: str) -> int:
        """Descriptor of the folder of a job, made if it is not there. Raises OSError."""
        folder = self._folder_of_jobs()
        try:
            try:
                os.mkdir(names.checked(name), 0o700, dir_fd=folder)
            except FileExistsError:
                pass
            return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        except OSError as error:
            raise _named_in_full(error, f"{self.path}/jobs/{name}") from None
        finally:
            os.close(folder)

    def _folder_of_jobs(self) -> int:
        """Descriptor of the folder that has a folder for each job. Raises OSError; a link is not followed."""
        try:
            os.mkdir("jobs", 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        try:
            return os.open("jobs", _FOLDER_FLAGS, dir_fd=self.fd)
        except OSError as error:
            raise _named_in_full(error, f"{self.path}/jobs") from None

    def holder_of(self, directory: int) -> int | None:
        """Pid of the watchdog that holds the lock of a job's folder; None where none does. Raises OSError."""
        try:
            lock = os.open("lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            return _holder(lock)
        finally:
            os.close(lock)

    def jobs(self) -> list[str]:
        """Names of the jobs that have a folder, sorted."""
        try:
            folder = self._folder_of_jobs()
        except OSError:
            return []  # told by ``job``, of each job
        try:
            return sorted(name for name in os.listdir(folder) if names.is_valid(name))
        finally:
            os.close(folder)

    def forget(self, name: str) -> None:
        """Remove the folder of a job, with what a retired watchdog leaves in it. Raises OSError."""
        folder = self._folder_of_jobs()
        try:
            try:
                inside = os.open(names.checked(name), _FOLDER_FLAGS, dir_fd=folder)
            except FileNotFoundError:
                return
            try:
                for entry in os.listdir(inside):
                    os.unlink(entry, dir_fd=inside)
            finally:
                os.close(inside)
            os.rmdir(name, dir_fd=folder)
        finally:
            os.close(folder)


def _private_folder(path: Path, *, make: bool, mend: bool) -> int:
    accepted = "a folder of the daemon's user with mode 0700, no symbolic link"
    try:
        if make:
            os.makedirs(path, 0o700, exist_ok=True)
        fd = os.open(path, _FOLDER_FLAGS)
    except OSError as error:
        raise FileError("stateDirectory", str(path), error.strerror or "", accepted) from None
    about = os.fstat(fd)
    if about.st_uid != os.geteuid():
        raise FileError("stateDirectory", str(path), f"owner uid {about.st_uid}", accepted)
    if mend and stat.S_IMODE(about.st_mode) & 0o077:
        # Made by a packager's mkdir or an older umask: ours, so it can be mended on the spot.
        os.fchmod(fd, 0o700)
    return fd


def _named_in_full(error: OSError, path: str) -> OSError:
    # ENOTDIR is the kernel's word for a link where a folder is asked for, and it is one of ours that is expected.
    link = error.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.islink(path)
    return OSError(error.errno, "is a symbolic link" if link else error.strerror, path)


def _named(pid: int | None) -> str:
    return "" if pid is None else f" (pid {pid}, {procfs.name(pid) or 'unknown'})"


def _holder(lock: int) -> int | None:
    """Who has the lock; None where nobody has, or the system does not tell."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        answer = fcntl.fcntl(lock, fcntl.F_GETLK, question)
    except OSError:
        return None
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    if kind == fcntl.F_UNLCK or pid <= 0:
        return None
    return int(pid)
