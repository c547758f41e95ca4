"""Folders of logs: made and entered one after the other, and no symbolic link among them is followed.

The log directory itself is the administrator's choice and may be one. Below it there are only folders that
taskmaster has made; a link in their place leads to where somebody else wants the daemon to write.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

#: For the daemon's user, and those in its group that it lets in.
_MODE: Final = 0o750
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def enter(logs: str, below: Sequence[str] = ()) -> int:
    """Descriptor of the folder ``below`` the job's log folder ``logs`` (LOGDIRECTORY/jobs/NAME).

    What is missing is made. Raises OSError with the folder's path; ELOOP for a symbolic link.
    """
    root, jobs, job = logs.rsplit("/", 2)
    os.makedirs(root or "/", _MODE, exist_ok=True)
    path, folder = root, os.open(root or "/", _FLAGS)
    for name in (jobs, job, *below):
        path = f"{path}/{name}"
        try:
            inside = _enter(folder, name)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            os.close(folder)
        folder = inside
    return folder


def words(error: OSError) -> str:
    """Why a folder or file of logs could not be had. ELOOP's own words, "Too many levels of symbolic links", send
    people looking for a cycle."""
    said = error.strerror or ""
    if error.errno == errno.ELOOP and said == os.strerror(errno.ELOOP):
        return "is a symbolic link"
    return said


def _enter(folder: int, name: str) -> int:
    try:
        os.mkdir(name, _MODE, dir_fd=folder)
    except FileExistsError:
        pass
    try:
        return os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        # The kernel's word for a link, too, where a folder is asked for.
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
