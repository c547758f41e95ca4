"""Judges the upgrades of a storm: those to a program that was sabotaged fail, and no others do."""

from __future__ import annotations

from collections import Counter

from storm_audit import Audit, shown
from storm_client import Command
from storm_faults import SABOTEUR, Fault


class Upgrades:
    """Collects ``violations`` and counts what is ``allowed``."""

    def __init__(self, audit: Audit, commands: list[Command], faults: list[Fault]) -> None:
        self._audit = audit
        self._asked = [one for one in commands if one.command == "upgrade"]
        self._faults = faults
        self.violations: list[str] = []
        self.allowed: Counter[str] = Counter()

    def check_answers(self) -> None:
        """Whoever asked for an upgrade that could not succeed was told so."""
        starts = [one.at for one in self._faults if one.kind == "started"]
        for fault in self._faults:
            asked = [one for one in self._asked if one.client == SABOTEUR and one.sent >= fault.at]
            if fault.kind != "sabotaged" or not asked:
                continue
            first = min(asked, key=lambda one: one.sent)
            # What the storm starts meanwhile is started from a product that is whole, and may well be upgraded.
            mended = any(fault.at <= at <= first.ended for at in starts)
            if not mended and first.response not in ("fail", None):
                self.violations.append(
                    f"an upgrade to a program that fails in the step {fault.what}: {first}"
                )

    def check_failures(self) -> None:
        """An upgrade that fails on record was a sabotaged one."""
        for record in self._audit.records:
            if record["event"] != "daemon.upgrade_failed":
                continue
            before = [one for one in self._asked if one.sent <= record["mono"]]
            if before and max(before, key=lambda one: one.sent).client == SABOTEUR:
                self.allowed["upgrades to a program that could not start"] += 1
            else:
                self.violations.append(f"audit log: {shown(record)}")
