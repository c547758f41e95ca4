"""Upgrade in place: the daemon becomes its new program, with the same pid, and nobody is turned away.

In steps, each of which can fail and leave the old daemon as it was:

1. try: the new program makes a start of itself that writes nothing, with what is to be handed over in its
   hands, and says what fails.
2. drain: what was read is answered. Whoever only reads is served meanwhile; what would change something stays
   unread, for the new program. After ``_DRAIN_S`` nobody is waited for: what is under way goes on by itself,
   and a client that does not take its replies gets what it has, and an end.
3. become: listeners, clients and lock are put into a memory file; exec.

What comes after the exec, and what happens if that fails, is in ``fallback``. Which step may follow which, and
what an order to end does to each, is decided in ``core.lifetime`` alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from taskmaster import procfs
from taskmaster.audit import Event
from taskmaster.control import handover, launch
from taskmaster.control.exchange import Exchange
from taskmaster.control.lifetime.arrival import could_not_start
from taskmaster.control.lifetime.handing import Handing
from taskmaster.control.lifetime.life import Life
from taskmaster.control.lifetime.parts import Parts
from taskmaster.control.supervisor import Supervisor
from taskmaster.core import lifetime
from taskmaster.core.lifetime import Phase
from taskmaster.eventloop import EventLoop, Timer, Watch
from taskmaster.wire import replies

#: How long the new program may take to say whether it could start.
_TRIAL_S: Final = 30.0
#: How long commands that were read before may take to be answered; who still waits then is told why.
_DRAIN_S: Final = 5.0
#: How much of what it says is kept, the end of it; and all that a pipe holds.
_SAID_BYTES: Final = 4096
_PIPE_BYTES: Final = 65536
_NOT_BEGUN: Final = "taskmasterd is being upgraded; this was not begun. Ask again."
_GOES_ON: Final = "taskmasterd is being upgraded; what was begun goes on, status tells how far."


class Upgrade:
    """One daemon's way to its new program, whose command line is ``program``."""

    def __init__(
        self, parts: Parts, life: Life, handing: Handing, program: tuple[str, ...]
    ) -> None:
        self._loop = parts.loop
        self._supervisor = parts.supervisor
        self._dispatcher = parts.dispatcher
        self._audit = parts.premises.audit
        self._removing = parts.removing
        self._say = parts.say
        self._life = life
        self._handing = handing
        self._program = program
        self._asking: Exchange | None = None
        self._exchange: Exchange | None = None
        self._trial: _Trial | None = None
        self._why = ""
        self._drains: Timer | None = None

    def ask(self, exchange: Exchange) -> None:
        """The command ``upgrade``."""
        self._asking = exchange
        self._life.happens(lifetime.Event.UPGRADE_ASKED)

    def refuse(self) -> None:
        """Nothing comes of the one just asked for."""
        assert self._asking is not None
        over = self._life.is_over
        text = "taskmasterd is stopping." if over else "An upgrade is under way already."
        self._asking.done(replies.fail(text))

    # 1: try ---------------------------------------------------------------------------------------

    def try_(self) -> None:
        """Start the new program on trial."""
        self._exchange, self._asking = self._asking, None
        handed = -1
        try:
            handed = handover.save(self._handing.describe())
            trial = launch.trial([*self._program, "--check"], handed)
        except OSError as error:
            self._fails(f"it cannot be executed: {error.strerror}")
            return
        finally:
            if handed >= 0:
                os.close(handed)
        self._trial = _Trial(self._loop, self._supervisor, trial, self._tried)

    def _tried(self, status: int | None, said: str) -> None:
        self._trial = None
        if self._life.phase is not Phase.TRYING:
            return
        if status == 0:
            self._life.happens(lifetime.Event.TRIAL_PASSED)
        else:
            self._fails(said or f"it ended with wait status {status}")

    # 2: drain -------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Begin nothing more that changes something."""
        self._dispatcher.hold_all()
        self._drains = self._loop.call_in(_DRAIN_S, lambda: None)

    def turn_over(self) -> None:
        """Go on as soon as all that was read is answered. Call at the end of each turn, after the replies."""
        if self._drains is None or self._life.phase is not Phase.DRAINING:
            return
        assert self._exchange is not None
        event = lifetime.Event.QUIET
        if not self._dispatcher.quiet(self._exchange):
            if self._drains.armed:
                return
            event = lifetime.Event.DRAINED_LATE
        # A signal between two programs would meet neither's handler: it waits for the new one's. One that has
        # come already is served first, since it may be an order to end.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if not self._loop.signals_wait():
                self._life.happens(event)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def cut_short(self) -> None:
        """Nobody is waited for any longer."""
        assert self._exchange is not None
        self._removing.keep()  # before anybody is told that it goes on
        for job in list(self._supervisor.jobs.values()):
            job.refuse_all(_NOT_BEGUN)
        self._dispatcher.answer_rest(
            self._exchange, replies.fail(_GOES_ON), replies.fail(_NOT_BEGUN)
        )
        self._dispatcher.answer_all()

    # 3: become ------------------------------------------------------------------------------------

    def become(self) -> None:
        """Let go of everything and execute the new program; signals are blocked."""
        exchange = self._exchange
        assert exchange is not None
        if not os.access(self._program[0], os.X_OK):
            # What can be known before is: then nothing has to be taken back.
            self._fails(f"it cannot be executed: {self._program[0]} is no program")
            return
        handed, file = self._handing.collect(exchange), -1
        try:
            file = handover.save(handed)
            handover.inheritable(handed, True)
            environment = {**os.environ, handover.VARIABLE: str(file)}
            os.execve(self._program[0], self._program, environment)
        except OSError as error:
            if file >= 0:
                os.close(file)
            handover.inheritable(handed, False)
            why = f"it cannot be executed: {error.strerror}"
            self._handing.take_over(handed, replies.fail(could_not_start(why)))
            self._exchange = None
            self._record(exchange, why)
            self._fails(why)

    def _record(self, exchange: Exchange, why: str) -> None:
        """Its connection was let go of and has the reply already; the log has not."""
        exchange.reply = replies.fail(could_not_start(why))
        self._dispatcher.complete(exchange)

    # no new program -------------------------------------------------------------------------------

    def _fails(self, why: str) -> None:
        self._why = why
        self._life.happens(lifetime.Event.UPGRADE_FAILED)

    def go_on(self) -> None:
        """The new program cannot start: say so, and go on."""
        self._audit.record(Event.DAEMON_UPGRADE_FAILED, pid=os.getpid(), error=self._why)
        self._say.error(could_not_start(self._why))
        self._over(could_not_start(self._why))

    def cancel(self) -> None:
        """The daemon is to end instead."""
        why = "taskmasterd was told to end; the upgrade is cancelled"
        self._audit.record(Event.DAEMON_UPGRADE_FAILED, pid=os.getpid(), error=why)
        if self._trial is not None:
            self._trial.kill()
        self._over(f"{why}.")

    def _over(self, text: str) -> None:
        exchange, self._exchange = self._exchange, None
        if self._drains is not None:
            self._drains.cancel()
            self._drains = None
        if self._dispatcher.held:
            self._dispatcher.release_all()
        if exchange is not None:
            exchange.done(replies.fail(text))


