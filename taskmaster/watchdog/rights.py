"""The rights of a job's user, taken by its watchdog for as long as it opens or renames a file.

What lies in a folder of the job's user is opened as that user would open it: so nothing that they put there, a
link to a file of root's above all, can have the watchdog do more than they can do themselves. Only the
effective ids are changed, in a process of one thread; if the way back failed, the watchdog would end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec


class Rights(msgspec.Struct, frozen=True):
    """A user: numbers of the user, the group and all supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Be that user, to the file system, for the time of the ``with``. Raises PermissionError where this
        process may not become anybody else."""
        uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
        os.setgroups(self.groups)
        try:
            os.setegid(self.gid)
            os.seteuid(self.uid)
            yield
        finally:
            os.seteuid(uid)
            os.setegid(gid)
            os.setgroups(groups)
