"""Upgrade in place: the daemon becomes its new program, with the same pid, and nobody is turned away.

In steps, each of which can fail and leave the old daemon as it was: the new program is tried (it reads
the configuration and says whether it could start); nothing more is read from clients; what was read is
answered; listeners, clients and lock are put into a memory file; exec. The new program goes on with them
and then has each watchdog replaced by adoption, one after the other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

from taskmaster import procfs
from taskmaster.audit import AuditLog, Event
from taskmaster.control import handover, launch
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.exchange import Exchange
from taskmaster.control.handover import HandOver
from taskmaster.control.say import Say
from taskmaster.control.supervisor import Supervisor
from taskmaster.eventloop import EventLoop, Timer, Watch
from taskmaster.wire import replies

#: How long the new program may take to say whether it could start.
_TRIAL_S: Final = 30.0
#: How long commands that were read before may take to be answered; who still waits then is told why.
_DRAIN_S: Final = 5.0
_SAID_BYTES: Final = 4096


class Upgrade:
    """One daemon's way to its new program. ``collect`` gives what is to be handed over, ``undo`` takes it back."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        dispatcher: Dispatcher,
        audit: AuditLog,
        say: Say,
        collect: Callable[[Exchange], HandOver],
        undo: Callable[[HandOver], object],
    ) -> None:
        self._loop = loop
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._audit = audit
        self._say = say
        self._collect = collect
        self._undo = undo
        self._exchange: Exchange | None = None
        self._said = b""
        self._timer: Timer | None = None
        self._draining = False

    def ask(self, exchange: Exchange) -> None:
        """The command ``upgrade``."""
        if self._exchange is not None:
            exchange.done(replies.fail("An upgrade is under way already."))
            return
        self._exchange = exchange
        self._said = b""
        try:
            trial = launch.trial([sys.executable, *sys.orig_argv[1:], "--check"])
        except OSError as error:
            self._failed(f"it cannot be executed: {error.strerror}")
            return
        self._watch(trial)

    def _watch(self, trial: launch.Trial) -> None:
        start = procfs.stat(trial.pid)
        self._supervisor.orphans.not_a_job(trial.pid, start.start if start else 0)

        def killed() -> None:
            signal.pidfd_send_signal(trial.pidfd, signal.SIGKILL)

        self._timer = self._loop.call_in(_TRIAL_S, killed)
        watches: list[Watch] = []

        def readable() -> None:
            data = os.read(trial.output, _SAID_BYTES)
            self._said = (self._said + data)[-_SAID_BYTES:]
            if not data:
                self._loop.unwatch(watches[0])

        def ended() -> None:
            for watch in watches:
                self._loop.unwatch(watch)
            os.set_blocking(trial.output, False)
            try:
                self._said = (self._said + os.read(trial.output, _SAID_BYTES))[-_SAID_BYTES:]
            except BlockingIOError:
                pass
            os.close(trial.output)
            os.close(trial.pidfd)
            assert self._timer is not None
            self._timer.cancel()
            _, status = self._supervisor.reaper.status_of(trial.pid, start.start if start else 0)
            self._tried(status)

        watches.append(self._loop.watch(trial.output, readable))
        watches.append(self._loop.watch(trial.pidfd, ended))

    def _tried(self, status: int | None) -> None:
        if status != 0:
            words = self._said.decode("utf-8", "replace").strip().splitlines()
            self._failed(words[-1] if words else f"it ended with wait status {status}")
            return
        self._draining = True
        self._dispatcher.hold_all()
        self._timer = self._loop.call_in(_DRAIN_S, self._give_up_waiting)

    def _give_up_waiting(self) -> None:
        assert self._exchange is not None
        self._dispatcher.answer_rest(
            self._exchange,
            replies.fail(
                "taskmasterd is being upgraded; what was begun goes on, status tells how far."
            ),
        )

    def turn_over(self) -> None:
        """Go on as soon as all that was read is answered. Call at the end of each turn, after the replies."""
        if self._draining and self._exchange is not None:
            if not self._dispatcher.quiet(self._exchange):
                return
            assert self._timer is not None
            self._timer.cancel()
            self._become()

    def _become(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._draining = False
        handed = self._collect(exchange)
        # A signal between two programs would meet neither's handler; it waits for the new one's.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            fd = handover.save(handed)
            for one in handed.descriptors():
                os.set_inheritable(one, True)
            environment = {**os.environ, handover.VARIABLE: str(fd)}
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._undo(handed)
            self._failed(f"it cannot be executed: {error.strerror}")

    def _failed(self, why: str) -> None:
        exchange, self._exchange = self._exchange, None
        self._draining = False
        assert exchange is not None
        text = f"The new program cannot start: {why}. The one that runs goes on."
        self._audit.record(Event.DAEMON_UPGRADE_FAILED, pid=os.getpid(), error=why)
        self._say.error(text)
        self._dispatcher.release_all()
        exchange.done(replies.fail(text))


def took_s(exchange: Exchange) -> float:
    """How long a command has taken so far."""
    return time.monotonic() - exchange.begun