class _Trial:
    """The new program on trial. ``ended`` is told its wait status and its last line."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        trial: launch.Trial,
        ended: Callable[[int | None, str], None],
    ) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._trial = trial
        self._ended = ended
        self._said = b""
        found = procfs.stat(trial.pid)
        self._start = found.start if found else 0
        supervisor.orphans.not_a_job(trial.pid, self._start)
        os.set_blocking(trial.output, False)
        self._timer = loop.call_in(_TRIAL_S, self._out_of_time)
        self._output: Watch | None = loop.watch(trial.output, self._readable)
        self._end = loop.watch(trial.pidfd, self._over)

    def kill(self) -> None:
        """It need not go on."""
        try:
            signal.pidfd_send_signal(self._trial.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself, and that is about to be noticed

    def _out_of_time(self) -> None:
        self._said = f"\nit has not said so within {_TRIAL_S:g} s".encode()
        self._deaf()
        self.kill()

    def _readable(self) -> None:
        try:
            data = os.read(self._trial.output, _PIPE_BYTES)
        except BlockingIOError:
            return
        self._said = (self._said + data)[-_SAID_BYTES:]
        if not data:
            self._deaf()

    def _deaf(self) -> None:
        if self._output is not None:
            self._loop.unwatch(self._output)
            self._output = None

    def _over(self) -> None:
        if self._output is not None:
            self._readable()
            self._deaf()
        self._loop.unwatch(self._end)
        self._timer.cancel()
        os.close(self._trial.output)
        os.close(self._trial.pidfd)
        _, status = self._supervisor.reaper.status_of(self._trial.pid, self._start)
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        self._ended(status, lines[-1].removeprefix("taskmasterd: ") if lines else "")
