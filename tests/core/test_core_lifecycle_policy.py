"""The policy in sentences: how often and how soon a process is started again, and how it is stopped."""

import math

import pytest
from core_world import Host, Place, spec

from taskmaster.core import backoff
from taskmaster.core.events import (
    Arm,
    Disarm,
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
)
from taskmaster.core.lifecycle import Phase, forgiven
from taskmaster.core.spec import RestartPolicy
from taskmaster.core.states import Desired

NEVER, UNEXPECTED, ALWAYS = RestartPolicy
#: Seconds between one SIGKILL and the next, where the first has not emptied the place.
KILL_AGAIN_S = 2.0
#: The delays of repeated attempts, seconds, at the middle of the jitter.
DOUBLING = [1, 2, 4, 8, 16, 32, 60, 60, 60]

each_policy = pytest.mark.parametrize("restart", RestartPolicy)
each_jitter = pytest.mark.parametrize(
    ("jitter", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)]
)


def waits(host, attempt, times):
    """Seconds that the host waits after each of ``times`` attempts; 0 where it spawns at once."""
    seconds = []
    for _ in range(times):
        attempt()
        if host.phase is Phase.SPAWNING:
            seconds.append(0.0)
            continue
        assert host.phase is Phase.BACKOFF
        [arm] = host.effects
        assert arm.timer is Timer.RETRY
        seconds.append(arm.delay_s)
        host.fire()
    return seconds


def jittered(delays, factor):
    return pytest.approx([min(60, delay * factor) for delay in delays], rel=1e-5)


@pytest.mark.parametrize("restart", [UNEXPECTED, ALWAYS])
@pytest.mark.parametrize("start_time_s", [0, 1])
@each_jitter
def test_crashes_after_running(restart, start_time_s, jitter, factor):
    """At once the first time, then 1 s doubling to 60 s with jitter, and never FATAL."""
    host = Host(spec(restart, restart_times=0, start_time_s=start_time_s), jitter)

    def crash():
        host.run()
        host.end(after_s=start_time_s + 5)

    assert waits(host, crash, 10) == jittered([0, *DOUBLING], factor)


@pytest.mark.parametrize(("uptime_s", "next_waits"), [(60.0, [0, 1, 2]), (59.9, [16, 32, 60])])
def test_sixty_seconds_of_health_forgive_all(uptime_s, next_waits):
    """After 60 s up the next crash is a first one again; a moment before, it is not."""
    host = Host(spec())

    def crash(after_s=5.0):
        host.run()
        host.end(after_s=after_s)

    assert waits(host, crash, 5) == [0, 1, 2, 4, 8]
    assert waits(host, lambda: crash(uptime_s), 1) == next_waits[:1]
    assert waits(host, crash, 2) == next_waits[1:]


def test_health_forgives_an_expected_end():
    """An expected end after 60 s up clears the crashes of before as well."""
    host = Host(spec(ALWAYS))
    for _ in range(4):
        host.run()
        host.end(after_s=5)
    host.run()
    host.end(normal=True, after_s=60)
    assert (host.phase, host.process.crashes) == (Phase.SPAWNING, 0)


@pytest.mark.parametrize(("uptime_s", "next_waits"), [(1.0, [0, 0, 1]), (0.9, [16, 32, 60])])
def test_an_expected_end_breaks_the_row(uptime_s, next_waits):
    """What ends as expected and is started again is well, so the next crash is a first one; no busy loop is."""
    host = Host(spec(ALWAYS, start_time_s=0))

    def end(normal=False, after_s=5.0):
        host.run()
        host.end(normal=normal, after_s=after_s)

    assert waits(host, end, 5) == [0, 1, 2, 4, 8]
    assert waits(host, lambda: end(True, uptime_s), 1) == next_waits[:1]
    assert waits(host, end, 2) == next_waits[1:]


