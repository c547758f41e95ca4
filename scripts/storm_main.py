"""The storm: its course, and its summary. See scripts/storm."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from storm_arguments import ATTACKERS, parsed
from storm_attack import BYTES_A_DAY, Attackers, access
from storm_audit import Audit
from storm_client import Clients, Command
from storm_faults import Faults
from storm_gaps import Gaps
from storm_host import Host, become_ended
from storm_jobs import all_jobs
from storm_pulse import Pulse
from storm_verdict import Course, judge
from storm_witness import Witness

_CLIENTS: Final = 3
#: For what must come true when no more faults come.
_DEADLINE_S: Final = 60.0
_SHOWN: Final = 8


class Storm:
    """One storm. ``violations`` is empty if every promise was kept; ``summary``: its figures."""

    def __init__(self, host: Host, seed: int, pace: float, faults: Sequence[str]) -> None:
        self._host = host
        self._seed = seed
        self._jobs = all_jobs()
        self.violations: list[str] = []
        self.summary: dict[str, Any] = {}
        for job in self._jobs:
            file = host.jobs / f"{job.name}.tm.json"
            file.write_bytes(job.content(host.ledgers, seed))
        self._witness = Witness(host.ledgers, self._jobs)
        self._clients = Clients(host, self._jobs, seed, _CLIENTS, pace)
        self._faults = Faults(
            host, self._clients, seed, pace, [one for one in faults if one != ATTACKERS]
        )
        self._pulse = Pulse(host, self._clients, self._jobs, seed)
        self._attackers: Attackers | None = None
        if ATTACKERS in faults and os.geteuid() == 0:
            self._attackers = Attackers(host, seed)

    def run(self, seconds: float) -> None:
        """Let it rage for so long, wait for quiet, end everything, judge."""
        began = time.monotonic()
        self._host.start()
        self._wait("taskmasterd serves", lambda: self._ask("list") is not None)
        self._clients.start()
        self._pulse.start()
        if self._attackers is not None:
            self._attackers.start()
        self._faults.run(
            began + seconds, lambda: bool(self._witness.violations or self._clients.faults)
        )
        self._faults.finish()
        self._clients.stop()
        self._pulse.stop()
        if self._attackers is not None:
            self._attackers.stop()
        if self._host.running and not self._witness.violations:
            self._be_quiet()
        self._end()
        self._judge(time.monotonic() - began)

    # asking ---------------------------------------------------------------------------------------

    def _ask(self, word: str, job: str | None = None, **fields: Any) -> Command | None:
        asked = self._clients.query(-2, word, job, **fields)
        return asked[0] if self._clients.ask([asked], tcp=True) else None

    def _status(self, job: str) -> dict[str, Any] | None:
        asked = self._ask("status", job)
        return json.loads(asked.data) if asked is not None and asked.response == "status" else None

    def _wait(self, text: str, what: Any) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not (done := what()) or isinstance(done, str):
            if time.monotonic() > deadline or not self._host.running:
                more = f": {done}" if isinstance(done, str) else ""
                self.violations.append(f"not in {_DEADLINE_S:g} s without faults: {text}{more}")
                return
            time.sleep(0.1)

    # the course -----------------------------------------------------------------------------------

    def _be_quiet(self) -> None:
        """No faults any more: everything must come right."""
        self._wait("every job has a watchdog, and what lives is what it watches", self._in_order)
        self._check_desired()
        for job in self._jobs:
            asked = None if job.spared else self._ask("start", job.name, wait=20)
            if (
                asked is not None
                and asked.response == "fail"
                and "does not exist" not in asked.error
            ):
                self.violations.append(f"without faults, a start fails: {asked}")
        self._wait("what lives after a start is what is watched", self._in_order)
        self._wait("every end is on record", self._all_reported)

    def _in_order(self) -> bool | str:
        watched: set[tuple[str, int, int]] = set()
        for job in self._jobs:
            status = self._status(job.name)
            if status is None:
                continue
            if status["watchdog"]["state"] != "ATTACHED":
                return f"{job.name}: {status['watchdog']} {status['reason']}"
            watched |= {
                (job.name, one["number"], one["pid"])
                for one in status["processes"]
                if one["pid"] is not None
            }
        alive = {
            (one.job, one.number, one.pid) for one in self._witness.living() if one.role == "main"
        }
        if alive != watched:
            return f"unwatched: {sorted(alive - watched)}, not alive: {sorted(watched - alive)}"
        return True

    def _all_reported(self) -> bool | str:
        audit = Audit(self._host.audit_file)
        gaps = Gaps(audit, self._faults.ledger, [])
        missing = [
            one
            for one in audit.unreported(self._witness.lives)
            if not gaps.untold(one.job, one.ended_at or 0)
        ]
        return f"{len(missing)}, such as {missing[0]}" if missing else True

    def _check_desired(self) -> None:
        """A job that nobody stopped is wanted up."""
        for job in self._jobs:
            status = self._status(job.name)
            if status is None or status["stopped"] is not None or status["desired"] == "UP":
                continue
            mine = [one for one in self._clients.commands if one.job == job.name]
            # A start that failed may leave it down; nobody can say what was meant last then.
            acting = [
                one
                for one in mine
                if one.command in ("start", "stop", "kill", "restart", "delete", "push")
            ]
            if any(
                one.command in ("start", "restart") and one.response in ("fail", None)
                for one in acting[-4:]
            ):
                continue
            asked = "\n    ".join(str(one) for one in acting[-8:])
            self.violations.append(
                f"down, though nobody stopped it: {job.name}: {status}\n    {asked}"
            )

    def _end(self) -> None:
        self._until = time.monotonic()
        self._witness.ending_at = self._until
        if not self._host.running:
            return
        self._host.signal_daemon(signal.SIGTERM)
        status = self._host.wait_end(_DEADLINE_S)
        if status != 0:
            self.violations.append(
                f"SIGTERM without faults: taskmasterd ended with wait status {status}"
            )
        time.sleep(0.2)
        left = self._host.below()
        if status == 0 and left:
            self.violations.append(f"left running by an orderly end: {left}")

    # judging --------------------------------------------------------------------------------------

    def _judge(self, took_s: float) -> None:
        self._witness.stop()
        host, witness, faults, attackers = self._host, self._witness, self._faults, self._attackers
        seen = self.violations + faults.problems + self._clients.faults + witness.violations
        course = Course(
            until=self._until,
            seen=seen if attackers is None else seen + attackers.problems,
            deaths=[at for at, _, _ in host.ended],
            lives=witness.lives,
            commands=self._clients.commands,
            faults=faults.ledger,
            raids=[] if attackers is None else attackers.raids,
            peak_mib=self._pulse.peak_mib,
            figures={
                "seconds": round(took_s, 1),
                "faults": sum(faults.counts.values()),
                "faults by kind": dict(sorted(faults.counts.items())),
                "connections refused": self._clients.refused,
            },
        )
        course.write(host.folder)
        self.violations, self.summary = judge(host.folder, course)


def report(violations: list[str], summary: dict[str, Any]) -> None:
    """Print what happened."""
    for text in violations[:_SHOWN]:
        print(f"VIOLATION {text}\n")
    if len(violations) > _SHOWN:
        print(f"... and {len(violations) - _SHOWN} more\n")
    for name, figure in summary.items():
        if isinstance(figure, dict):
            print(f"{name}:")
            for what, count in figure.items():
                print(f"  {count:7} {what}")
        else:
            print(f"{name}: {figure}")


def main() -> int:
    """Run one storm; the exit status."""
    arguments = parsed()
    if arguments.judge is not None:
        violations, summary = judge(arguments.judge, Course.read(arguments.judge))
        report(violations, summary)
        return 1 if violations else 0
    seed = random.randrange(1 << 31) if arguments.seed is None else arguments.seed
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, become_ended)
    host = Host(arguments.folder, access=access(), auditBytesPerDay=BYTES_A_DAY)
    print(f"storm of {arguments.minutes:g} min, seed {seed}, in {host.folder}", flush=True)
    keep = True
    try:
        storm = Storm(host, seed, arguments.pace, arguments.faults)
        storm.run(arguments.minutes * 60)
        report(storm.violations, storm.summary)
        keep = bool(storm.violations) or arguments.keep
        if storm.violations:
            print(f"seed {seed}; everything is left in {host.folder}")
            return 1
        return 0
    except KeyboardInterrupt:
        keep = arguments.keep
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        host.end(keep=keep)


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    sys.exit(main())
