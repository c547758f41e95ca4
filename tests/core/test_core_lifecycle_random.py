"""The lifecycle in a fake host: a clock, a process that does as it likes, commands at any moment."""

from core_world import Host, Place, spec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskmaster.core.backoff import CAP_S
from taskmaster.core.events import (
    Arm,
    Kill,
    KillAll,
    LeftBehind,
    SignalStop,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
)
from taskmaster.core.lifecycle import KILL_AGAIN_S, Phase
from taskmaster.core.spec import RestartPolicy

#: By itself, at most every second attempt comes at once; the others wait at least so long.
LEAST_WAIT_S = 0.8


class Life(RuleBasedStateMachine):
    """Random lives; Host asserts the laws at every step, the rest is asserted here."""

    @initialize(
        restart=st.sampled_from(RestartPolicy),
        times=st.sampled_from([-1, 0, 1, 3]),
        start_time_s=st.sampled_from([0.0, 0.5, 1.0, 90.0]),
    )
    def born(self, restart, times, start_time_s):
        self.host = Host(spec(restart, times, start_time_s))
        self.alone_since = 0  # how many spawns there had been when somebody last commanded
        self.failed_in_a_row = 0
        self.signalled = False

    def tell(self, event):
        self.host.tell(event)
        self.look()

    def look(self):
        """Keep books of one step, apart from the table's own."""
        host = self.host
        if any(isinstance(effect, (SignalStop, KillAll)) for effect in host.effects):
            self.signalled = True
        if host.place_is_empty() or host.phase in (Phase.SPAWNING, Phase.STARTING):
            self.signalled = False
        if host.phase in (Phase.RUNNING, Phase.STOPPING, Phase.STOPPED):
            self.failed_in_a_row = 0
        for effect in host.effects:
            if isinstance(effect, Arm):
                assert 0 < effect.delay_s <= max(CAP_S, host.spec.start_time_s)

    def command(self, event):
        if isinstance(event, Start) and self.host.place_is_empty():
            self.failed_in_a_row = 0
        self.tell(event)
        self.alone_since = max(0, len(self.host.spawned_at) - 1)

    @rule(event=st.sampled_from([Start(), Start(), Stop(), Stop(True), Kill(), Kill(True)]))
    def somebody_commands(self, event):
        self.command(event)

    @precondition(lambda self: self.host.world.place is Place.FORKED)
    @rule()
    def exec_works(self):
        self.tell(Spawned())

    @precondition(lambda self: self.host.world.place is Place.FORKED)
    @rule(transient=st.booleans(), jitter=st.floats(0, 1, exclude_max=True))
    def exec_fails(self, transient, jitter):
        self.failed_in_a_row += not transient
        self.tell(SpawnFailed(transient, jitter))

    @precondition(lambda self: self.host.world.place is Place.FORKED)
    @rule()
    def something_is_left_behind(self):
        self.tell(LeftBehind())

    @precondition(lambda self: self.host.world.place in (Place.ALIVE, Place.REMAINS))
    @rule(normal=st.booleans(), jitter=st.floats(0, 1, exclude_max=True))
    def it_ends(self, normal, jitter):
        self.failed_in_a_row += self.host.phase is Phase.STARTING
        self.host.jitter = jitter
        self.host.end(normal)
        self.look()

    @precondition(lambda self: self.host.world.timer is not None)
    @rule()
    def the_timer_fires(self):
        self.host.fire()
        self.look()

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 1.5, 10.0]))
    def time_passes(self, seconds):
        # Never over a deadline: the loop fires a timer when it is due, so that is a step of its own.
        self.host.now = min(self.host.now + seconds, self.host.deadline)

    @invariant()
    def no_busy_loop(self):
        spawned_at = self.host.spawned_at[self.alone_since :]
        for first, third in zip(spawned_at, spawned_at[2:], strict=False):
            assert third - first >= LEAST_WAIT_S - 1e-6

    @invariant()
    def fatal_is_earned(self):
        if self.host.phase is Phase.FATAL:
            of = self.host.spec
            assert (
                of.restart is RestartPolicy.NEVER or 0 <= of.restart_times <= self.failed_in_a_row
            )

    @invariant()
    def stopping_was_told(self):
        if self.host.phase in (Phase.STOPPING, Phase.CLEARING):
            assert self.signalled
            longest_s = max(self.host.spec.stop_time_s, KILL_AGAIN_S)
            assert self.host.wait_s <= longest_s + 1e-6

    def teardown(self):
        if hasattr(self, "host"):
            self.command(Stop())
            self.host.settle()
            assert self.host.phase is Phase.STOPPED
            spawns = len(self.host.spawned_at)
            self.host.advance(1e6)
            assert (self.host.phase, len(self.host.spawned_at)) == (Phase.STOPPED, spawns)


class TestLife(Life.TestCase):
    """No sequence of commands and accidents breaks a law."""

    settings = settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)