@pytest.mark.parametrize(("times", "delays"), [(0, []), (1, []), (2, [1]), (3, [1, 2])])
@pytest.mark.parametrize("restart", [UNEXPECTED, ALWAYS])
@pytest.mark.parametrize("way", ["ends too soon", "cannot be exec'd", "ends as expected, too soon"])
def test_failed_starts_end_in_fatal(restart, times, delays, way):
    """``restart_times`` failed starts in a row give up, whichever way each failed; none runs before."""
    host = Host(spec(restart, times))

    def attempt():
        if way == "cannot be exec'd":
            host.tell(SpawnFailed(jitter=0.5))
        else:
            host.tell(Spawned())
            host.end(normal=way.startswith("ends as"), after_s=0.5)

    host.tell(Start())
    assert waits(host, attempt, len(delays)) == delays
    attempt()
    assert (host.phase, host.process.desired) == (Phase.FATAL, Desired.UP)
    assert host.process.failures == max(times, 1)
    assert len(host.spawned_at) == len(delays) + 1
    host.advance(1e6)
    assert host.phase is Phase.FATAL


@pytest.mark.parametrize("start_time_s", [0, 1])
def test_a_success_breaks_the_row(start_time_s):
    """Failed starts are counted in a row: two, a time in RUNNING, two more are no three."""
    host = Host(spec(restart_times=3, start_time_s=start_time_s))

    def fail_twice():
        for _ in range(2):
            host.fail()
            assert host.phase is Phase.BACKOFF
            host.fire()

    host.tell(Start())
    fail_twice()
    host.run()
    assert host.process.failures == 0
    host.end(after_s=5)
    fail_twice()
    assert host.phase is Phase.SPAWNING


def test_minus_one_never_gives_up():
    """With -1 it is tried for ever, a minute apart in the end."""
    host = Host(spec(restart_times=-1))
    host.tell(Start())
    seconds = waits(host, host.fail, 3000)
    assert seconds[:9] == DOUBLING
    assert set(seconds[9:]) == {60.0}


@each_policy
@pytest.mark.parametrize("times", [0, 3, -1])
def test_transient_failures_never_give_up(restart, times):
    """For want of memory, descriptors or process numbers it waits, under every policy, up to 60 s."""
    host = Host(spec(restart, times))
    host.tell(Start())
    seconds = waits(host, lambda: host.fail(transient=True), 200)
    assert seconds == sorted(seconds)
    assert seconds[:4] == [1, 1, 2, 4]
    assert set(seconds[8:]) == {60.0}
    assert host.process.failures == 0
    host.fail()  # the row of failed starts begins here, whatever the host lacked before
    gives_up = restart is NEVER or times == 0
    assert host.phase is (Phase.FATAL if gives_up else Phase.BACKOFF)


def test_a_transient_failure_does_not_break_the_row():
    """Failed starts with a transient failure between them are still in a row."""
    host = Host(spec(restart_times=3))
    host.tell(Start())
    for transient in (False, True, False, True):
        host.fail(transient)
        assert host.phase is Phase.BACKOFF
    host.fail()
    assert host.phase is Phase.FATAL


END_OF_A_RUNNING_ONE = [
    # restart, expected?, seconds up, the phase that follows, counted as a crash
    (NEVER, True, 5, Phase.EXITED, 0),
    (NEVER, False, 5, Phase.EXITED, 0),
    (NEVER, False, 100, Phase.EXITED, 0),
    (UNEXPECTED, True, 5, Phase.EXITED, 0),
    (UNEXPECTED, False, 5, Phase.SPAWNING, 1),
    (ALWAYS, True, 5, Phase.SPAWNING, 0),
    (ALWAYS, True, 1.0, Phase.SPAWNING, 0),
    (ALWAYS, True, 0.999, Phase.SPAWNING, 1),
    (ALWAYS, False, 5, Phase.SPAWNING, 1),
]


@pytest.mark.parametrize(
    ("restart", "normal", "uptime_s", "phase", "crashes"), END_OF_A_RUNNING_ONE
)
def test_restart_policy(restart, normal, uptime_s, phase, crashes):
    """What follows the first end of a running process, by policy and by how it ended."""
    host = Host(spec(restart, start_time_s=0))
    host.run()
    host.end(normal, uptime_s)
    assert (host.phase, host.process.crashes) == (phase, crashes)
    assert host.process.desired is Desired.UP
    if phase is Phase.EXITED:
        assert host.effects == ()


