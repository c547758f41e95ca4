"""The lifecycle of one process: THE table. (phase, event) -> (next value, effects); nothing else decides.

``Desired`` (what somebody wants) is apart from the phase (what is). ``-`` cannot happen: a bug, on which
``step`` raises IllegalEvent and the value has not moved.

===================  ===============  ======================  =====================  =====================
phase                Start            Stop (Kill)             Spawned                SpawnFailed
===================  ===============  ======================  =====================  =====================
STOPPED EXITED       SPAWNING, spawn  STOPPED; with remains   -                      -
FATAL                                 STOPPING, signal
SPAWNING             up               down, arm kill          STARTING or RUNNING;   BACKOFF or FATAL;
                                      (kill: SIGKILL)         down: STOPPING         down: STOPPED
CLEARING             already          STOPPING (kill:         -                      -
                                      SIGKILL)
STARTING             up               STOPPING, signal        -                      -
RUNNING              already          STOPPING, signal        -                      -
BACKOFF              SPAWNING, spawn  STOPPED; with remains   -                      -
                                      STOPPING, signal
STOPPING             up (afterwards)  down (kill: SIGKILL)    -                      -
===================  ===============  ======================  =====================  =====================

===================  ========================  ============================  ==========================
phase                LeftBehind                Exited                        TimerFired
===================  ========================  ============================  ==========================
SPAWNING             CLEARING, signal;         -                             kill: SIGKILL all, arm
                     down: STOPPING                                          again
CLEARING             -                         SPAWNING, spawn               kill: SIGKILL all, arm
                                                                             again
STARTING             -                         BACKOFF, arm retry; or        stable: RUNNING
                                               FATAL, or EXITED
RUNNING              -                         by policy: SPAWNING,          -
                                               BACKOFF or EXITED
BACKOFF              -                         -                             retry: SPAWNING, spawn
STOPPING             -                         up: SPAWNING, spawn;          kill: SIGKILL all, arm
                                               down: STOPPED                 again
others               -                         -                             -
===================  ========================  ============================  ==========================

SPAWNING is STARTING without a process yet, CLEARING is what comes before it where the process before has
left something behind, which has to go first: the outside sees STARTING for all three. What an end leaves
behind is looked at only where the next process is to be started: whoever is EXITED, FATAL or in BACKOFF may
have handed over to a successor of its own, and that is left alone.

In every phase the timer that may run is fixed: stable in STARTING, retry in BACKOFF, kill in STOPPING, in
CLEARING and in a SPAWNING that is not wanted any more (its child may hang before its exec); none elsewhere. A
stop has one deadline, armed where it begins, and a further Stop, an exec or an end of the main process does
not put it off.

How often and how soon it is started again: an end before ``start_time_s`` is a failed start;
``restart_times`` of them in a row end in FATAL. An end after RUNNING obeys the restart policy: at once
the first time, then with the same growing delays, since a program that always dies after its
start time would otherwise restart for ever at full speed. Sixty seconds of health forgive all. An
expected end under ``always`` is no crash and is restarted at once, unless it ran under a second.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from taskmaster.core import backoff
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
from taskmaster.core.spec import JobSpec, RestartPolicy
from taskmaster.core.states import Desired, State

#: After a SIGKILL that has not emptied the place (uninterruptible sleep), the next one comes this late.
KILL_AGAIN_S: Final = 2.0
#: A process that ends as expected faster than this is not restarted at once, whatever the policy.
BUSY_LOOP_S: Final = 1.0


class Phase(str, enum.Enum):
    """Where one process stands; finer than State by telling what comes before a live process from it."""

    STOPPED = "STOPPED"
    SPAWNING = "SPAWNING"
    CLEARING = "CLEARING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"

    @property
    def state(self) -> State:
        """The state the outside sees."""
        before_it_runs = self in (Phase.SPAWNING, Phase.CLEARING)
        return State.STARTING if before_it_runs else State(self.value)


#: Phases in which a process may be alive, or what it left behind is being ended.
ALIVE: Final = frozenset(
    {Phase.SPAWNING, Phase.CLEARING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING}
)
#: Phases in which nothing is alive and nothing is to happen.
IDLE: Final = frozenset({Phase.STOPPED, Phase.EXITED, Phase.FATAL})

TIMER_OF: Final = {
    Phase.STARTING: Timer.STABLE,
    Phase.BACKOFF: Timer.RETRY,
    Phase.CLEARING: Timer.KILL,
    Phase.STOPPING: Timer.KILL,
}


class Process(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the table knows of one process.

    ``failures``: failed starts in a row. ``crashes``: ends after RUNNING in a row without an expected
    one or sixty seconds of health between. ``urgent``: a kill came before there was anything to kill.
    """

    phase: Phase = Phase.STOPPED
    desired: Desired = Desired.DOWN
    failures: int = 0
    crashes: int = 0
    urgent: bool = False


class IllegalEvent(Exception):
    """An event that cannot happen in this phase; the value has not moved."""


Outcome = tuple[Process, tuple[Effect, ...]]
Rule = Callable[[Process, Any, JobSpec], Outcome]


