"""The audit log of a storm, read without any of the product, and what it says of commands and exits."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from storm_attack import USERS
from storm_client import Command
from storm_jobs import StormJob
from storm_witness import Life

if TYPE_CHECKING:
    from storm_faults import Fault
    from storm_gaps import Gaps

Record = dict[str, Any]
#: Records that no fault of a storm excuses.
_NEVER: Final = frozenset(
    {
        "audit.lost",
        "audit.reopened",
        "audit.rotate_failed",
        "config.rejected",
        "output.dropped",
        "output.rotate_failed",
        "state.rejected",
        "watchdog.launch_failed",
    }
)
#: Keys that a record has from its place in the log, and from the reader.
_OF_THE_LINE: Final = frozenset(
    {"seq", "timestamp", "at", "mono", "happened", "size_of_line", "prev", "hash"}
)
#: The exit status of a watchdog that has no state folder (watchdog/entry.py), and how long after that was removed
#: it may be told of: the daemon may be stopped meanwhile.
_NO_STATE: Final = 73
_REMOVED_S: Final = 10.0
_ENDS: Final = ("process.exited", "process.unknown_exit")


class Audit:
    """All records in order, each with ``at``, monotonic, from its timestamp."""

    def __init__(self, file: Path) -> None:
        self.violations: list[str] = []
        self.allowed: Counter[str] = Counter()
        self.records: list[Record] = []
        #: The commands of attackers; no client of the storm knows of them.
        self.foreign: list[Record] = []
        # The wall clock is not set during a storm.
        offset = time.time() - time.monotonic()
        for part in _parts(file):
            for line in part.read_bytes().split(b"\n")[:-1]:
                try:
                    record: Record = json.loads(line)
                except ValueError:
                    self.violations.append(f"audit log: a torn record: {line[:200]!r}")
                    continue
                wall = datetime.datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00"))
                record["mono"] = wall.timestamp() - offset
                # What a watchdog could not tell at once carries when it was.
                told = datetime.datetime.fromisoformat(
                    record.get("at", record["timestamp"]).replace("Z", "+00:00")
                )
                record["happened"] = told.timestamp() - offset
                record["size_of_line"] = len(line) + 1
                self.records.append(record)
                if (record.get("peer") or {}).get("uid") in USERS:
                    self.foreign.append(record)
        self._by_job: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            self._by_job[record.get("job") or ""].append(record)

    def of_job(self, job: str, events: Iterable[str] = ()) -> list[Record]:
        """The records of one job, of these events if any are given."""
        wanted = frozenset(events)
        return [one for one in self._by_job[job] if not wanted or one["event"] in wanted]

    def around(self, job: str, at: float, before_s: float = 6.0, after_s: float = 6.0) -> list[str]:
        """What the log tells of a job around a moment, for people."""
        return [
            f"{one['mono']:.3f} {shown(one)}"
            for one in self._by_job[job]
            if at - before_s <= one["mono"] <= at + after_s
        ][:60]

    def check_itself(self, faults: Iterable[Fault]) -> None:
        """Gapless, and without records that tell of a failure of its own."""
        removed = [(one.job, one.at) for one in faults if one.kind == "removed"]
        for expected, record in enumerate(self.records, 1):
            if record["seq"] != expected:
                self.violations.append(f"audit log: seq {record['seq']} where {expected} was due")
                break
        for record in self.records:
            event = record["event"]
            if event in _NEVER:
                self.violations.append(f"audit log: {shown(record)}")
            elif event == "watchdog.lost" and record.get("exitCode") == _NO_STATE:
                around = (at for job, at in removed if job == record["job"])
                if any(0 <= record["mono"] - at <= _REMOVED_S for at in around):
                    self.allowed["watchdogs whose state folder was removed as they began"] += 1
                else:
                    self.violations.append(f"a watchdog found no state folder: {shown(record)}")
            elif event == "watchdog.lost" and record.get("exitCode") is not None:
                self.violations.append(f"a watchdog ended by itself: {shown(record)}")
            elif event == "audit.repaired":
                self.allowed["audit log repaired after a SIGKILL"] += 1

    # commands -------------------------------------------------------------------------------------

    def check_commands(self, commands: list[Command], deaths: list[float]) -> None:
        """Each command on record with its outcome, or visibly without one. ``deaths`` of the daemon."""
        requested: dict[object, list[Record]] = defaultdict(list)
        completed: dict[str, list[Record]] = defaultdict(list)
        foreign = {id(record) for record in self.foreign}
        for record in self.records:
            if id(record) in foreign:
                continue
            if record["event"] == "command.requested":
                requested[_key_of(record)].append(record)
            elif record["event"] == "command.completed":
                completed[record["id"]].append(record)
        for command in commands:
            waiting = requested.get(_key(command), [])
            found = next((one for one in waiting if _same_time(one, command)), None)
            if found is None:
                if command.response is not None:
                    self.violations.append(f"answered, and not in the audit log: {command}")
                else:
                    self.allowed["commands that the daemon never read"] += 1
                continue
            waiting.remove(found)
            self._check_outcome(command, found, completed.pop(found["id"], []), deaths)
        left = [one for ones in requested.values() for one in ones]
        self.violations += [f"in the audit log, and nobody asked: {shown(one)}" for one in left]
        self.violations += [
            f"an outcome without a request: {shown(one)}"
            for ones in completed.values()
            for one in ones
        ]

    def _check_outcome(
        self, command: Command, requested: Record, outcomes: list[Record], deaths: list[float]
    ) -> None:
        command_and = f"{command}; requested as {requested['id']}"
        if len(outcomes) > 1:
            self.violations.append(f"{len(outcomes)} outcomes of one command: {command_and}")
        elif command.sha256 != requested.get("sha256"):
            self.violations.append(f"other bytes on record than were pushed: {command_and}")
        elif command.response is None:
            if outcomes:
                self.allowed["commands done whose reply died with the daemon"] += 1
            elif any(at >= command.sent for at in deaths):
                self.allowed["commands visibly without an outcome: the daemon died"] += 1
            else:
                self.violations.append(
                    f"no reply and no outcome, and no daemon died: {command_and}"
                )
        elif not outcomes:
            self.violations.append(f"answered, and no outcome on record: {command_and}")
        elif outcomes[0]["outcome"] != command.response:
            self.violations.append(
                f"another outcome on record: {command_and}; {shown(outcomes[0])}"
            )

    # exits ----------------------------------------------------------------------------------------

    def unreported(self, lives: list[Life]) -> list[Life]:
        """Ended processes that are not on record as ended yet."""
        told: dict[tuple[str, int, int], int] = Counter()
        for record in _without_repeats(one for one in self.records if one["event"] in _ENDS):
            told[record["job"], record["number"], record["pid"]] += 1
        missing = []
        for life in lives:
            if life.role == "main" and life.ended_at is not None:
                key = (life.job, life.number, life.pid)
                if told[key] == 0:
                    missing.append(life)
                else:
                    told[key] -= 1
        return missing

    def check_exits(
        self, lives: list[Life], jobs: list[StormJob], gaps: Gaps, until: float
    ) -> None:
        """Every start and end that a ledger tells of is on record, and tells the same."""
        mains = [life for life in lives if life.role == "main"]
        by_key: dict[tuple[str, int, int], list[Life]] = defaultdict(list)
        for life in mains:
            by_key[life.job, life.number, life.pid].append(life)
        ends: dict[tuple[str, int, int], list[Record]] = defaultdict(list)
        starts: Counter[tuple[str, int, int]] = Counter()
        told = [one for one in self.records if one["event"] in (*_ENDS, "process.started")]
        once = list(_without_repeats(told))
        if len(told) > len(once):
            self.allowed["process events told twice, since the daemon died over them"] += len(
                told
            ) - len(once)
        for record in once:
            key = (record["job"], record["number"], record["pid"])
            if record["event"] == "process.started":
                starts[key] += 1
            else:
                ends[key].append(record)
        spared = {job.name for job in jobs if job.spared}
        for key in by_key.keys() | ends.keys():
            lived, told_ends = by_key[key], ends[key]
            if len(lived) > starts[key]:
                if gaps.untold(key[0], lived[-1].at):
                    self.allowed["starts that went with a state record that was removed"] += 1
                else:
                    self.violations.append(f"started, and not on record: {lived[-1]}")
            ended = [life for life in lived if life.ended_at is not None]
            for life, record in zip(ended, told_ends, strict=False):
                self._check_exit(life, record, gaps)
            for life in ended[len(told_ends) :]:
                assert life.ended_at is not None
                if gaps.untold(life.job, life.ended_at):
                    self.allowed["ends that went with a state record that was removed"] += 1
                    continue
                self.violations.append(
                    "\n    ".join(
                        [
                            f"ended, and not on record: {life}",
                            *self.around(life.job, life.ended_at or 0),
                        ]
                    )
                )
            for record in told_ends[len(ended) :]:
                # It was ended before it could write that it had begun; or it died unreleased with its watchdog.
                both = gaps.both_between(key[0], record["mono"] - 5, record["mono"])
                if record["event"] == "process.unknown_exit" and both:
                    self.allowed[
                        "unknown whether it ever began: watchdog and daemon were both dead"
                    ] += 1
                elif key[0] in spared and record["mono"] < until:
                    self.violations.append(f"ended before it had begun: {shown(record)}")
                else:
                    self.allowed["processes stopped before they had begun their ledger"] += 1

    def _check_exit(self, life: Life, record: Record, gaps: Gaps) -> None:
        assert life.ended_at is not None
        said = life.exit
        if record["event"] == "process.unknown_exit":
            excuse = gaps.excuse(life, record["mono"])
            if excuse is not None:
                self.allowed[f"exit status unknown: {excuse}"] += 1
            else:
                self.violations.append(
                    "\n    ".join(
                        [
                            f"exit status unknown, though not both were dead: {life}",
                            *gaps.around(life.job, life.ended_at),
                            *self.around(life.job, life.ended_at),
                        ]
                    )
                )
            return
        code, signal = record.get("exitCode"), record.get("signal")
        if said is None:
            right = code is None and signal is not None
        else:
            right = (code, signal) == (said["code"], said["signal"])
        if not right and said is not None and signal == 9 and not life.by_itself:
            self.allowed["SIGKILL between the last entry and the exit"] += 1
        elif not right:
            self.violations.append(f"another end on record: {life}; {shown(record)}")


def _without_repeats(records: Iterable[Record]) -> Iterable[Record]:
    """A daemon that dies before it has acknowledged an event is told again by the watchdog: the same words."""
    seen: set[str] = set()
    for record in records:
        words = json.dumps({key: one for key, one in record.items() if key not in _OF_THE_LINE})
        if words not in seen:
            seen.add(words)
            yield record


def _key(command: Command) -> object:
    return (
        command.wait
        if command.wait is not None
        else (command.address, command.command, command.job)
    )


def _key_of(record: Record) -> object:
    if record.get("wait") is not None:
        return record["wait"]
    return record["peer"]["address"], record["command"], record.get("job")


def _same_time(record: Record, command: Command) -> bool:
    return command.sent - 1 <= record["mono"] <= command.ended + 1


def _parts(file: Path) -> list[Path]:
    """The files of the log, oldest first."""
    numbers = [
        int(found[1])
        for one in file.parent.iterdir()
        if (found := re.fullmatch(re.escape(file.name) + r"\.(\d+)", one.name))
    ]
    return [file.with_name(f"{file.name}.{number}") for number in sorted(numbers, reverse=True)] + [
        file
    ]


def shown(record: Record) -> str:
    """A record for people."""
    return " ".join(
        f"{key}={one}"
        for key, one in record.items()
        if key not in ("mono", "happened", "size_of_line", "timestamp", "peer", "prev", "hash")
    )
