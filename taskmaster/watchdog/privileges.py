"""Who a job's process is and what rights that has: user, groups, capabilities. Done in the child.

Everything that has to be looked up is looked up first (``resolved``), while files can be opened without
regard to the job's limits. Then, in the only order that works: what may never be had is dropped from the
bounding set, as long as there is a right to do so; the user is changed; the capabilities that the job
keeps are raised, since a change of user clears them; and last nothing more may be gained (``seal``).

An unknown name, or a change that did not take, is a failure; nothing falls back to root.
"""

from __future__ import annotations

import errno
import os
import pwd

import msgspec

from taskmaster import accounts, syscalls
from taskmaster.core import kernelnames
from taskmaster.core.spec import Capabilities, JobSpec
from taskmaster.watchdog.steps import Step, StepFailed


class Who(msgspec.Struct):
    """Who the process is to be. ``user``: the password entry, None where the daemon's own user has none.
    ``uid``, ``gid``: None where they stay. ``groups``: the supplementary ones, None where they stay.
    ``sealed``: no right may be gained by executing something."""

    user: pwd.struct_passwd | None
    uid: int | None
    gid: int | None
    groups: list[int] | None
    sealed: bool


def resolved(spec: JobSpec, step: Step) -> Who:
    """Look up who the job's process is to be. Raises StepFailed."""
    me = os.geteuid()
    sealed = spec.no_new_privs
    if sealed is None:
        sealed = me != 0 or bool(spec.runas)
    groups = None if spec.groups is None else [_group_number(one, step) for one in spec.groups]
    if not spec.runas:
        try:
            return Who(pwd.getpwuid(me), None, None, groups, sealed)
        except KeyError:
            return Who(None, None, None, groups, sealed)
    name, _, group = spec.runas.partition(":")
    step.name = f"user {name}"
    entry = accounts.user(name)
    uid = accounts.user_number(name) if entry is None else entry.pw_uid
    if uid is None:
        raise StepFailed("no such user")
    gid = None if entry is None else entry.pw_gid
    if group:
        step.name = f"group {group}"
        gid = accounts.group_number(group)
        if gid is None:
            raise StepFailed("no such group")
    if gid is None:
        raise StepFailed("has no account that says its group: name one, as in USER:GROUP")
    known = entry is not None
    entry = entry or accounts.without_account(uid, gid)
    if me != 0 and uid == me and gid == os.getegid():
        return Who(entry, None, None, groups, sealed)
    if groups is None:
        groups = accounts.groups(entry, gid) if known else [gid]
    return Who(entry, uid, gid, groups, sealed)


def _group_number(group: str | int, step: Step) -> int:
    step.name = f"groups {group}"
    found = group if isinstance(group, int) else accounts.group_number(group)
    if found is None:
        raise StepFailed("no such group")
    return found


def take(spec: JobSpec, who: Who, step: Step) -> None:
    """Become ``who``, with the capabilities of the definition. Raises OSError or StepFailed."""
    kept = spec.capabilities
    if kept is not None:
        _bound(kept, step)
        step.name = "capabilities"
        if kept.ambient and who.uid:
            syscalls.keep_capabilities()
    step.name = "groups" if who.uid is None or spec.groups is not None else f"user {spec.runas}"
    if who.groups is not None:
        os.setgroups(who.groups)
        if set(os.getgroups()) != set(who.groups):
            raise StepFailed("the change of groups did not take effect")
    if who.uid is not None and who.gid is not None:
        step.name = f"user {spec.runas}"
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
        if set(os.getresuid()) != {who.uid} or set(os.getresgid()) != {who.gid}:
            raise StepFailed("the change of user did not take effect")
    if kept is not None:
        _keep(kept, step)


def seal(who: Who, step: Step) -> None:
    """From here on no execution gives more rights. The last thing before the program."""
    if who.sealed:
        step.name = "noNewPrivileges"
        syscalls.no_new_privileges()


def _bound(kept: Capabilities, step: Step) -> None:
    """Drop what may never be had, and see that what is to be had can be."""
    step.name = "capabilities"
    known = syscalls.bounding_set()
    permitted = syscalls.capabilities().permitted
    for number in {*(kept.bounding or ()), *kept.ambient}:
        step.name = f"capabilities {kernelnames.capability(number)}"
        if number not in known:
            raise StepFailed("unknown to this kernel")
    for number in kept.ambient:
        step.name = f"capabilities {kernelnames.capability(number)}"
        if not permitted >> number & 1 or not known[number]:
            raise StepFailed(f"{os.strerror(errno.EPERM)}: taskmasterd does not have it")
    if kept.bounding is None:
        return
    for number, there in known.items():
        if there and number not in kept.bounding:
            step.name = f"capabilities without {kernelnames.capability(number)}"
            syscalls.drop_from_bounding_set(number)


def _keep(kept: Capabilities, step: Step) -> None:
    step.name = "capabilities"
    ambient = _mask(kept.ambient)
    permitted = ambient
    if os.geteuid() == 0:
        # What root executes has all that is permitted it anyway: the bounding set is its limit. To have
        # less now than afterwards would count as a gain, which a sealed process is denied.
        permitted = syscalls.capabilities().permitted
        if kept.bounding is not None:
            permitted &= _mask(kept.bounding)
    syscalls.set_capabilities(syscalls.CapabilitySets(permitted, permitted, ambient))
    syscalls.clear_ambient_set()
    for number in kept.ambient:
        step.name = f"capabilities {kernelnames.capability(number)}"
        syscalls.raise_ambient(number)


def _mask(numbers: tuple[int, ...]) -> int:
    return sum(1 << number for number in set(numbers))
