"""Judges what a storm's attackers came to: what they were let do, what they cost, and whom they kept waiting."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any, Final

from storm_attack import BYTES_A_DAY, OWN, USERS, Raid
from storm_audit import Audit, Record, shown
from storm_client import Command
from storm_faults import Fault
from storm_pulse import CLIENT

#: How long root may wait for a status while others attack and nothing has happened to the daemon. A hundred times
#: what it takes: the storm shares two processors with everything that it starts.
_ROOT_WAITS_S: Final = 3.0
#: A daemon that was stopped, replaced or started anew has to meet thirty watchdogs first.
_AFTER_FAULT_S: Final = 3.0
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
        """Root was answered in time whenever nothing had happened to the daemon."""
        quiet = [
            one
            for one in commands
            if one.client == CLIENT and one.response is not None and not self._disturbed(one)
        ]
        waited = [one.ended - one.sent for one in quiet]
        for one in quiet:
            if one.ended - one.sent > _ROOT_WAITS_S:
                attacks = [
                    f"{raid.began:.3f}-{raid.ended:.3f} {raid.attack} by {raid.uid}"
                    for raid in self._raids
                    if raid.began <= one.ended and raid.ended >= one.sent - 5
                ]
                text = f"root waited {one.ended - one.sent:.1f} s: {one}"
                self.violations.append("\n    ".join([text, *attacks]))
        if len(waited) > 1:
            p99 = statistics.quantiles(waited, n=100, method="inclusive")[98]
            self.figures["root's status, ms"] = {
                "median": round(statistics.median(waited) * 1e3),
                "p99": round(p99 * 1e3),
                "worst": round(max(waited) * 1e3),
            }

    def _disturbed(self, command: Command) -> bool:
        return any(
            one.job == ""
            and one.kind != "removed"
            and one.at - 0.1 <= command.ended
            and one.at + _lasts_s(one, self._faults) >= command.sent
            for one in self._faults
        )

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


def _lasts_s(fault: Fault, faults: list[Fault]) -> float:
    """For how long one may be waited for because of what was done to the daemon."""
    if fault.kind not in ("stopped", "killed"):
        return _AFTER_FAULT_S
    over = (one.at for one in faults if one.job == "" and one.at > fault.at)
    return min(over, default=fault.at) - fault.at + _AFTER_FAULT_S


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
