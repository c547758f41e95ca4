"""The rights of a job's user, taken by its watchdog for as long as it opens or renames a file.

What lies in a folder of the job's user is opened as that user would open it: so nothing that they put there, a
link to a file of root's above all, can have the watchdog do more than they can do themselves. Only the ids
that count for files are changed, so that this user cannot signal or slow down the watchdog meanwhile, in a
process of one thread; if the way back failed, the watchdog would end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from taskmaster import syscalls


class Rights(msgspec.Struct, frozen=True):
    """A user: numbers of the user, the group and all supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Be that user, to the file system, for the time of the ``with``. Raises PermissionError where this
        process may not become anybody else."""
        groups = os.getgroups()
        os.setgroups(self.groups)
        try:
            syscalls.file_system_ids(self.uid, self.gid)
            yield
        finally:
            syscalls.file_system_ids(os.geteuid(), os.getegid())
            os.setgroups(groups)
