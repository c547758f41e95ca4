"""The course of a storm, as it is kept beside what it left, and the verdict on both together."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from storm_attack import Raid
from storm_audit import Audit
from storm_bounds import Bounds
from storm_client import Command
from storm_faults import Fault
from storm_gaps import Gaps
from storm_jobs import all_jobs
from storm_judge import Judge
from storm_sabotage import MARK
from storm_upgrades import Upgrades
from storm_witness import Life

_FILE: Final = "course.json"


@dataclasses.dataclass
class Course:
    """What the log files and ledgers do not tell. ``until``: when everything was told to end.

    ``seen``: the violations that were seen while it happened. ``deaths``: when a daemon ended. ``peak_mib``: the
    most that a daemon held in memory. ``figures``: the head of the summary.
    """

    until: float
    seen: list[str]
    deaths: list[float]
    lives: list[Life]
    commands: list[Command]
    faults: list[Fault]
    raids: list[Raid]
    peak_mib: float
    figures: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Keep it, so that the folder may be judged again before the next boot."""
        (folder / _FILE).write_text(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(folder: Path) -> Course:
        """What ``write`` has kept."""
        kept = json.loads((folder / _FILE).read_text())
        kept["lives"] = [Life(**one) for one in kept["lives"]]
        kept["commands"] = [Command(**one) for one in kept["commands"]]
        kept["faults"] = [Fault(**one) for one in kept["faults"]]
        kept["raids"] = [Raid(**one) for one in kept["raids"]]
        return Course(**kept)


def judge(folder: Path, course: Course) -> tuple[list[str], dict[str, Any]]:
    """All violations, and the summary, of what the storm left in ``folder``."""
    jobs = all_jobs()
    commands = sorted(course.commands, key=lambda one: one.sent)
    logs = folder / "log"
    audit = Audit(logs / "audit.jsonl")
    gaps = Gaps(audit, course.faults, [one for one in commands if one.command == "upgrade"])
    audit.check_itself(course.faults)
    audit.check_commands(commands, course.deaths)
    audit.check_exits(course.lives, jobs, gaps, course.until)
    judge = Judge(jobs, course.lives, commands, audit, gaps, course.until)
    judge.check_ends()
    judge.check_starts()
    judge.check_lines(logs)
    upgrades = Upgrades(audit, commands, course.faults)
    upgrades.check_answers()
    upgrades.check_failures()
    bounds = Bounds(audit, course.raids, course.faults)
    bounds.check_rights()
    bounds.check_share_of_log()
    bounds.check_pulse(commands)
    bounds.check_memory(course.peak_mib)
    bounds.tell_raids(course.figures["seconds"])
    proved, unproved = _verify(folder)
    violations = [
        *course.seen,
        *audit.violations,
        *judge.violations,
        *upgrades.violations,
        *bounds.violations,
        *crashes(folder),
        *unproved,
    ]
    summary = {
        **course.figures,
        **bounds.figures,
        "commands": len(commands),
        "starts": len(course.lives),
        "exits": sum(life.ended_at is not None for life in course.lives),
        "lines": judge.lines,
        "audit records": len(audit.records),
        "audit log verified": proved,
        "allowed, counted": dict(
            sorted((audit.allowed + judge.allowed + upgrades.allowed).items())
        ),
        "violations": len(violations),
    }
    return violations, summary


def _verify(folder: Path) -> tuple[str, list[str]]:
    """What ``audit verify`` says of the log, with the key that seals it; a violation if it is not good."""
    argv = [sys.executable, "-m", "taskmaster.cli", "audit", "verify"]
    done = subprocess.run(
        [*argv, "--key-file", str(folder / "audit.key"), str(folder / "log/audit.jsonl")],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    # Not by its exit status: the storm is everybody's init, and may have waited for it first.
    said = done.stdout.strip().replace("\n", "; ")
    good = said.startswith("good: ")
    return said, [] if good else [f"audit log: not verified: {said} {done.stderr.strip()}"]


def crashes(folder: Path) -> list[str]:
    """What the product itself left of an unexpected end."""
    found = [
        f"a watchdog crashed: {file}\n{file.read_text()}"
        for file in folder.glob("log/jobs/*/watchdog.crash")
    ]
    said = (folder / "messages").read_text(errors="replace")
    for traceback in re.split(r"(?m)^(?=Traceback )", said)[1:]:
        # One of a program that was sabotaged ends with the words of that.
        if MARK not in traceback:
            found.append(f"the daemon wrote a traceback:\n{traceback[:4000]}")
    return found
