"""What a job may be that somebody with limited rights pushes: nothing that he could not do himself.

A job's file decides which user it runs as, and the daemon opens its output files before that. So who pushes
by a rule is held to four things: the user (``runAs`` of his rule), output in the job's own log folder,
so much of it and no more, since a watchdog of root writes it past any quota, and no other key that reaches
beyond that user. A key that this file does not know is held to its default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from taskmaster import accounts
from taskmaster.config.access import Role
from taskmaster.config.jobfile import JOB_KEYS
from taskmaster.control.access import Rights, applies, groups_of, refused
from taskmaster.control.peers import user_name
from taskmaster.core.spec import JobSpec
from taskmaster.errors import NotPermitted
from taskmaster.wire.queries import Command

#: Fields that are only about what the job's own user can do, or about when and how often.
FREE: Final = frozenset(
    {"job", "argv", "proc_nr", "auto_start", "restart", "start_time_s", "normal_exit_codes"}
    | {
        "normal_exit_signals",
        "restart_times",
        "stop_signal",
        "stop_time_s",
        "stop_to",
        "stderr_to_stdout",
    }
    | {"env", "dir", "stdin", "umask", "cpu_affinity", "memory_max"}
)
#: The class of ionice that only root may give (ionice(1)).
_REALTIME: Final = 1
#: Fields of which some values take something from the process and never give: those that may be set.
LESS: Final[dict[str, Callable[[Any], bool]]] = {
    "nice": lambda value: value >= 0,
    "ionice": lambda value: value[0] != _REALTIME,
    "oom_score_adj": lambda value: value >= 0,
    "no_new_privs": lambda value: value is True,
}
#: Fields that are looked at below.
CHECKED: Final = frozenset({"runas", "stdout", "stderr", "log_max_bytes", "log_backups"})


#: What a file is made of, each occurrence of which costs the daemon some microseconds to read, and how many a file
#: may have: usual ones have a hundred. Half a million of them would take half a second.
_PARTS: Final = (b",", b":", b"[", b"{", b"/")
MAX_PARTS: Final = 5000


def weigh(job: str | None, data: bytes, rights: Rights, command: Command) -> None:
    """Raises NotPermitted where reading a file would take time that is everybody's."""
    parts = sum(data.count(one) for one in _PARTS)
    if not rights.everything and parts > MAX_PARTS:
        why = (
            f"of a file with {parts} commas, colons, slashes and brackets is not for "
            f"{rights.who}; accepted: up to {MAX_PARTS} of them"
        )
        raise NotPermitted(refused(command, job, why))


def violation(spec: JobSpec, rights: Rights, own_uid: int) -> str | None:
    """Why a peer may not have this job put in force; None where it may. ``own_uid``: the daemon's."""
    if rights.everything:
        return None
    return (
        _user(spec, rights, own_uid)
        or _output("stdout", spec.stdout)
        or _output("stderr", spec.stderr)
        or _amount(spec, rights.output_max)
        or _others(spec)
    )


def check(rights: Rights, command: Command, spec: JobSpec) -> None:
    """Raises NotPermitted where a peer may not have this job put in force."""
    why = violation(spec, rights, os.geteuid())
    if why is not None:
        raise NotPermitted(refused(command, spec.job, f"is beyond what {rights.who} may: {why}"))


def _user(spec: JobSpec, rights: Rights, own_uid: int) -> str | None:
    user, _, group = spec.runas.partition(":")
    uid = accounts.user_number(user) if user else own_uid
    if uid is None:
        return f"runas: there is no user {user}"
    gid = accounts.group_number(group) if group else None
    if group and gid is None:
        return f"runas: there is no group {group}"
    rules = [rule for rule in rights.rules if rule.role >= Role.ADMIN and applies(rule, spec.job)]
    for rule in rules:
        if rule.run_as is None:
            if rights.uid is not None and uid == rights.uid and _in_group(uid, gid):
                return None
            continue
        for allowed in rule.run_as:
            name, _, of_group = allowed.partition(":")
            same_group = gid == accounts.group_number(of_group) if of_group else _in_group(uid, gid)
            if uid == accounts.user_number(name) and same_group:
                return None
    named = sorted({one for rule in rules for one in rule.run_as or ()})
    if any(rule.run_as is None for rule in rules):
        named.append("the one who pushes it")
    runs = (
        spec.runas
        or f"{user_name(own_uid) or f'uid {own_uid}'} (no runas: the user of taskmasterd)"
    )
    return f"the job would run as {runs}; allowed: {', '.join(named) or 'nobody'} (runAs in access)"


def _in_group(uid: int, gid: int | None) -> bool:
    """Whether the group is one that the user has anyway."""
    return gid is None or gid in groups_of(uid)


def _output(key: str, path: str | None) -> str | None:
    if path is not None and path.startswith("/"):
        return f"{key} is an absolute path, or the output of taskmasterd itself; allowed: a relative one, or null"
    return None


def _amount(spec: JobSpec, most: int) -> str | None:
    streams = (spec.stdout is not None) + (spec.stderr is not None and not spec.stderr_to_stdout)
    files = streams * spec.proc_nr
    if not most or not files:
        return None
    if not spec.log_max_bytes:
        return f"logMaxBytes is 0, output without end; allowed: {most} bytes (jobOutputMaxBytes)"
    kept = spec.log_max_bytes * (spec.log_backups + 1) * files
    if kept <= most:
        return None
    return (
        f"{kept} bytes of output would be kept (logMaxBytes {spec.log_max_bytes}, logBackups "
        f"{spec.log_backups}, {files} output file{'s' if files > 1 else ''}); allowed: {most} (jobOutputMaxBytes)"
    )


def _others(spec: JobSpec) -> str | None:
    plain = JobSpec(job=spec.job, argv=spec.argv)
    for field in JobSpec.__struct_fields__:
        if field in FREE or field in CHECKED:
            continue
        value = getattr(spec, field)
        if value != getattr(plain, field) and not (field in LESS and LESS[field](value)):
            return f"{_key(field)} is set, which is for root and the user of taskmasterd"
    return None


def _key(field: str) -> str:
    """The name in the job's file of a field."""
    return next((row.name for row in JOB_KEYS if field in row.fields), field)
