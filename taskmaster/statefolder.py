"""The folders of the state directory: opened, and made again where somebody has removed them.

STATE, STATE/jobs and STATE/jobs/NAME are 0700 and this user's own. Nothing in their place that is anything else
(a link, a file, another user's folder) is ever used: what is lost then is said, and tried again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LOCK: Final = "lock"


def enter(path: str, below: tuple[str, ...] = ()) -> int:
    """Descriptor of the folder ``below`` ``path``; what is missing is made, but nothing above ``path``.

    Raises OSError with the path of what cannot be used.
    """
    folder = _enter(path, None, path)
    for name in below:
        path = f"{path}/{name}"
        try:
            inside = _enter(name, folder, path)
        finally:
            os.close(folder)
        folder = inside
    return folder


def _enter(name: str, inside: int | None, path: str) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=inside)
    except FileExistsError:
        pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        folder = os.open(name, FLAGS, dir_fd=inside)
    except OSError as error:
        # ENOTDIR is the kernel's word for a link, too, where a folder is asked for.
        link = error.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.islink(path)
        raise OSError(error.errno, "is a symbolic link" if link else error.strerror, path) from None
    about = os.fstat(folder)
    if about.st_uid != os.geteuid():
        os.close(folder)
        raise OSError(errno.EPERM, f"belongs to uid {about.st_uid}", path)
    if stat.S_IMODE(about.st_mode) & 0o077:
        os.fchmod(folder, 0o700)  # ours, so it can be mended on the spot
    return folder


def same(one: int, other: int) -> bool:
    """Whether two descriptors are of the same file or folder."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def is_there(directory: int, name: str, file: int) -> bool:
    """Whether ``name`` in a folder is the very file that is open as ``file``."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:  # ENOENT, in a folder that was removed as well
        return False
    held = os.fstat(file)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def was_moved(directory: int, path: str) -> bool:
    """Whether the folder is elsewhere, with all that is in it, and nothing is in its place: nothing is lost."""
    return os.fstat(directory).st_nlink > 0 and not os.path.lexists(path)


def put_in_place(directory: int, folder: int) -> bool:
    """Have the descriptor ``directory`` be of ``folder`` from now on; False where it is already.

    Its number stays the same, so whoever works with it goes on in the new folder.
    """
    if same(directory, folder):
        return False
    os.dup2(folder, directory, inheritable=False)
    return True


def lock_anew(directory: int, held: int) -> int:
    """The lock of the folder, held: ``held`` if that is still its file, else a new one.

    Raises OSError (EAGAIN, EACCES) where another process has a new one.
    """
    if is_there(directory, LOCK, held):
        return held
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(LOCK, flags, 0o600, dir_fd=directory)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    os.close(held)
    return lock
