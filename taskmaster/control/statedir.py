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

from taskmaster import beacon, procfs, statefolder
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
        is_made = lock is None and not os.path.lexists(path / "lock")
        self.fd = _private_folder(path, make=lock is None, mend=lock != -1)
        #: To be handed to the program that this one re-executes: a descriptor of the lock's file that is
        #: closed gives the lock up.
        self.lock = self._take_lock() if lock is None else lock
        #: What runs of this state directory though its folder may be gone.
        self.seen = beacon.Seen(None, {}, frozenset())
        if lock != -1:
            self._look(is_made)
            self._beacon = beacon.light(str(self._real_path()))

    def _real_path(self) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{self.fd}"))

    def _look(self, is_made: bool) -> None:
        """Whose processes this directory's are: a lock that nobody holds because it was removed tells nothing."""
        self.seen = beacon.look(str(self._real_path()))
        if is_made and self.seen.daemon is not None:
            os.unlink("lock", dir_fd=self.fd)
            raise Held(
                f"{self.path} was removed, and is still that of another taskmasterd"
                f"{_named(self.seen.daemon)}; one daemon to a stateDirectory"
            )

    def restore(self) -> list[str]:
        """Make again what of the directory itself was removed; names of that.

        Raises Held where another daemon has it by now, and OSError where it cannot be made.
        """
        made: list[str] = []
        if statefolder.was_moved(self.fd, str(self.path)):
            return made
        folder = statefolder.enter(str(self.path))
        try:
            if statefolder.put_in_place(self.fd, folder):
                made.append("folder")
        finally:
            os.close(folder)
        try:
            lock = statefolder.lock_anew(self.fd, self.lock)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise Held(f"{self.path} was removed, and another taskmasterd has it now") from None
        if lock != self.lock:
            self.lock = lock
            made.append("lock")
        return made

    def missing(self, name: str, directory: int) -> list[str]:
        """What is missing of a job's folder, which is open as ``directory``."""
        try:
            jobs = os.open("jobs", _FOLDER_FLAGS, dir_fd=self.fd)
            try:
                folder = os.open(name, _FOLDER_FLAGS, dir_fd=jobs)
            finally:
                os.close(jobs)
        except OSError:  # ENOENT, ENOTDIR: gone, or something else in its place
            return ["folder"]
        try:
            if not statefolder.same(folder, directory):
                return ["folder"]
            there = set(os.listdir(folder))
            return [one for one in ("lock", "link.sock", "state.json") if one not in there]
        finally:
            os.close(folder)

    def stray(self, name: str) -> int | None:
        """A pidfd of the watchdog of this job that lives, and is not where it should be; None where none does."""
        pid = self.seen.watchdogs.get(name)
        if pid is None:
            return None
        try:
            held = os.pidfd_open(pid)
        except OSError:
            held = -1
        if held >= 0 and beacon.is_lit(pid, str(self._real_path()), name):
            return held
        if held >= 0:
            os.close(held)
        del self.seen.watchdogs[name]
        return None

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
            found = {*os.listdir(folder), *self.seen.watchdogs, *self.seen.orphaned}
            return sorted(name for name in found if names.is_valid(name))
        finally:
            os.close(folder)

    def mark(self, name: str, mark: str) -> None:
        """Put an empty file into a job's folder, for the next program. Raises OSError."""
        folder = self.job(name)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(mark, flags, 0o600, dir_fd=folder))
        finally:
            os.close(folder)

    def unmark(self, name: str, mark: str) -> None:
        """Take that away again. Raises OSError."""
        folder = self.job(name)
        try:
            os.unlink(mark, dir_fd=folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(folder)

    def is_marked(self, name: str, mark: str) -> bool:
        """Whether that is there."""
        try:
            os.stat(f"jobs/{names.checked(name)}/{mark}", dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

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
