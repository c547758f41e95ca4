"""Starting processes: fork what is wanted, and find out whether it became its program.

Between the two halves of a spawn lies the runner's record; nothing here lets a child go before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from taskmaster import children
from taskmaster.core.events import LeftBehind, Spawned, SpawnFailed, Start, Stop
from taskmaster.core.lifecycle import Phase
from taskmaster.core.states import Desired
from taskmaster.watchdog import logfolder, process
from taskmaster.watchdog.confinement import Limits
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.process import Failure
from taskmaster.watchdog.signalling import SHORT

if TYPE_CHECKING:
    from taskmaster.watchdog.runner import Runner

#: Forked before the loop gets its turn: 1000 at once would leave it deaf for over a second.
_FORKS_A_TURN: Final = 16


class Spawning:
    """Starts the processes of one runner. ``limits``: rlimits for them. ``failed`` is told of each start that
    failed, in words, ``succeeded`` of the others."""

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self._runner = runner
        self._limits = limits
        self.failed: Callable[[Place, str], None] = lambda place, words: None
        self.succeeded: Callable[[Place], None] = lambda place: None

    def fork_wanted(self) -> list[Place]:
        forked: list[Place] = []
        for place in [one for one in self._runner.places.values() if one.wants_spawn]:
            if len(forked) == _FORKS_A_TURN:
                self._runner.loop.call_in(0, self._runner.mark_dirty)
                break
            place.wants_spawn = False
            if place.phase is Phase.SPAWNING and self._is_to_be(place) and self._fork(place):
                forked.append(place)
        return forked

    def _is_to_be(self, place: Place) -> bool:
        """Whether the process is to be forked now: it is still wanted, and nothing of the one before is left."""
        runner = self._runner
        wanted = place.process.desired is Desired.UP and not place.process.urgent
        try:
            clear = runner.signalling.is_clear(place)
        except OSError as error:
            if error.errno not in SHORT:
                raise
            if wanted:
                text = f"look for what the process before left: {os.strerror(error.errno or 0)}"
                self._not_started(place, Failure(text, error.errno or 0))
                return False
            clear = True  # the next start looks again
        if not clear:
            runner.feed(place, LeftBehind())
        elif not wanted:
            runner.feed(place, SpawnFailed())
        return clear and wanted

    def _fork(self, place: Place) -> bool:
        try:
            ends = self._runner.captures.prepare(place.number, self._runner.spec)
        except OSError as error:
            text = f"output {error.filename}: {logfolder.words(error)}"
            self._not_started(place, Failure(text, error.errno or 0))
            return False
        try:
            entrance = self._runner.memory.prepare(place)
        except OSError as error:
            ends.close()
            text = f"memoryMax: cgroup {error.filename}: {os.strerror(error.errno or 0)}"
            self._not_started(place, Failure(text, error.errno or 0))
            return False
        stdout, stderr = ends.ends
        plan = process.Plan(
            self._runner.spec,
            place.number,
            self._runner.instance,
            self._runner.directory,
            stdout,
            stderr,
            self._limits,
            entrance,
            frozenset(ends.given),
        )
        try:
            child = process.fork(plan)
        except OSError as error:
            text = f"fork: {os.strerror(error.errno or 0)}"
            self._not_started(place, Failure(text, error.errno or 0))
            return False
        finally:
            ends.close()
        place.child = child
        place.pid, place.start, place.session = child.pid, child.start, child.pid
        place.own_child, place.killing, place.over = True, False, False
        place.report = self._runner.loop.watch(child.report, lambda: self._read_report(place))
        try:
            self._runner.endings.hold(place)
        except OSError:
            pass  # EMFILE, ENFILE: its end is noticed by SIGCHLD all the same
        self._runner.mark_dirty()
        return True

    def release(self, forked: list[Place]) -> None:
        """The record names them: they may become their programs."""
        for place in forked:
            assert place.child is not None
            place.child.release()

    def abandon(self, forked: list[Place], failure: Failure) -> None:
        """There is no record of them: they end without ever having been their programs."""
        for place in forked:
            child = place.child
            assert child is not None
            assert place.report is not None
            child.abandon()
            self._runner.loop.unwatch(place.report)
            os.close(child.report)
            place.report, place.child = None, None
            self._drop_child(place)
            self._not_started(place, failure, True)

    def was_executed(self, place: Place, status: int | None) -> bool:
        """The process of a spawn under way has ended: as its program, or before it became that?"""
        if place.report is not None:
            self._read_report(place)
        elif status is not None and children.exit_of(status)[0] == process.UNRELEASED:
            # Its watchdog died before it let it go: nothing ran, and the start is still to be made.
            place.pid = place.start = None
            place.wants_spawn = True
            self._runner.touch(place)
        else:
            self._runner.feed(place, Spawned())
        return place.phase is not Phase.SPAWNING and place.pid is not None

    def _read_report(self, place: Place) -> None:
        child = place.child
        assert child is not None
        assert place.report is not None
        try:
            failure = process.read_report(child.report)
        except BlockingIOError:
            return
        self._runner.loop.unwatch(place.report)
        os.close(child.report)
        place.report, place.child = None, None
        if failure is not None:
            self._drop_child(place)
            self._not_started(place, failure)
            return
        place.up_at = self._runner.loop.now()
        place.error = ""
        place.exit_unknown = False
        self._runner.feed(place, Spawned())
        self.succeeded(place)
        if place.outdated:
            place.outdated = False
            if place.process.desired is Desired.UP:
                self._runner.feed(place, Stop())
                self._runner.feed(place, Start())

    def _drop_child(self, place: Place) -> None:
        """What was forked is not, and will not be, the job's program."""
        self._runner.endings.reap_later(place)
        self._runner.endings.let_go(place)
        place.pid = place.start = None

    def _not_started(self, place: Place, failure: Failure, transient: bool = False) -> None:
        place.error = failure.text
        place.pid = place.start = None
        self._runner.notice(
            place, "process.spawn_failed", step=failure.text.split(":")[0], error=failure.text
        )
        self._runner.feed(place, SpawnFailed(transient or failure.transient, random.random()))
        self._runner.touch(place)
        self.failed(place, failure.text)
