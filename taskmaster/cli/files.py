"""Job files that are pushed: their name, their bytes. Judges nothing in them: the daemon does."""

from __future__ import annotations

import os
import stat

from taskmaster.errors import FileError, TaskmasterError

SUFFIX = ".tm.json"
#: The daemon's frames hold 4 MiB; base64 makes this 1.4 MiB, and no job file comes near it.
MAX_BYTES = 1024 * 1024


class Unreadable(TaskmasterError):
    """A file that cannot be pushed, and why; nothing of it was sent."""

    code = FileError.code
    exit_status = FileError.exit_status

    def __init__(self, path: str, reason: str | None) -> None:
        super().__init__(f"cannot read {path}: {reason}; nothing of it was sent")


def job_of(path: str) -> str | None:
    """The job that a file is named for (``conf/web.tm.json``: ``web``), or None."""
    name = os.path.basename(path)
    return name[: -len(SUFFIX)] if name.endswith(SUFFIX) else None


def read(path: str) -> bytes:
    """The bytes of a job file; raises Unreadable where it is none."""
    try:
        # Non-blocking: to open a FIFO without a writer would hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:  # ENOENT, EACCES, ELOOP, ENXIO (a socket)
        raise Unreadable(path, error.strerror) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unreadable(path, "it is not a regular file")
    try:
        with open(fd, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:  # EIO, ESTALE: the disk, a network file system
        raise Unreadable(path, error.strerror) from None
    if len(data) > MAX_BYTES:
        raise Unreadable(path, f"it is over {MAX_BYTES} bytes")
    return data