def step(process: Process, event: Event, spec: JobSpec) -> Outcome:
    """The value after ``event`` and what must be done now, in order.

    Raises IllegalEvent where the table has ``-``.
    """
    rule = TABLE.get((process.phase, type(event)))
    if rule is None:
        raise IllegalEvent(f"{type(event).__name__} in {process.phase.value}")
    return rule(process, event, spec)


def timer_of(process: Process) -> Timer | None:
    """The timer that runs, which follows from where the process stands."""
    if process.phase is Phase.SPAWNING and (process.urgent or process.desired is Desired.DOWN):
        return Timer.KILL
    return TIMER_OF.get(process.phase)


def forgiven(process: Process) -> Process:
    """The same process with nothing held against it: no failed starts, no crashes."""
    return msgspec.structs.replace(process, failures=0, crashes=0)


def _begin(process: Process, *effects: Effect) -> Outcome:
    return _to(process, Phase.SPAWNING, urgent=False), (*effects, Spawn())


def _to(process: Process, phase: Phase, **changes: Any) -> Process:
    return msgspec.structs.replace(process, phase=phase, **changes)


def _fresh_start(process: Process, event: Start, spec: JobSpec) -> Outcome:
    clean = _to(process, process.phase, desired=Desired.UP, failures=0, crashes=0)
    return _begin(clean, *_disarm(process))


def _disarm(process: Process) -> tuple[Effect, ...]:
    return (Disarm(),) if timer_of(process) is not None else ()


def _want_up(process: Process, event: Start, spec: JobSpec) -> Outcome:
    return _to(process, process.phase, desired=Desired.UP), ()


def _want_spawning(process: Process, event: Start, spec: JobSpec) -> Outcome:
    # What was killed stays so, and is waited for; what was only asked to stop goes on to be a program.
    effects = () if process.urgent else _disarm(process)
    return _to(process, Phase.SPAWNING, desired=Desired.UP), effects


def _stop_idle(process: Process, event: Stop | Kill, spec: JobSpec) -> Outcome:
    if event.remains:
        return _stop_alive(process, event, spec)
    stopped = _to(process, Phase.STOPPED, desired=Desired.DOWN, failures=0, crashes=0)
    return stopped, _disarm(process)


def _stop_alive(process: Process, event: Stop | Kill, spec: JobSpec) -> Outcome:
    down = _to(process, Phase.STOPPING, desired=Desired.DOWN, failures=0, crashes=0, urgent=False)
    if isinstance(event, Kill):
        return down, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))
    return down, (SignalStop(), Arm(Timer.KILL, spec.stop_time_s))


def _stop_spawning(process: Process, event: Stop, spec: JobSpec) -> Outcome:
    # The child may hang before its exec (a directory on a dead network disk): it has a deadline as well.
    armed = timer_of(process) is not None
    effects = () if armed else (Arm(Timer.KILL, spec.stop_time_s),)
    return _to(process, Phase.SPAWNING, desired=Desired.DOWN), effects


def _kill_spawning(process: Process, event: Kill, spec: JobSpec) -> Outcome:
    # Killed now; if the exec comes first all the same, Spawned finds ``urgent`` and kills what came of it.
    down = _to(process, Phase.SPAWNING, desired=Desired.DOWN, urgent=True)
    return down, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))


def _fired_kill_spawning(process: Process, event: TimerFired, spec: JobSpec) -> Outcome:
    _expect(process, event)
    killed = _to(process, Phase.SPAWNING, urgent=True)
    return killed, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))


def _stop_stopping(process: Process, event: Stop, spec: JobSpec) -> Outcome:
    return _to(process, Phase.STOPPING, desired=Desired.DOWN), ()


def _stop_clearing(process: Process, event: Stop, spec: JobSpec) -> Outcome:
    # What is left has had its signal, and its deadline runs.
    down = _to(process, Phase.STOPPING, desired=Desired.DOWN, failures=0, crashes=0)
    return down, ()


def _kill_stopping(process: Process, event: Kill, spec: JobSpec) -> Outcome:
    down = _to(process, Phase.STOPPING, desired=Desired.DOWN)
    return down, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))


def _stop_spawned(process: Process) -> Outcome:
    """Stop what a spawn that is not wanted any more has come to; the stop's deadline runs already."""
    down = _to(process, Phase.STOPPING, failures=0, crashes=0, urgent=False)
    if process.urgent:
        return down, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))
    return down, (SignalStop(),)


def _left_behind(process: Process, event: LeftBehind, spec: JobSpec) -> Outcome:
    if timer_of(process) is not None:
        return _stop_spawned(process)
    return _to(process, Phase.CLEARING), (SignalStop(), Arm(Timer.KILL, spec.stop_time_s))


def _spawned(process: Process, event: Spawned, spec: JobSpec) -> Outcome:
    if timer_of(process) is not None:
        return _stop_spawned(process)
    if spec.start_time_s == 0:
        return _to(process, Phase.RUNNING, failures=0), ()
    return _to(process, Phase.STARTING), (Arm(Timer.STABLE, spec.start_time_s),)