def test_an_expected_end_under_always_costs_no_delay():
    """A program that ends as expected every few seconds is started again at once, however often."""
    host = Host(spec(ALWAYS))

    def end():
        host.run()
        host.end(normal=True, after_s=2)

    assert waits(host, end, 100) == [0.0] * 100


def test_an_expected_end_in_a_busy_loop_is_slowed_down():
    """One that ends as expected at once would use a processor up: it is delayed like a crash."""
    host = Host(spec(ALWAYS, start_time_s=0))

    def end():
        host.run()
        host.end(normal=True, after_s=0.01)

    assert waits(host, end, 5) == [0, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("normal", "phase"),
    [(True, Phase.EXITED), (False, Phase.FATAL)],
    ids=["expected", "unexpected"],
)
def test_one_shot(normal, phase):
    """Under ``never``, a quick end as expected is EXITED and done; another is a failed start and FATAL."""
    host = Host(spec(NEVER))
    host.tell(Start(), Spawned())
    host.end(normal, after_s=0.1)
    assert (host.phase, host.effects) == (phase, (Disarm(),))
    assert host.process.failures == (0 if normal else 1)
    assert host.wait_s == math.inf


def test_start_time():
    """It is STARTING for exactly its start time, then RUNNING; with a start time of 0 at once."""
    host = Host(spec(start_time_s=2.5))
    host.tell(Start(), Spawned())
    assert (host.phase, host.effects) == (Phase.STARTING, (Arm(Timer.STABLE, 2.5),))
    host.advance(2.4999)
    assert host.phase is Phase.STARTING
    host.advance(0.0001)
    assert (host.phase, host.effects) == (Phase.RUNNING, ())
    host = Host(spec(start_time_s=0))
    host.tell(Start(), Spawned())
    assert (host.phase, host.effects) == (Phase.RUNNING, ())


def test_stop_then_kill_again_and_again():
    """Stop signal, SIGKILL after the stop time, and again every two seconds until the place is empty."""
    host = Host(spec())
    host.run()
    host.tell(Stop())
    assert host.phase is Phase.STOPPING
    assert host.effects == (SignalStop(), Arm(Timer.KILL, host.spec.stop_time_s))
    began = host.now
    for expected in (7.0, 7.0 + KILL_AGAIN_S, 7.0 + 2 * KILL_AGAIN_S):
        host.fire()
        assert host.now == pytest.approx(began + expected)
        assert host.effects == (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))
        assert host.phase is Phase.STOPPING
    host.end()
    assert (host.phase, host.effects, host.wait_s) == (Phase.STOPPED, (Disarm(),), math.inf)


def test_a_second_stop_does_not_put_the_kill_off():
    """Stop of a stopping process neither signals again nor gives it more time; Kill does not wait."""
    host = Host(spec())
    host.run()
    host.tell(Stop())
    due = host.deadline
    host.advance(3)
    host.tell(Stop(), Start(), Stop())
    assert (host.effects, host.deadline) == ((), due)
    host.tell(Kill())
    assert host.effects == (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))
    assert host.wait_s == KILL_AGAIN_S


def test_start_while_stopping():
    """It is started again when the old one is gone, not before; a Stop in between revokes it."""
    host = Host(spec())
    host.run()
    host.tell(Stop(), Start())
    assert (host.phase, host.process.desired, host.effects) == (Phase.STOPPING, Desired.UP, ())
    host.fire()  # also while its end has to be forced
    host.end()
    assert (host.phase, host.effects) == (Phase.SPAWNING, (Disarm(), Spawn()))
    host.tell(Spawned(), Stop(), Start(), Stop())
    host.end()
    assert host.phase is Phase.STOPPED
    assert len(host.spawned_at) == 2


