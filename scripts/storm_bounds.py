"""Judges what a storm's attackers came to: what they were let do, what they cost, and whom they kept waiting."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from storm_attack import BYTES_A_DAY, OWN, USERS, Raid
from storm_audit import Audit, Record, shown
from storm_client import Command
from storm_faults import Fault
from storm_pulse import CLIENT

#: How long root may wait for a status while others attack, beside the time that the daemon was not there. A
#: hundred times what it takes: the storm shares two processors with everything that it starts.
_ROOT_WAITS_S: Final = 3.0
#: A daemon that was stopped, replaced or started anew has to meet thirty watchdogs first.
_MEETS_S: Final = 1.5
#: What puts an end to an absence.
_OVER: Final = frozenset({"started", "continued", "killed"})
#: Of one daemon, with what three users may make it hold.
_MEMORY_MIB: Final = 256.0
#: Seconds' worth of the share of the log that may come at once, anew with each daemon.
_BURST_S: Final = 20.0
#: Records that are in line when the share is used up: of what is under way, and what is counted.
_SLACK: Final = 1.5
#: Of connections that were turned away, which are counted apart from the share.
_REJECTED_BYTES: Final = 20_000
_READING: Final = frozenset({"status", "list", "pull", "history", "diff", "audit"})
_REFUSED: Final = frozenset({"fail", "invalid"})


class Bounds:
    """Collects ``violations``. ``figures``: of the summary."""

    def __init__(self, audit: Audit, raids: list[Raid], faults: list[Fault]) -> None:
        self._audit = audit
        self._raids = raids
        self._faults = faults
        self.violations: list[str] = []
        self.figures: dict[str, Any] = {}

    def check_rights(self) -> None:
        """Nobody was let do what they may not."""
        for record in self._audit.foreign:
            if record["event"] == "command.completed" and not _may_be(record):
                self.violations.append(f"an attacker was let do it: {shown(record)}")

    def check_share_of_log(self) -> None:
        """Each attacker's records, and what they caused, take no more than the share of one user."""
        if not self._raids:
            return
        seconds = max(one.ended for one in self._raids) - min(one.began for one in self._raids)
        daemons = 1 + sum(
            record["event"] in ("daemon.started", "daemon.upgraded", "daemon.upgrade_failed")
            for record in self._audit.records
        )
        share = BYTES_A_DAY / 86_400 * (seconds + daemons * _BURST_S) * _SLACK
        taken = self._taken()
        self.figures["audit log of attackers, kB"] = {
            f"{uid} {USERS[uid] or 'without a rule'}, of {share / 1000:.0f}": taken[uid] // 1000
            for uid in USERS
        }
        for uid, size in taken.items():
            if size > share + daemons * _REJECTED_BYTES:
                self.violations.append(
                    f"uid {uid} filled {size} bytes of the audit log in {seconds:.0f} s with {daemons} daemons, "
                    f"where {share:.0f} are one user's share"
                )

    def _taken(self) -> dict[int, int]:
        taken: dict[int, int] = defaultdict(int)
        asked_by = {
            one["id"]: one["peer"]["uid"]
            for one in self._audit.foreign
            if one.get("id") is not None
        }
        for record in self._audit.records:
            uid = (record.get("peer") or {}).get("uid") or asked_by.get(record.get("cause"))
            if uid in USERS:
                taken[uid] += record["size_of_line"]
        return taken

    def check_pulse(self, commands: list[Command]) -> None:
        """Root was answered in time, as far as the daemon was there and could."""
        absences = list(self._absences(commands))
        waits = {
            one.number: _outside(one.sent, one.ended, absences)
            for one in commands
            if one.client == CLIENT and one.response is not None
        }
        for one in commands:
            if waits.get(one.number, 0.0) > _ROOT_WAITS_S:
                attacks = [
                    f"{raid.began:.3f}-{raid.ended:.3f} {raid.attack} by {raid.uid}"
                    for raid in self._raids
                    if raid.began <= one.ended and raid.ended >= one.sent - 5
                ]
                text = f"root waited {waits[one.number]:.1f} s for a daemon that was there: {one}"
                self.violations.append("\n    ".join([text, *attacks]))
        if len(waits) > 1:
            took_ms = [1e3 * one for one in waits.values()]
            self.figures["root's status, ms"] = {
                "median": round(statistics.median(took_ms), 1),
                "p99": round(statistics.quantiles(took_ms, n=100, method="inclusive")[98], 1),
                "worst": round(max(took_ms), 1),
            }

    def _absences(self, commands: list[Command]) -> Iterable[tuple[float, float]]:
        """When the daemon could not answer, or had just come and had its watchdogs to meet."""
        mine = [one for one in self._faults if one.job == ""]
        for one in mine:
            if one.kind in ("stopped", "killed"):
                over = (more.at for more in mine if more.at > one.at and more.kind in _OVER)
                yield one.at, min(over, default=one.at) + _MEETS_S
        for command in commands:
            if command.command == "upgrade":
                yield command.sent, command.ended + _MEETS_S

    def check_memory(self, peak_mib: float) -> None:
        """No daemon grew without bound."""
        self.figures["the daemon's memory at its peak, MiB"] = round(peak_mib)
        if peak_mib > _MEMORY_MIB:
            self.violations.append(
                f"a daemon held {peak_mib:.0f} MiB, and {_MEMORY_MIB:.0f} are enough for three attackers"
            )

    def tell_raids(self, seconds: float) -> None:
        """For the summary: what the attackers did."""
        counts: dict[str, int] = defaultdict(int)
        for raid in self._raids:
            counts[raid.attack] += 1
        cpu = sum(raid.cpu for raid in self._raids)
        self.figures["raids"] = len(self._raids)
        self.figures["raids by attack"] = dict(sorted(counts.items()))
        self.figures["CPU of all attackers, per cent of one"] = round(100 * cpu / seconds)


def _outside(since: float, until: float, intervals: list[tuple[float, float]]) -> float:
    """How much of this time is in none of the intervals."""
    left, at = 0.0, since
    for begin, end in sorted(intervals):
        left += max(0.0, min(begin, until) - at)
        at = max(at, min(end, until))
    return left + until - at


def _may_be(record: Record) -> bool:
    """Whether this outcome is one that the attacker may have."""
    if record["outcome"] in _REFUSED:
        return True
    role = USERS[record["peer"]["uid"]]
    if role is None:
        return False
    if record["command"] in _READING:
        return True
    return role == "operator" and record.get("job") == OWN
