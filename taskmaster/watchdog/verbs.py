"""What the control plane asks of a watchdog, and what that means for each place.

A request is answered twice: Begun at once, Done when it has its outcome. What may take long (a stop) has
its outcome when it has begun; a start has it when every process is its program or has failed to be.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from taskmaster.core import lifecycle
from taskmaster.core.events import Kill, Start, Stop
from taskmaster.core.lifecycle import ALIVE, IDLE, Phase
from taskmaster.core.spec import JobSpec, same_processes
from taskmaster.core.states import Desired
from taskmaster.eventloop import Timer
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.runner import Runner

SUCCESS: Final = "success"
REDUNDANT: Final = "redundant"
FAIL: Final = "fail"

#: How long a stop waits for a start before it, seconds.
_IN_ORDER_S: Final = 1.0

#: Told: the request's id, its outcome, its error.
Answer = Callable[[int, str, str], None]


class _Pending:
    """A request that waits for places to be started."""

    def __init__(self, request: int, outcome: str, places: list[Place]) -> None:
        self.request = request
        self.outcome = outcome
        self.places = places
        self.errors: dict[int, str] = {}
        #: Numbers of those that are programs, or were when this was asked.
        self.started = {
            place.number for place in places if place.phase in (Phase.STARTING, Phase.RUNNING)
        }


class Verbs:
    """Carries out requests on one runner."""

    def __init__(self, runner: Runner, answer: Answer) -> None:
        self._runner = runner
        self._answer = answer
        self._pending: list[_Pending] = []
        self._retiring: int | None = None
        self._deferred: deque[tuple[int, str, str]] = deque()
        self._patience: Timer | None = None
        self._table: dict[str, Callable[[int], None]] = {
            "start": self._start,
            "stop": self._stop,
            "kill": self._kill,
            "repair": self._repair,
            "restart": self._restart,
            "ensure": self._ensure,
        }
        runner.spawning.failed = self._start_failed
        runner.spawning.succeeded = self._started

    @property
    def retiring(self) -> bool:
        """Whether the job is being brought to its end."""
        return self._retiring is not None

    def act(self, request: int, verb: str, cause: str = "") -> None:
        """Carry out a verb, after those before it; one that is not known is answered so.

        ``cause``: the command behind it, for the audit log.
        """
        if self._deferred or (verb in ("stop", "kill") and self._is_starting()):
            # In order: what is being started is its program in milliseconds, and then stopped. But a start that
            # hangs (a directory on a dead network disk), or waits for an end that takes its time, holds nobody up
            # for longer than this.
            if not self._deferred:
                self._patience = self._runner.loop.call_in(_IN_ORDER_S, self._out_of_patience)
            self._deferred.append((request, verb, cause))
        else:
            self._carry_out(request, verb, cause)

    def _is_starting(self) -> bool:
        return any(_under_way(place) for pending in self._pending for place in pending.places)

    def _out_of_patience(self) -> None:
        request, verb, cause = self._deferred.popleft()
        self._carry_out(request, verb, cause)
        self._go_on()

    def _go_on(self) -> None:
        """Carry out what was deferred, as far as nothing is being started."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        waiting, self._deferred = self._deferred, deque()
        for request, verb, cause in waiting:
            self.act(request, verb, cause)

    def _carry_out(self, request: int, verb: str, cause: str) -> None:
        rule = self._table.get(verb)
        if rule is None:
            self._answer(request, FAIL, f"the watchdog knows no verb {verb[:32]!r}")
        elif self.retiring and verb == "ensure":
            pass  # of a daemon that knows nothing of the removal: the next watchdog is asked again
        elif self.retiring and verb not in ("stop", "kill"):
            self._answer(request, FAIL, "the job is being removed")
        else:
            with self._because_of(cause):
                rule(request)

    @contextlib.contextmanager
    def _because_of(self, cause: str) -> Iterator[None]:
        """What is begun within has this command for its cause."""
        self._runner.cause = cause
        try:
            yield
        finally:
            self._runner.cause = ""

    # verbs --------------------------------------------------------------------------------------

    def _wanted(self) -> list[Place]:
        """The places that the definition asks for, in order; made where they are not there yet."""
        return [self._runner.place(number) for number in range(self._runner.spec.proc_nr)]

    def _start(self, request: int) -> None:
        begun = [place for place in self._wanted() if not _is_up(place)]
        for place in begun:
            self._runner.feed(place, Start())
        self._wait_for(request, SUCCESS if begun else REDUNDANT)

    def _stop(self, request: int) -> None:
        self._bring_down(request, Stop)

    def _kill(self, request: int) -> None:
        self._bring_down(request, Kill)

    def _bring_down(self, request: int, event: type[Stop] | type[Kill]) -> None:
        self._wanted()
        outcome = REDUNDANT
        for place in list(self._runner.places.values()):
            if self._down(place, event):
                outcome = SUCCESS
        self._answer(request, outcome, "")

    def _down(self, place: Place, event: type[Stop] | type[Kill]) -> bool:
        """Bring a place down, with what an ended process has left behind; False where that is so already."""
        remains = place.phase not in ALIVE and bool(self._runner.signalling.left_behind(place))
        idle = place.phase is Phase.STOPPED and place.process.desired is Desired.DOWN
        if remains or not idle:
            self._runner.feed(place, event(remains))
        return remains or not idle

    def _repair(self, request: int) -> None:
        wanted = self._wanted()
        is_up = any(place.process.desired is Desired.UP for place in wanted)
        outcome = SUCCESS if len(self._runner.places) > len(wanted) else REDUNDANT
        for place in wanted:
            forgiven = lifecycle.forgiven(place.process)
            if place.restarts or forgiven != place.process:
                place.process, place.restarts = forgiven, 0
                self._runner.touch(place)
                outcome = SUCCESS
            if is_up and not _is_up(place):
                self._runner.feed(place, Start())
                outcome = SUCCESS
        self._drop_surplus()
        if is_up:
            self._wait_for(request, outcome)
        else:
            self._answer(request, outcome, "")

    def _restart(self, request: int) -> None:
        self._take_down(self._wanted())
        for place in self._wanted():
            self._runner.feed(place, Start())
        self._wait_for(request, SUCCESS)

    def _ensure(self, request: int) -> None:
        # Who is down here was not stopped by an administrator, else this would not have been asked: a removal, or
        # the end of a daemon, was interrupted.
        for place in self._wanted():
            if place.process.desired is Desired.DOWN:
                self._runner.feed(place, Start())
        self._answer(request, SUCCESS, "")

    def _take_down(self, places: list[Place]) -> None:
        for place in places:
            if place.phase in ALIVE:
                # One that is about to become its program would become the old one.
                place.outdated = place.child is not None
                self._runner.feed(place, Stop())

    # definitions ----------------------------------------------------------------------------------

    def configure(self, request: int, spec: JobSpec, sha256: str, cause: str = "") -> None:
        """Put a definition in force and apply what is different, and only that."""
        with self._because_of(cause):
            self._configure(request, spec, sha256)

    def _configure(self, request: int, spec: JobSpec, sha256: str) -> None:
        runner, old = self._runner, self._runner.spec
        if spec == old:
            if sha256 != runner.sha256:
                runner.sha256 = sha256
                runner.mark_dirty()
            self._answer(request, SUCCESS, "")
            return
        again: list[Place] = []
        if not same_processes(old, spec):
            # With the old definition's stop signal: that is the one the old program knows.
            again = [
                place
                for place in runner.places.values()
                if place.process.desired is Desired.UP and place.phase is not Phase.EXITED
            ]
            self._take_down(again)
        else:
            # What failed under the old definition may do better under the new one.
            again = [
                place
                for place in runner.places.values()
                if place.process.desired is Desired.UP
                and place.phase in (Phase.FATAL, Phase.BACKOFF)
            ]
        runner.spec, runner.sha256 = spec, sha256
        runner.mark_dirty()
        wanted_up = any(place.process.desired is Desired.UP for place in runner.places.values())
        for place in again:
            if place.number < spec.proc_nr:
                runner.feed(place, Start())
        for number in range(spec.proc_nr):
            # One of a number that was too high is perhaps still on its way out.
            if runner.places and (number not in runner.places or number >= old.proc_nr):
                place = runner.place(number)
                if wanted_up:
                    runner.feed(place, Start())
        for place in runner.places.values():
            runner.captures.reconfigure(place.number, spec)
        self._drop_surplus()
        self._answer(request, SUCCESS, "")

    def _drop_surplus(self) -> None:
        for place in list(self._runner.places.values()):
            if place.number >= self._runner.spec.proc_nr:
                self._down(place, Stop)

    # the end --------------------------------------------------------------------------------------

    def retire(self, request: int, cause: str = "") -> None:
        """Stop everything; when nothing is left, forget the job."""
        self._retiring = request
        with self._because_of(cause):
            for place in list(self._runner.places.values()):
                self._down(place, Stop)

    # outcomes -------------------------------------------------------------------------------------

    def _wait_for(self, request: int, outcome: str) -> None:
        self._pending.append(_Pending(request, outcome, self._wanted()))

    def _start_failed(self, place: Place, words: str) -> None:
        for pending in self._pending:
            pending.errors.setdefault(place.number, words)

    def _started(self, place: Place) -> None:
        for pending in self._pending:
            pending.started.add(place.number)

    def settle(self) -> bool:
        """Answer what has its outcome; True when the job has come to its end.

        Called at the end of each commit.
        """
        for place in list(self._runner.places.values()):
            if place.number >= self._runner.spec.proc_nr and place.phase in IDLE:
                self._runner.remove(place)
        for pending in list(self._pending):
            if not any(_under_way(place) for place in pending.places):
                self._pending.remove(pending)
                self._answer_pending(pending)
        if self._deferred and not self._is_starting():
            self._go_on()
            self._runner.loop.call_in(0, self._runner.mark_dirty)  # another commit, soon
        # What it has to tell goes with the record: so first all of it must be in the audit log.
        return self._retiring is not None and self._runner.idle() and self._runner.notices.all_told

    def _answer_pending(self, pending: _Pending) -> None:
        for place in pending.places:
            if place.process.desired is Desired.DOWN and place.number not in pending.started:
                pending.errors.setdefault(place.number, "stopped before it was started")
        failed = [f"process {number}: {words}" for number, words in pending.errors.items()]
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            self._answer(pending.request, FAIL, failed[0] + more)
        else:
            self._answer(pending.request, pending.outcome, "")

    def retired(self) -> None:
        """The job is forgotten: answer who asked for that."""
        assert self._retiring is not None
        self._answer(self._retiring, SUCCESS, "")


def _is_up(place: Place) -> bool:
    return place.process.desired is Desired.UP and place.phase in ALIVE


def _under_way(place: Place) -> bool:
    """Whether a start is still on its way to being a program."""
    if place.phase in (Phase.SPAWNING, Phase.CLEARING):
        return True
    return place.phase is Phase.STOPPING and place.process.desired is Desired.UP