@pytest.mark.parametrize("command", [Stop(remains=True), Kill(remains=True)], ids=repr)
@pytest.mark.parametrize("phase", [Phase.STOPPED, Phase.EXITED, Phase.FATAL, Phase.BACKOFF])
def test_what_a_process_left_behind_is_stopped(phase, command):
    """With nothing but what it had started alive, it is STOPPING until that is gone as well."""
    host = Host(spec(UNEXPECTED, restart_times=-1 if phase is Phase.BACKOFF else 0, start_time_s=0))
    if phase is Phase.EXITED:
        host.run()
        host.end(normal=True)
    elif phase is not Phase.STOPPED:
        host.tell(Start())
        host.fail()
    assert host.phase is phase
    host.tell(command)
    assert (host.phase, host.process.desired) == (Phase.STOPPING, Desired.DOWN)
    assert host.effects[0] == (KillAll() if isinstance(command, Kill) else SignalStop())
    host.end()
    assert (host.phase, host.world.place) == (Phase.STOPPED, Place.EMPTY)


KILLED = (KillAll(), Arm(Timer.KILL, KILL_AGAIN_S))


@pytest.mark.parametrize("come_to", [Spawned(), LeftBehind()], ids=repr)
@pytest.mark.parametrize(
    ("commands", "effects"),
    [
        ([Stop()], (SignalStop(),)),
        ([Kill()], KILLED),
        ([Kill(), Stop()], KILLED),
        ([Stop(), Kill()], KILLED),
    ],
    ids=repr,
)
def test_stop_before_exec(commands, effects, come_to):
    """A stop during a spawn waits for its outcome: the process is signalled as soon as there is one."""
    host = Host(spec())
    host.tell(Start(), *commands)
    assert (host.phase, host.process.desired) == (Phase.SPAWNING, Desired.DOWN)
    host.tell(come_to)
    assert (host.phase, host.effects) == (Phase.STOPPING, effects)
    host = Host(spec())
    host.tell(Start(), *commands, SpawnFailed())
    assert (host.phase, host.effects) == (Phase.STOPPED, (Disarm(),))


def test_a_spawn_that_hangs_has_a_deadline():
    """A stop ends a child that hangs before its exec at stopTime; what comes of it has no time of its own."""
    host = Host(spec())
    host.tell(Start(), Stop())
    assert (host.effects, host.wait_s) == ((Arm(Timer.KILL, 7.0),), 7.0)
    host.advance(3)
    host.tell(Stop())
    assert (host.effects, host.wait_s) == ((), 4.0)
    host.fire()
    assert (host.phase, host.now, host.effects) == (Phase.SPAWNING, 7.0, KILLED)
    host.fire()
    assert host.effects == KILLED
    host.tell(SpawnFailed())
    assert (host.phase, host.process.failures, host.wait_s) == (Phase.STOPPED, 0, math.inf)

    host = Host(spec())
    host.tell(Start(), Stop())
    host.advance(5)
    host.tell(Spawned())
    assert (host.phase, host.effects, host.wait_s) == (Phase.STOPPING, (SignalStop(),), 2.0)


def test_a_stop_that_is_taken_back_before_exec():
    """Wanted up again before anything was killed, it becomes a program as if nothing had been."""
    host = Host(spec())
    host.tell(Start(), Stop(), Start())
    assert (host.phase, host.effects, host.wait_s) == (Phase.SPAWNING, (Disarm(),), math.inf)
    host.tell(Spawned())
    assert host.phase is Phase.STARTING


def left(host):
    """It crashes, and something that it had started lives where the next is to be started."""
    host.run()
    host.end()
    host.tell(LeftBehind())
    assert host.phase is Phase.CLEARING


def test_what_a_crash_leaves_behind_goes_first():
    """The stop signal, stopTime, SIGKILL again and again; the next process comes when nothing is left."""
    host = Host(spec(ALWAYS))
    left(host)
    assert host.effects == (SignalStop(), Arm(Timer.KILL, 7.0))
    before, crashes = len(host.spawned_at), host.process.crashes
    for _ in range(2):
        host.fire()
        assert (host.phase, host.effects) == (Phase.CLEARING, KILLED)
    assert len(host.spawned_at) == before
    host.tell(Exited(True, 0.0))
    assert (host.phase, host.effects) == (Phase.SPAWNING, (Disarm(), Spawn()))
    # Neither forgiven nor held against it.
    assert (host.process.crashes, host.process.failures) == (crashes, 0)


