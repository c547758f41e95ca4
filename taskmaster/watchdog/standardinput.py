"""A job's standard input, connected in the child: nothing, a pipe that never ends, or a file."""

from __future__ import annotations

import errno
import os
import stat


def connect(is_open: bool, owner: int | None) -> None:
    """Descriptor 0: at its end at once, or with ``is_open`` a pipe that nobody writes to and that does not end.

    The process itself holds both directions of that pipe in its one descriptor: whoever dies, it has no end.
    ``owner``: who may open it anew, None where that is who runs this.
    """
    if not is_open:
        fd = os.open("/dev/null", os.O_RDWR)
    else:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if owner is not None and os.geteuid() == 0:
            os.fchown(reader, owner, -1)
        fd = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
        os.close(reader)
        os.close(writer)
    os.dup2(fd, 0)


def open_file(path: str) -> None:
    """Descriptor 0: a file, opened as the job's user. Raises OSError.

    A named pipe is opened in both directions where that user may: it waits for its next writer, and is not at
    its end whenever there is none.
    """
    os.close(0)  # what is opened next gets its number, however few descriptors the job may have
    # Non-blocking: opening a FIFO must not wait for its writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISFIFO(mode):
        try:
            both = os.open(path, os.O_RDWR | os.O_NOCTTY)
        except PermissionError:
            pass
        else:
            os.dup2(both, fd)
    if fd != 0:
        os.dup2(fd, 0)
    os.set_blocking(0, True)
    os.set_inheritable(0, True)
