"""How much of the past is kept: the histories of all job files together have an end, in bytes.

Whoever may push decides what is in a history, and a history outlives its job. So there are three limits, from
one number: of one job, of jobs that were deleted, and of all. Where one is passed the oldest versions go, never
the two newest of a job that there is, and those of whoever takes the most go first: nobody gets rid of
another's past by making much of their own. It never touches a job file, and what it cannot remove now it
removes another time.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

from taskmaster.config import history, trusted
from taskmaster.errors import FileError

#: Of one job, and of all deleted ones: this part of what all may take.
JOB_PART: Final = 64
DELETED_PART: Final = 16
#: Versions that a job keeps, whatever they take: the one in force, and the one to go back to.
LEAST_KEPT: Final = 2
#: What the names and inodes of a version take beside its bytes, about.
_OVERHEAD: Final = 1024


class Past(msgspec.Struct):
    """One job's history: its versions with their bytes, oldest first; ``owner``: who last changed it.

    ``deleted``: the job has no file any more. ``at``: when the newest version was made, as text.
    """

    name: str
    versions: list[tuple[str, int]]
    owner: str
    deleted: bool
    at: str


class Keeping:
    """What is known of all histories below the job directory of user ``uid``; ``most``: bytes, 0 for any."""

    def __init__(self, uid: int, most: int) -> None:
        self._uid = uid
        self._most = most
        self._pasts: dict[str, Past] = {}

    def look(self, past: int, name: str, *, deleted: bool) -> None:
        """Look at the history of job ``name``, which is the folder ``past``. Raises OSError."""
        if not self._most:
            return
        versions = history.sizes(past)
        newest = history.versions(past, self._uid, None, 1)
        if not versions or not newest:
            self._pasts.pop(name, None)
            return
        sized = [(stem, size + _OVERHEAD) for stem, size in versions]
        owner = newest[-1].who.partition(" (")[0].partition(":")[0]
        self._pasts[name] = Past(name, sized, owner, deleted, newest[-1].when)

    def prune(self, jobs: int) -> None:
        """Remove what is over the limits; ``jobs``: descriptor of the job directory."""
        if not self._most:
            return
        for name, keep in surplus(self._pasts.values(), self._most).items():
            past = self._pasts[name]
            gone, past.versions = past.versions[: -keep or None], past.versions[-keep:]
            if not keep:
                del self._pasts[name]
            try:
                with history.opened(jobs, name, self._uid) as folder:
                    if folder is not None:
                        history.drop(folder, [stem for stem, _ in gone])
                if not keep:
                    self._remove(jobs, name)
            except (OSError, FileError):  # EROFS, EIO, EACCES: it stays until the next start
                continue

    def _remove(self, jobs: int, name: str) -> None:
        with trusted.folder(
            history.FOLDER, self._uid, label=history.FOLDER, inside=jobs
        ) as histories:
            os.rmdir(name, dir_fd=histories)


def surplus(pasts: Iterable[Past], most: int) -> dict[str, int]:
    """How many versions each job may keep that has too many; of 0 nothing is left. Changes nothing."""
    left = [_Left(past) for past in pasts]
    for one in left:
        while one.size > most // JOB_PART and one.kept > 1 and one.may_shrink:
            one.shrink()
    _shrink_deleted([one for one in left if one.past.deleted], most // DELETED_PART)
    _shrink_largest(left, most)
    return {one.past.name: one.kept for one in left if one.kept < len(one.past.versions)}


class _Left:
    """What is left of one history while it is decided what goes."""

    __slots__ = ("kept", "past", "size")

    def __init__(self, past: Past) -> None:
        self.past = past
        self.kept = len(past.versions)
        self.size = sum(size for _, size in past.versions)

    @property
    def may_shrink(self) -> bool:
        return self.kept > (0 if self.past.deleted else LEAST_KEPT)

    def shrink(self) -> int:
        """Leave out the oldest version; its bytes."""
        _, size = self.past.versions[len(self.past.versions) - self.kept]
        self.kept -= 1
        self.size -= size
        return size


def _shrink_deleted(left: list[_Left], limit: int) -> None:
    """The job that was deleted first goes first, of whoever takes the most."""
    queues: dict[str, deque[_Left]] = {}
    for one in sorted(left, key=lambda one: one.past.at):
        queues.setdefault(one.past.owner, deque()).append(one)
    taken = {owner: sum(one.size for one in queue) for owner, queue in queues.items()}
    total = sum(taken.values())
    while total > limit:
        owner = max(taken, key=lambda one: taken[one])
        queue = queues[owner]
        if not queue[0].may_shrink:
            queue.popleft()
            continue
        size = queue[0].shrink()
        taken[owner] -= size
        total -= size


def _shrink_largest(left: list[_Left], limit: int) -> None:
    """The largest history loses its oldest version, over and over."""
    total = sum(one.size for one in left)
    heap = [(-one.size, number) for number, one in enumerate(left)] if total > limit else []
    heapq.heapify(heap)
    while total > limit and heap:
        _, number = heapq.heappop(heap)
        one = left[number]
        if one.may_shrink:
            total -= one.shrink()
            heapq.heappush(heap, (-one.size, number))