def test_crashes_that_leave_something_behind_are_slowed_down_as_any():
    """A quick crash loop: each round clears before it starts, and the pauses grow all the same."""
    host = Host(spec(ALWAYS, start_time_s=0))

    def crash():
        if host.phase is Phase.SPAWNING:
            host.tell(LeftBehind(), Exited(True, 0.0))
        host.run()
        host.end()

    assert waits(host, crash, 5) == [0, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("command", "effects", "wait_s"), [(Stop(), (), 4.0), (Kill(), KILLED, KILL_AGAIN_S)]
)
def test_a_command_while_it_is_cleared_away(command, effects, wait_s):
    """A stop lets what had its signal have its time, and signals nobody twice; a kill does not wait."""
    host = Host(spec(ALWAYS))
    left(host)
    host.advance(3)
    host.tell(Start())
    assert (host.phase, host.effects) == (Phase.CLEARING, ())
    host.tell(command)
    assert (host.phase, host.process.desired) == (Phase.STOPPING, Desired.DOWN)
    assert (host.effects, host.wait_s) == (effects, wait_s)
    host.tell(Start(), Exited(True, 0.0))
    assert (host.phase, host.process.crashes) == (Phase.SPAWNING, 0)
    left(host)
    host.tell(command, Exited(True, 0.0))
    assert (host.phase, host.wait_s) == (Phase.STOPPED, math.inf)


@each_policy
@pytest.mark.parametrize(
    "outcome",
    [(SpawnFailed(),), (Spawned(), Exited(False, 0.0))],
    ids=["before exec", "after exec"],
)
def test_start_after_a_kill_that_hits_the_spawn(restart, outcome):
    """Killed before its exec and wanted up again: our own SIGKILL is no failed start, it is spawned anew."""
    host = Host(spec(restart))
    host.tell(Start(), Kill(), Start(), *outcome)
    assert (host.phase, host.process.failures) == (Phase.SPAWNING, 0)
    assert len(host.spawned_at) == 2
    host.tell(Spawned())
    assert host.phase is Phase.STARTING  # this one is not killed as well


def test_an_administrator_s_start_is_a_clean_slate():
    """Start out of BACKOFF and FATAL forgets failures and crashes, and does not wait."""
    host = Host(spec(restart_times=3))
    for _ in range(3):
        host.run()
        host.end(after_s=5)
    host.fail()
    assert (host.process.failures, host.process.crashes, host.phase) == (1, 3, Phase.BACKOFF)
    host.tell(Start())
    assert host.effects == (Disarm(), Spawn())
    assert (host.process.failures, host.process.crashes) == (0, 0)
    for _ in range(3):
        host.fail()
    assert host.phase is Phase.FATAL
    host.tell(Start())
    assert host.effects == (Spawn(),)
    host.fail()
    assert (host.phase, host.wait_s) == (Phase.BACKOFF, pytest.approx(backoff.FIRST_S))


def test_forgiven():
    """Forgiving clears what is held against a process and moves nothing else."""
    host = Host(spec(restart_times=-1))
    for _ in range(3):
        host.run()
        host.end(after_s=5)
    host.fail()
    process = forgiven(host.process)
    assert (process.failures, process.crashes) == (0, 0)
    assert (process.phase, process.desired, process.urgent) == (Phase.BACKOFF, Desired.UP, False)


def test_start_of_what_runs_changes_nothing():
    """Start of a process that is up, or on its way, is redundant: same value, nothing to do."""
    host = Host(spec())
    for event in (Start(), Spawned(), None):
        host.tell(event) if event else host.fire()
        before = host.world
        host.tell(Start())
        assert (host.world, host.effects) == (before, ())


def test_what_waits_or_has_ended_is_stopped_at_once():
    """Stop without anything alive is STOPPED in the same step, without a timer left."""
    host = Host(spec())
    host.tell(Start())
    host.fail()
    host.tell(Stop())
    assert (host.phase, host.effects, host.wait_s) == (Phase.STOPPED, (Disarm(),), math.inf)
    host.tell(Stop())
    assert (host.phase, host.effects) == (Phase.STOPPED, ())
    host.advance(1e6)
    assert len(host.spawned_at) == 1
