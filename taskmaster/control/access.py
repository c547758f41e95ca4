"""Who may do what: a peer, a command and a job to a role that is enough, or to a refusal in words.

It decides from the rules of the configuration and nothing else, least of all from whether a job exists: who
may not see a job is told the same of one that nobody has. Root and the daemon's own user may do everything,
since both can anyway; everybody else what a rule says, and without a rule nothing.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from taskmaster.config.access import Role, Rule
from taskmaster.control.peers import Peer
from taskmaster.core import names
from taskmaster.wire.queries import Command, shown

#: THE table: the least role for each command. One that is not in it is for admins.
LEAST: Final[dict[Command, Role]] = {
    Command.STATUS: Role.VIEWER,
    Command.LIST: Role.VIEWER,
    Command.PULL: Role.VIEWER,
    Command.AUDIT: Role.VIEWER,
    Command.HISTORY: Role.VIEWER,
    Command.START: Role.OPERATOR,
    Command.STOP: Role.OPERATOR,
    Command.KILL: Role.OPERATOR,
    Command.REPAIR: Role.OPERATOR,
    Command.RESTART: Role.OPERATOR,
    Command.PUSH: Role.ADMIN,
    Command.DELETE: Role.ADMIN,
    Command.RELOAD: Role.ADMIN,
    Command.ROLLBACK: Role.ADMIN,
    Command.SHUTDOWN: Role.ADMIN,
    Command.UPGRADE: Role.ADMIN,
}
#: Commands that put a job's file there or take it away: what ``pushEnabled`` switches off.
WRITING: Final = frozenset({Command.PUSH, Command.DELETE, Command.ROLLBACK})
#: Jobs whose role is remembered for one peer.
_REMEMBERED: Final = 1024


def least(command: Command, job: str | None) -> Role:
    """The role that a command needs; ``restart`` of everything is another thing than that of a job."""
    if command is Command.RESTART and job is None:
        return Role.ADMIN
    return LEAST.get(command, Role.ADMIN)


class Rights:
    """What one peer may do. ``everything``: it is root or the daemon's own user; ``who``: it, in words.

    ``identity`` is what its connections are counted by. ``rules`` are those that are for it. ``output_max``: how
    many bytes of output may be kept of each job that it pushes, 0: any.
    """

    __slots__ = ("_roles", "everything", "identity", "output_max", "rules", "uid", "who")

    def __init__(
        self,
        who: str,
        identity: str,
        uid: int | None,
        rules: Sequence[Rule],
        *,
        everything: bool,
        output_max: int = 0,
    ) -> None:
        self.output_max = output_max
        self.who = who
        self.identity = identity
        self.uid = uid
        self.rules = tuple(rules)
        self.everything = everything
        self._roles: dict[str | None, Role | None] = {}

    def role(self, job: str | None) -> Role | None:
        """The highest role on this job; without one, on all jobs. None: not even to know of it."""
        if self.everything:
            return Role.ADMIN
        if job in self._roles:
            return self._roles[job]
        role = max((rule.role for rule in self.rules if applies(rule, job)), default=None)
        if len(self._roles) >= _REMEMBERED:
            self._roles.clear()
        if job is None or len(job) <= 64:
            self._roles[job] = role
        return role

    def sees(self, job: str) -> bool:
        """Whether the job may be shown to it."""
        return self.everything or self.role(job) is not None

    def refusal(self, command: Command, job: str | None) -> str | None:
        """Why it may not do this, as the reply has it; None where it may."""
        if self.everything:
            return None
        needed = least(command, job)
        if command is Command.LIST:
            # Of the jobs that it sees; no rule at all, no list.
            if self.rules:
                return None
            role = None
        else:
            role = self.role(job)
        if role is not None and role >= needed:
            return None
        where = " for all jobs" if job is None and command is not Command.LIST else ""
        has = "none" if role is None else role.word
        return refused(command, job, f"needs the role {needed.word}{where}; {self.who} has {has}")


def refused(command: Command, job: str | None, why: str) -> str:
    """The sentence of a refusal: ``why`` goes on after the command and the job."""
    of = "" if job is None else f" of {job if names.is_valid(job) else shown(job)}"
    return f"Permission denied: {command.value}{of} {why}."


def applies(rule: Rule, job: str | None) -> bool:
    """Whether a rule is for this job; None: for all there may be. What no job can be called is in none but all."""
    if "*" in rule.jobs:
        return True
    return (
        job is not None and names.is_valid(job) and any(fnmatchcase(job, one) for one in rule.jobs)
    )


class Access:
    """The rules in force. ``own_uid``: the daemon's; ``insecure_remote``: strangers of other hosts may look."""

    def __init__(
        self,
        rules: Sequence[Rule],
        own_uid: int,
        *,
        insecure_remote: bool = False,
        output_max: int = 0,
    ) -> None:
        self._output_max = output_max
        self._rules = tuple(rules)
        self._own_uid = own_uid
        self._insecure_remote = insecure_remote
        self._groups_matter = any(rule.groups for rule in rules)

    def rights(self, peer: Peer) -> Rights:
        """What a peer may do, by what is known of it now."""
        uid, certificate = peer.uid, peer.certificate
        if uid is None and certificate is None:
            host = peer.address.rpartition(":")[0]
            stranger = (Rule(role=Role.VIEWER),) if self._insecure_remote else ()
            who = f"{host} (no certificate)"
            return Rights(who, f"host {host}", None, stranger, everything=False)
        groups = groups_of(uid) if self._groups_matter and uid is not None else frozenset()
        rules = [
            rule
            for rule in self._rules
            if (uid is not None and (uid in rule.users or not groups.isdisjoint(rule.groups)))
            or (certificate is not None and certificate in rule.certificates)
        ]
        if uid is None:
            who, identity = f"certificate {shown(certificate or '')}", f"certificate {certificate}"
        else:
            who, identity = f"user {peer.user or uid}", f"uid {uid}"
        return Rights(
            *(who, identity, uid, rules),
            everything=uid in (0, self._own_uid),
            output_max=self._output_max,
        )


def groups_of(uid: int) -> frozenset[int]:
    """The groups that the user database gives a user, the same for every way in."""
    try:
        entry = pwd.getpwuid(uid)
        return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, OSError):
        return frozenset()
