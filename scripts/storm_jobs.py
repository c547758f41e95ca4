"""The jobs of a storm, thirty and one for an attacker: what each runs, and what clients may do to it.

What may be done decides what is a violation: a process of a job that nobody may stop must never be stopped.
"""

from __future__ import annotations

import enum
import json
import random
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

PROGRAM: Final = Path(__file__).with_name("storm_program.py")
STOP_TIME_S: Final = 1.0
#: Of lines, so small that a file is full after seconds, and as many as are filled in an hour are kept.
ROTATED: Final = {"logMaxBytes": 131072, "logBackups": 1000}
#: Short names: of a watchdog's, the kernel keeps six bytes beside the word.
_NAMES: Final = {
    "steady": "std",
    "stubborn": "stb",
    "exits": "exi",
    "crash": "cra",
    "writer": "wri",
    "reciter": "rec",
    "forks_and_stays": "fst",
    "forks_and_exits": "fex",
}
_EXPECTED: Final = {
    "restart": "always",
    "normalExitCode": list(range(100)),
    "normalExitSig": ["KILL", "SEGV", "ABRT", "USR1"],
}


class Treatment(enum.Enum):
    """What clients do to a job beside looking at it."""

    #: Nothing at all.
    UNTOUCHED = "untouched"
    #: Only what must leave its processes alone: reload, repair, start, push of another stopTime or log size.
    GENTLE = "gentle"
    #: Everything.
    COMMANDED = "commanded"
    #: Nothing by clients, and everything by an attacker who may: why its processes end is not judged.
    ATTACKED = "attacked"


class StormJob(NamedTuple):
    """One job: ``keys`` of its file beside the command."""

    name: str
    kind: str
    treatment: Treatment
    keys: dict[str, Any]

    @property
    def writes(self) -> bool:
        """Whether its processes write numbered lines."""
        return self.kind in ("writer", "reciter")

    @property
    def spared(self) -> bool:
        """Whether nobody may end its processes."""
        return self.treatment in (Treatment.UNTOUCHED, Treatment.GENTLE)

    @property
    def lives_again(self) -> bool:
        """Whether its processes end as expected, and are then to be started again at once."""
        return self.keys.get("restart") == "always" and "normalExitCode" in self.keys

    def content(self, ledgers: Path, seed: int, **keys: Any) -> bytes:
        """A job file with ``keys`` beside or instead of its own."""
        cmd = [sys.executable, "-I", "-S", str(PROGRAM), self.kind, str(ledgers), str(seed)]
        standard = {"startTime": 0, "restartTimes": -1, "stopTime": STOP_TIME_S}
        return json.dumps({"cmd": cmd, **standard, **self.keys, **keys}).encode()


def all_jobs() -> list[StormJob]:
    """The jobs, the same in every storm."""
    made: list[StormJob] = []

    def add(treatment: Treatment, kind: str, **keys: Any) -> None:
        if kind in ("exits", "reciter", "forks_and_exits"):
            keys = {**_EXPECTED, **keys}
        number = sum(job.kind == kind for job in made)
        made.append(StormJob(f"{_NAMES[kind]}{number}", kind, treatment, keys))

    untouched, gentle, commanded, attacked = Treatment
    add(untouched, "steady", procNr=3)
    add(untouched, "steady")
    add(untouched, "exits", procNr=2)
    add(untouched, "exits", startTime=0.2)
    add(untouched, "exits", logMaxBytes=0)
    add(untouched, "crash")
    add(untouched, "writer")
    add(untouched, "writer", **ROTATED)
    add(untouched, "writer", logMaxBytes=0)
    add(untouched, "reciter", stderr="stdout", **ROTATED)
    add(untouched, "forks_and_stays")
    add(untouched, "forks_and_exits")
    add(untouched, "forks_and_exits", procNr=2)

    add(gentle, "steady", procNr=2)
    add(gentle, "exits")
    add(gentle, "writer", **ROTATED)
    add(gentle, "forks_and_stays")
    add(gentle, "forks_and_exits")

    add(commanded, "steady", procNr=2)
    add(commanded, "steady", startTime=0.3)
    add(commanded, "steady", restart="never")
    add(commanded, "stubborn")
    add(commanded, "exits", procNr=2)
    add(commanded, "exits", restart="never")
    add(commanded, "exits")
    add(commanded, "crash")
    add(commanded, "writer", **ROTATED)
    add(commanded, "reciter")
    add(commanded, "forks_and_stays", procNr=2)
    add(commanded, "forks_and_exits")

    made.append(StormJob("own0", "steady", attacked, {}))
    return made


def harmless_keys(job: StormJob, random: random.Random) -> dict[str, Any]:
    """Keys that a push may change without a process noticing."""
    keys: dict[str, Any] = {"stopTime": random.choice((0.8, STOP_TIME_S, 1.2))}
    if "logBackups" in job.keys:
        keys["logMaxBytes"] = random.choice((98304, 131072, 262144))
    else:
        keys["stopSig"] = random.choice(("TERM", 15))
    return keys


def changed_keys(job: StormJob, random: random.Random) -> dict[str, Any]:
    """Keys that a push changes so that processes are restarted, added or stopped."""
    keys: dict[str, Any] = {"env": {"REVISION": str(random.randrange(4))}}
    if random.random() < 0.4:
        keys["procNr"] = random.randint(1, 3)
    return keys
