"""Judges what a storm has left: ledgers of the programs against what was asked, and against the log files."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

from storm_audit import Audit
from storm_client import ENDING, Command
from storm_gaps import Gaps
from storm_jobs import StormJob, Treatment
from storm_witness import Life

#: How long after its reply a command may still end processes: one that is done; one that failed, since a
#: watchdog that was stopped may take it up when it is continued; one that a daemon's death interrupted,
#: since the next one goes on with it.
_DONE_S: Final = 3.0
_STUBBORN_S: Final = 10.0
_FAILED_S: Final = 12.0
_INTERRUPTED_S: Final = 25.0
#: A program that ended as expected is started again at once; a watchdog and a daemon may have to come first.
_AGAIN_S: Final = 25.0
_STARTING: Final = frozenset({"start", "restart", "delete"})
_CHANGING: Final = _STARTING | {"push", "reload", "repair"}
_LINE: Final = re.compile(rb"(\S+) (\d+) (\d+) (\d+) (\d+) (\d+) (x*)\.")


class Judge:
    """Collects ``violations`` and counts what is ``allowed``. ``until``: when everything was told to end."""

    def __init__(
        self,
        jobs: list[StormJob],
        lives: list[Life],
        commands: list[Command],
        audit: Audit,
        gaps: Gaps,
        until: float,
    ) -> None:
        self._jobs = jobs
        self._lives = lives
        self._commands = commands
        self._audit = audit
        self._gaps = gaps
        self._until = until
        self.violations: list[str] = []
        self.allowed: Counter[str] = Counter()
        self.lines = 0

    def _violation(self, text: str, job: str, at: float) -> None:
        asked = [
            str(one)
            for one in self._commands
            if one.job in (job, None) and one.sent <= at + 2 and one.ended >= at - 15
            if one.command not in ("status", "pull", "list")
        ]
        lived = [str(one) for one in self._lives if one.job == job and abs(one.at - at) < 15][-12:]
        more = [*lived, *asked[-15:], *self._gaps.around(job, at), *self._audit.around(job, at)]
        self.violations.append("\n    ".join([text, *more]))

    # who was ended, and why -----------------------------------------------------------------------

    def check_ends(self) -> None:
        """Every process that did not end by itself was asked to."""
        for job in self._jobs:
            if job.treatment is Treatment.ATTACKED:
                continue
            lives = [life for life in self._lives if life.job == job.name]
            mains = [life for life in lives if life.role == "main"]
            if not job.spared:
                for number in {life.number for life in mains}:
                    self._match(job, [life for life in mains if life.number == number])
            for life in lives:
                if life.role == "daemon":
                    self._check_daemon(job, life, mains)

    def _match(self, job: StormJob, mains: list[Life]) -> None:
        """Each command ends one process of a place at most: give each end a command of its own."""
        ends = sorted(
            (life for life in mains if not life.by_itself and life.ended_at is not None),
            key=lambda life: life.ended_at or 0,
        )
        windows = [
            (one.sent, self._window_end(job, one), one)
            for one in self._commands
            if one.job in (job.name, None) and one.command in ENDING and not one.invalid
        ]
        for life in ends:
            at = life.ended_at
            assert at is not None
            if at >= self._until:
                continue
            fitting = [window for window in windows if window[0] <= at <= window[1]]
            if fitting:
                windows.remove(min(fitting, key=lambda window: window[1]))
            else:
                self._violation(f"killed, and nobody had asked for it: {life}", job.name, at)

    def _window_end(self, job: StormJob, command: Command) -> float:
        if command.response is None:
            return command.ended + _INTERRUPTED_S
        if command.response == "fail":
            return command.ended + _FAILED_S
        if command.response == "redundant":
            return command.ended + 0.2
        return command.ended + (_STUBBORN_S if job.kind == "stubborn" else _DONE_S)

    def _check_daemon(self, job: StormJob, life: Life, mains: list[Life]) -> None:
        """A double-forked child ends with a stop of its job, or when its main process is started again."""
        at = life.ended_at
        if at is None or at >= self._until:
            return
        main = next((one for one in mains if one.pid == life.of and one.at <= life.at), None)
        if main is None or (main.ended_at is not None and main.ended_at <= at):
            return
        if job.spared:
            self._violation(f"killed, and its main process runs: {life} of {main}", job.name, at)
        elif not any(
            one.sent <= at <= self._window_end(job, one)
            for one in self._commands
            if one.job in (job.name, None) and one.command in ENDING
        ):
            self._violation(f"killed, and nobody had asked for it: {life} of {main}", job.name, at)

    # who was started ------------------------------------------------------------------------------

    def check_starts(self) -> None:
        """What ended as expected was started again; what was stopped was not."""
        for job in self._jobs:
            mains = [one for one in self._lives if one.job == job.name and one.role == "main"]
            if job.spared and job.lives_again:
                self._check_again(job, mains)
            if not job.spared:
                self._check_stays_stopped(job, mains)

    def _check_again(self, job: StormJob, mains: list[Life]) -> None:
        # Whether an unknown end was an expected one nobody knows, so it may count as a crash and be waited for;
        # so may that of a process which died with its watchdog before it was let go, and has no ledger.
        unknown = self._audit.of_job(job.name, ("process.unknown_exit",))
        places: dict[int, list[Life]] = defaultdict(list)
        for life in mains:
            places[life.number].append(life)
        for lived in places.values():
            for before, after in zip(lived, [*lived[1:], None], strict=True):
                if before.ended_at is None or before.ended_at >= self._until:
                    continue
                began = after.at if after is not None else self._until
                if self._gaps.record_lost(job.name, before.ended_at, began):
                    continue
                if any(
                    one["number"] == before.number
                    and (one["pid"] == before.pid or before.ended_at < one["happened"] < began)
                    for one in unknown
                ):
                    continue
                if began - before.ended_at > _AGAIN_S:
                    self._violation(
                        f"not started again for {began - before.ended_at:.1f} s: {before}",
                        job.name,
                        before.ended_at,
                    )

    def _check_stays_stopped(self, job: StormJob, mains: list[Life]) -> None:
        mine = [one for one in self._commands if one.job in (job.name, None)]
        changing = [one for one in mine if one.command in _CHANGING]
        for stop in mine:
            if stop.command not in ("stop", "kill") or stop.response not in (
                "success",
                "redundant",
            ):
                continue
            earlier = [one for one in changing if one.sent <= stop.ended and one is not stop]
            if any(self._window_end(job, one) >= stop.sent for one in earlier):
                continue  # what is asked at the same time may come in any order
            again = min(
                (
                    one.sent
                    for one in changing
                    if one.command in _STARTING and one.sent > stop.ended
                ),
                default=self._until,
            )
            for life in mains:
                if stop.ended + 1.0 < life.at < again:
                    self._violation(f"started, though stopped by {stop}: {life}", job.name, life.at)
                    return

    # lines ----------------------------------------------------------------------------------------

    def check_lines(self, logs: Path) -> None:
        """No numbered line missing, torn, twice or out of order."""
        for job in self._jobs:
            if job.writes:
                folder = logs / "jobs" / job.name
                for number in sorted({one.number for one in self._lives if one.job == job.name}):
                    self._check_file(job, number, folder)

    def _check_file(self, job: StormJob, number: int, folder: Path) -> None:
        found: dict[tuple[int, int], int] = Counter()
        for part in _parts(folder, f"{number}_stdout.log"):
            for line in part.read_bytes().split(b"\n")[:-1]:
                match = _LINE.fullmatch(line)
                if match is None or int(match[6]) != len(match[7]) or int(match[2]) != number:
                    self._violation(f"{part}: a torn line: {line[:300]!r}", job.name, 0)
                    return
                key = (int(match[3]), int(match[4]))
                if int(match[5]) != found[key] + 1:
                    life = next((one for one in self._lives if (one.pid, one.start) == key), None)
                    text = f"{part}: line {match[5].decode()} after {found[key]} of {life}"
                    self._violation(text, job.name, life.at if life else 0)
                    return
                found[key] += 1
                self.lines += 1
        for life in self._lives:
            if life.job != job.name or life.number != number:
                continue
            there = found[life.pid, life.start]
            # Exact where it could note its last line; one that was killed may have written a few more.
            if there < life.through or (life.exit is not None and there != life.through):
                ended = life.ended_at or self._until
                if self._gaps.both_between(job.name, ended - 1, ended + 5) and not life_spared(
                    job, life
                ):
                    self.allowed["last lines lost: watchdog and daemon were both dead"] += 1
                elif life.ended_at is not None and self._gaps.pipe_lost(life):
                    self.allowed["last lines lost: in a pipe that was removed"] += 1
                else:
                    text = f"{there} lines in {folder}/{number}_stdout.log*, {life.through} noted: {life}"
                    self._violation(text, job.name, ended)


def life_spared(job: StormJob, life: Life) -> bool:
    """Whether it lived through the whole storm, holding its own pipe."""
    return job.spared and job.kind == "writer"


def _parts(folder: Path, name: str) -> list[Path]:
    """The files of one output, oldest first."""
    numbers = [
        int(found[1])
        for one in folder.iterdir()
        if (found := re.fullmatch(re.escape(name) + r"\.(\d+)", one.name))
    ]
    return [folder / f"{name}.{number}" for number in sorted(numbers, reverse=True)] + [
        folder / name
    ]
