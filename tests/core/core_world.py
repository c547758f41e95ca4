"""One place for a process, and what may be in it: the world in which the lifecycle table is tried.

A World is a value: the process as the table sees it, what is in its place, the timer that runs. It
knows by itself, without asking the table, which events can happen and which effects make sense.
``walk`` visits every World there is; Host adds a clock, so that a story can be told in seconds.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from taskmaster.core.events import (
    Arm,
    Disarm,
    Effect,
    Event,
    Exited,
    Kill,
    KillAll,
    LeftBehind,
    SignalStop,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    TimerFired,
)
from taskmaster.core.lifecycle import IllegalEvent, Phase, Process, step
from taskmaster.core.spec import JobSpec, RestartPolicy
from taskmaster.core.states import Desired

UP, DOWN = Desired.UP, Desired.DOWN


class Place(str, enum.Enum):
    """What is in the place of one process."""

    EMPTY = "empty"
    FORKED = "forked or about to be, not yet exec'd"
    ALIVE = "alive"
    REMAINS = "only what it had started is alive"


@dataclass(frozen=True)
class Law:
    """What must be so in one phase."""

    places: tuple[Place, ...]
    timer: Timer | None
    desired: tuple[Desired, ...]


#: Architecture, section 4: one process in a place, each timer exactly in its phase.
LAWS = {
    Phase.STOPPED: Law((Place.EMPTY,), None, (DOWN,)),
    Phase.EXITED: Law((Place.EMPTY,), None, (UP,)),
    Phase.FATAL: Law((Place.EMPTY,), None, (UP,)),
    Phase.SPAWNING: Law((Place.FORKED,), None, (UP, DOWN)),
    Phase.CLEARING: Law((Place.REMAINS,), Timer.KILL, (UP,)),
    Phase.STARTING: Law((Place.ALIVE,), Timer.STABLE, (UP,)),
    Phase.RUNNING: Law((Place.ALIVE,), None, (UP,)),
    Phase.BACKOFF: Law((Place.EMPTY,), Timer.RETRY, (UP,)),
    Phase.STOPPING: Law((Place.ALIVE, Place.REMAINS), Timer.KILL, (UP, DOWN)),
}

JITTERS = (0.0, 0.999)
COMMANDS: tuple[Event, ...] = (
    Start(),
    *(kind(remains) for kind in (Stop, Kill) for remains in (False, True)),
)
HAPPENINGS: tuple[Event, ...] = (
    Spawned(),
    LeftBehind(),
    *(SpawnFailed(transient, jitter) for transient in (False, True) for jitter in JITTERS),
    *(
        Exited(normal, uptime_s, jitter)
        for normal in (False, True)
        for uptime_s in (0.0, 0.999, 1.0, 59.999, 60.0)
        for jitter in JITTERS
    ),
    *(TimerFired(timer) for timer in Timer),
)
EVENTS = COMMANDS + HAPPENINGS


def spec(
    restart: RestartPolicy = RestartPolicy.UNEXPECTED,
    restart_times: int = 3,
    start_time_s: float = 1,
) -> JobSpec:
    """A definition that differs from the default in what the table looks at."""
    return JobSpec(
        "web",
        ("/bin/web",),
        restart=restart,
        restart_times=restart_times,
        start_time_s=start_time_s,
        stop_time_s=7.0,
    )


SPECS = [
    spec(restart, times, start_time_s)
    for restart in RestartPolicy
    for times in (0, 3, -1)
    for start_time_s in (0.0, 1.0)
]


def named(of: JobSpec) -> str:
    return f"{of.restart.value},times={of.restart_times},start={of.start_time_s:g}"


@dataclass(frozen=True)
class World:
    """A process, what is in its place, and the timer that runs."""

    process: Process = field(default_factory=Process)
    place: Place = Place.EMPTY
    timer: Timer | None = None

    def can_happen(self, event: Event) -> bool:
        """Whether the world can bring this event about; commands may come at any time."""
        if isinstance(event, (Spawned, SpawnFailed, LeftBehind)):
            return self.place is Place.FORKED
        if isinstance(event, Exited):
            return self.place in (Place.ALIVE, Place.REMAINS)
        if isinstance(event, TimerFired):
            return self.timer is event.timer
        return True

    def after(self, event: Event, of: JobSpec) -> tuple[World, tuple[Effect, ...]]:
        """The world after ``event``, each effect having been possible when it came."""
        place, timer = self.place, self.timer
        told_of_remains = isinstance(event, (Stop, Kill)) and event.remains and place is Place.EMPTY
        if told_of_remains or isinstance(event, LeftBehind):
            place = Place.REMAINS
        elif isinstance(event, Spawned):
            place = Place.ALIVE
        elif isinstance(event, (SpawnFailed, Exited)):
            place = Place.EMPTY
        elif isinstance(event, TimerFired):
            timer = None
        process, effects = step(self.process, event, of)
        for effect in effects:
            if isinstance(effect, Spawn):
                assert place is Place.EMPTY, f"a second process where one is {place.value}"
                place = Place.FORKED
            elif isinstance(effect, SignalStop):
                assert place in (Place.ALIVE, Place.REMAINS), f"a stop signal to {place.value}"
            elif isinstance(effect, KillAll):
                assert place is not Place.EMPTY, "SIGKILL to nobody"
            elif isinstance(effect, Arm):
                assert math.isfinite(effect.delay_s), effect
                assert effect.delay_s > 0, f"{effect} fires at once"
                timer = effect.timer
            elif isinstance(effect, Disarm):
                assert timer is not None, "no timer to disarm"
                timer = None
            else:
                raise AssertionError(f"unknown effect {effect}")
        return World(process, place, timer), effects

    def check(self) -> None:
        """Assert what architecture, section 4, demands of every world."""
        law = LAWS[self.process.phase]
        assert self.place in law.places, f"{self.process.phase.value}, but {self.place.value}"
        timer = law.timer
        unwanted = self.process.urgent or self.process.desired is DOWN
        if self.process.phase is Phase.SPAWNING and unwanted:
            timer = Timer.KILL  # it may hang before its exec
        assert self.timer is timer, f"{self.process.phase.value}, but timer {self.timer}"
        assert self.process.desired in law.desired, self.process
        assert self.process.failures >= 0, self.process
        assert self.process.crashes >= 0, self.process
        assert not self.process.urgent or self.process.phase is Phase.SPAWNING, self.process


@dataclass(frozen=True)
class Move:
    """One event in one world; ``after`` is None where the table refused it."""

    before: World
    event: Event
    after: World | None
    effects: tuple[Effect, ...] = ()


#: Counters over this are visited but not left: nothing but the length of the delay depends on them.
COUNTED = 4


@cache
def walk(of: JobSpec) -> tuple[Move, ...]:
    """Every event in every world that can be reached from the first one, breadth first."""
    first = World()
    seen, ahead, moves = {first}, deque([first]), []
    while ahead:
        before = ahead.popleft()
        for event in EVENTS:
            try:
                after, effects = before.after(event, of)
            except IllegalEvent:
                moves.append(Move(before, event, None))
                continue
            moves.append(Move(before, event, after, effects))
            counted = max(after.process.failures, after.process.crashes) <= COUNTED
            # What cannot happen is tried, not followed: a table that accepts it is wrong.
            if after not in seen and counted and before.can_happen(event):
                seen.add(after)
                ahead.append(after)
    return tuple(moves)


def worlds(of: JobSpec) -> Iterator[World]:
    """Every reachable world."""
    return iter(dict.fromkeys(move.before for move in walk(of)))


class Host:
    """A fake clock and a fake process around a World; every step is checked."""

    def __init__(self, of: JobSpec, jitter: float = 0.5) -> None:
        self.spec = of
        self.jitter = jitter
        self.world = World()
        self.now = 0.0
        self.deadline = math.inf
        self.exec_at = 0.0
        self.spawned_at: list[float] = []
        self.effects: tuple[Effect, ...] = ()

    @property
    def process(self) -> Process:
        return self.world.process

    @property
    def phase(self) -> Phase:
        return self.world.process.phase

    @property
    def wait_s(self) -> float:
        """Seconds until the timer that runs is over."""
        return self.deadline - self.now

    def tell(self, *events: Event) -> None:
        """Let events happen now, one after the other."""
        for event in events:
            assert self.world.can_happen(event), f"{event} in {self.world}"
            self.world, self.effects = self.world.after(event, self.spec)
            self.world.check()
            if isinstance(event, Spawned):
                self.exec_at = self.now
            elif isinstance(event, LeftBehind):
                self.spawned_at.pop()  # nothing was forked
            for effect in self.effects:
                if isinstance(effect, Spawn):
                    self.spawned_at.append(self.now)
                elif isinstance(effect, Arm):
                    self.deadline = self.now + effect.delay_s
            if self.world.timer is None:
                self.deadline = math.inf

    def advance(self, seconds: float) -> None:
        """Let time pass, and the timers that are over in it fire."""
        end = self.now + seconds
        while self.deadline <= end:
            self.fire()
        self.now = end

    def fire(self) -> None:
        """Let time pass until the timer that runs is over."""
        timer = self.world.timer
        assert timer is not None
        self.now = max(self.now, self.deadline)
        self.tell(TimerFired(timer))

    def run(self) -> None:
        """From wherever it is wanted up, to RUNNING."""
        if self.phase is Phase.BACKOFF:
            self.fire()
        elif self.place_is_empty():
            self.tell(Start())
        if self.phase is Phase.SPAWNING:
            self.tell(Spawned())
        if self.phase is Phase.STARTING:
            self.fire()
        assert self.phase is Phase.RUNNING, self.phase

    def end(self, normal: bool = False, after_s: float = 0.0) -> None:
        """The process ends by itself, so long after its exec or now, whichever is later."""
        self.advance(max(0.0, self.exec_at + after_s - self.now))
        # Not self.now - self.exec_at: the subtraction would make 59.99… of 60.
        self.tell(Exited(normal, max(after_s, self.now - self.exec_at), self.jitter))

    def fail(self, transient: bool = False) -> None:
        """From BACKOFF or SPAWNING, an attempt that does not get as far as exec."""
        if self.phase is Phase.BACKOFF:
            self.fire()
        self.tell(SpawnFailed(transient, self.jitter))

    def place_is_empty(self) -> bool:
        return self.world.place is Place.EMPTY

    def settle(self) -> None:
        """Cooperate: what is forked execs, what was signalled ends."""
        for _ in range(2):
            if self.world.place is Place.FORKED:
                self.tell(Spawned())
            elif not self.place_is_empty():
                self.tell(Exited(True, self.now - self.exec_at, self.jitter))