def _spawn_failed(process: Process, event: SpawnFailed, spec: JobSpec) -> Outcome:
    if process.desired is Desired.DOWN:
        return _to(process, Phase.STOPPED, urgent=False), (Disarm(),)
    if process.urgent:
        # Our own SIGKILL, and wanted up since: no failed start.
        return _begin(process, Disarm())
    if event.transient:
        # Counted like a crash: it makes the delays grow, and never gives up.
        return _wait(_to(process, Phase.BACKOFF, crashes=process.crashes + 1), event.jitter)
    return _failed_start(process, spec, event.jitter)


def _failed_start(process: Process, spec: JobSpec, jitter: float) -> Outcome:
    failures = process.failures + 1
    give_up = spec.restart is RestartPolicy.NEVER or 0 <= spec.restart_times <= failures
    if give_up:
        return _to(process, Phase.FATAL, failures=failures, urgent=False), _disarm(process)
    return _wait(_to(process, Phase.BACKOFF, failures=failures), jitter)


def _wait(process: Process, jitter: float) -> Outcome:
    # The first crash after RUNNING costs no delay, so it does not lengthen those that follow either.
    attempt = process.failures + max(process.crashes - 1, 0) - 1
    delay_s = backoff.delay_s(attempt, jitter)
    return _to(process, Phase.BACKOFF, urgent=False), (Arm(Timer.RETRY, delay_s),)


def _exited_starting(process: Process, event: Exited, spec: JobSpec) -> Outcome:
    if spec.restart is RestartPolicy.NEVER and event.normal:
        # A one-shot that was quicker than its start time has done what it was there for.
        return _to(process, Phase.EXITED, failures=0), (Disarm(),)
    return _failed_start(process, spec, event.jitter)


def _exited_running(process: Process, event: Exited, spec: JobSpec) -> Outcome:
    again = spec.restart is RestartPolicy.ALWAYS or (
        spec.restart is RestartPolicy.UNEXPECTED and not event.normal
    )
    if not again:
        return _to(process, Phase.EXITED), ()
    if event.uptime_s >= backoff.HEALTHY_S:
        process = _to(process, process.phase, crashes=0)
    if event.normal and event.uptime_s >= BUSY_LOOP_S:
        return _begin(_to(process, process.phase, crashes=0))
    crashed = _to(process, process.phase, crashes=process.crashes + 1)
    return _begin(crashed) if crashed.crashes == 1 else _wait(crashed, event.jitter)


def _cleared(process: Process, event: Exited, spec: JobSpec) -> Outcome:
    return _begin(process, Disarm())


def _exited_stopping(process: Process, event: Exited, spec: JobSpec) -> Outcome:
    if process.desired is Desired.UP:
        return _begin(process, Disarm())
    return _to(process, Phase.STOPPED), (Disarm(),)


def _fired_stable(process: Process, event: TimerFired, spec: JobSpec) -> Outcome:
    _expect(process, event)
    return _to(process, Phase.RUNNING, failures=0), ()


def _fired_retry(process: Process, event: TimerFired, spec: JobSpec) -> Outcome:
    _expect(process, event)
    return _begin(process)


def _fired_kill(process: Process, event: TimerFired, spec: JobSpec) -> Outcome:
    _expect(process, event)
    return process, (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))


def _expect(process: Process, event: TimerFired) -> None:
    if timer_of(process) is not event.timer:
        raise IllegalEvent(f"timer {event.timer.value} in {process.phase.value}")


TABLE: Final[dict[tuple[Phase, type], Rule]] = {
    **{(phase, Start): _fresh_start for phase in (*IDLE, Phase.BACKOFF)},
    **{(phase, Start): _want_up for phase in ALIVE - {Phase.SPAWNING}},
    (Phase.SPAWNING, Start): _want_spawning,
    **{(phase, kind): _stop_idle for phase in (*IDLE, Phase.BACKOFF) for kind in (Stop, Kill)},
    **{
        (phase, kind): _stop_alive
        for phase in (Phase.STARTING, Phase.RUNNING)
        for kind in (Stop, Kill)
    },
    (Phase.SPAWNING, Stop): _stop_spawning,
    (Phase.SPAWNING, Kill): _kill_spawning,
    (Phase.STOPPING, Stop): _stop_stopping,
    (Phase.STOPPING, Kill): _kill_stopping,
    (Phase.CLEARING, Stop): _stop_clearing,
    (Phase.CLEARING, Kill): _stop_alive,
    (Phase.SPAWNING, Spawned): _spawned,
    (Phase.SPAWNING, SpawnFailed): _spawn_failed,
    (Phase.SPAWNING, LeftBehind): _left_behind,
    (Phase.SPAWNING, TimerFired): _fired_kill_spawning,
    (Phase.CLEARING, Exited): _cleared,
    (Phase.CLEARING, TimerFired): _fired_kill,
    (Phase.STARTING, Exited): _exited_starting,
    (Phase.RUNNING, Exited): _exited_running,
    (Phase.STOPPING, Exited): _exited_stopping,
    (Phase.STARTING, TimerFired): _fired_stable,
    (Phase.BACKOFF, TimerFired): _fired_retry,
    (Phase.STOPPING, TimerFired): _fired_kill,
}
