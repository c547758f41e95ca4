"""Opening a file by a path that may have links in it, when others must not decide where it leads.

Cluster managers mount files as links (``web.tm.json`` to ``..data/web.tm.json``, and ``..data`` to a dated
folder that is exchanged), administrators enable sites by links. A link is as good as the folder it is in, and as
what it leads to: so the path is walked one name at a time, and every folder on the way, of the path itself and of
all targets, has to be root's or the daemon's own and not writable by others. In a folder that is open to all
and sticky (/tmp) everything that is passed through has to be theirs as well, links included.

What was judged is what is opened: each step is relative to the descriptor of the one before, and the last one
follows no link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from typing import Final

#: As many links as the kernel itself follows (path_resolution(7)).
_MAX_LINKS: Final = 40
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Untrusted(Exception):
    """Somebody else decides where the path leads; ``what`` of it, and what was found there, in words."""

    def __init__(self, what: str, found: str) -> None:
        super().__init__(f"{what}: {found}")
        self.what, self.found = what, found


def walk(path: str, flags: int, owners: Collection[int], *, inside: int | None = None) -> int:
    """Open what the path leads to. ``inside``: descriptor of the folder that it is relative to.

    ``owners``: whose everything on the way may be. What is opened at the end is for the caller to judge. Raises
    Untrusted, and OSError (ENOENT, ELOOP for too many links, EACCES ...).
    """
    names = path.split("/")
    folder = os.open("/", _FOLDER) if path.startswith("/") else os.dup(_given(inside))
    try:
        return _walk(folder, names, flags, frozenset(owners))
    finally:
        os.close(folder)


def _given(inside: int | None) -> int:
    if inside is None:
        raise OSError(errno.EINVAL, "a relative path, and no folder that it is relative to")
    return inside


def _walk(start: int, names: list[str], flags: int, owners: frozenset[int]) -> int:
    folder, links = os.dup(start), 0
    left = [name for name in reversed(names) if name not in ("", ".")]
    try:
        _judge(folder, owners)
        while True:
            name = left.pop() if left else "."
            target = _target(folder, name, owners)
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, "more links than the kernel follows")
                left += [one for one in reversed(target.split("/")) if one not in ("", ".")]
                step = os.open("/", _FOLDER) if target.startswith("/") else os.dup(folder)
            elif not left:
                return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            else:
                step = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = step
            _judge(folder, owners)
    finally:
        os.close(folder)


def _target(folder: int, name: str, owners: frozenset[int]) -> str | None:
    """Where a link leads; None where it is none. In a folder that is open to all it has to be ours."""
    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    open_to_all = os.fstat(folder).st_mode & 0o022
    if open_to_all and about.st_uid not in owners:
        where = f"{os.readlink(f'/proc/self/fd/{folder}')}/{name}"
        raise Untrusted(where, f"owner uid {about.st_uid}, in a folder that is open to all")
    if not stat.S_ISLNK(about.st_mode):
        return None
    return os.readlink(name, dir_fd=folder)


def _judge(folder: int, owners: frozenset[int]) -> None:
    about = os.fstat(folder)
    found = ""
    if about.st_uid not in owners:
        found = f"owner uid {about.st_uid}"
    elif about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:
        found = f"mode {stat.S_IMODE(about.st_mode):04o}"
    if found:
        raise Untrusted(f"folder {os.readlink(f'/proc/self/fd/{folder}')}", found)
