"""What changed in the job directory: which jobs are new, changed, removed, unchanged. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class DirectoryDiff(msgspec.Struct, frozen=True):
    """Names of jobs, each sorted; every name is in exactly one of the four."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


def compare(in_force: Mapping[str, str], on_disk: Mapping[str, str]) -> DirectoryDiff:
    """The way from what is in force to what is on disk; both map a job's name to the file's sha256."""
    both = sorted(in_force.keys() & on_disk.keys())
    return DirectoryDiff(
        new=tuple(sorted(on_disk.keys() - in_force.keys())),
        changed=tuple(name for name in both if in_force[name] != on_disk[name]),
        removed=tuple(sorted(in_force.keys() - on_disk.keys())),
        unchanged=tuple(name for name in both if in_force[name] == on_disk[name]),
    )
