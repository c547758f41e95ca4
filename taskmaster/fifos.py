"""The named pipes that carry a job's output, in the job's state directory.

``N.stdout`` and ``N.stderr``, mode 0600. Every holder opens them for reading and writing: a pipe lives
as long as somebody has it open, so with the job, its watchdog and the control plane all holding it,
no single death empties it, and no death of a reader gives the job SIGPIPE.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from taskmaster.core.spec import INHERITED, JobSpec, output_path

STREAMS: Final = ("stdout", "stderr")


def name(number: int, stream: str) -> str:
    """File name of the pipe of one process's stream."""
    return f"{number}.{stream}"


def captured(spec: JobSpec, stream: str, number: int = 0) -> bool:
    """Whether this stream goes through a pipe of its own.

    It does not where it is discarded, where the process writes to the file itself
    (``log_max_bytes`` 0), and where stderr shares the file, and therefore the pipe, of stdout. The daemon's own
    output is never given to a job itself.
    """
    path = output_path(spec, stream, number)
    if path is None or (spec.log_max_bytes == 0 and path not in INHERITED):
        return False
    return stream == "stdout" or not shares_file(spec, number)


def shares_file(spec: JobSpec, number: int) -> bool:
    """Whether stderr goes to the very file of stdout."""
    path = output_path(spec, "stderr", number)
    return path is not None and path == output_path(spec, "stdout", number)


def needed(spec: JobSpec) -> Iterator[str]:
    """Names of all pipes of a job."""
    for number in range(spec.proc_nr):
        for stream in STREAMS:
            if captured(spec, stream, number):
                yield name(number, stream)


def hold(directory: int, pipe: str) -> int:
    """Make the pipe if it is not there and open it, non-blocking, for both directions.

    ``directory`` is a descriptor of the job's state directory. Raises OSError; something else of
    that name (a link, a file) is refused, never followed.
    """
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.mkfifo(pipe, 0o600, dir_fd=directory)
    except FileExistsError:
        pass
    fd = os.open(pipe, flags, dir_fd=directory)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EEXIST, "exists and is no pipe", pipe)
    return fd


def hold_nameless(directory: int, pipe: str, pid: int, end: int) -> int:
    """The pipe that descriptor ``end`` of process ``pid`` still is; -1 where it is the one in the folder, or none.

    The folder, or one above it, was removed or moved away. Only a pipe of this name that is ours or that process's
    own is taken: it may have put anything else in the place of its output, and to read from that would take it
    from somebody. Raises OSError.
    """
    place = f"/proc/{pid}/fd/{end}"
    try:
        owners = (os.geteuid(), os.stat(f"/proc/{pid}").st_uid)
        held = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # ENOENT, ESRCH, EACCES
        return -1
    try:
        leads = os.readlink(f"/proc/self/fd/{held}").removesuffix(" (deleted)")
        about = os.fstat(held)
        if not leads.endswith(f"/{pipe}") or about.st_uid not in owners:
            return -1
        if not stat.S_ISFIFO(about.st_mode):
            return -1
        try:
            named = os.stat(pipe, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if (named.st_dev, named.st_ino) == (about.st_dev, about.st_ino):
                return -1
        return os.open(f"/proc/self/fd/{held}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(held)
