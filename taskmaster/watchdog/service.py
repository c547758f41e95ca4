"""A watchdog put together: messages of the control plane to the runner, what it has to tell back.

Everything that a turn of the loop changed is recorded first (the runner's commit) and told afterwards,
so the control plane never knows of anything that a replacement would not know too.
"""

from __future__ import annotations

import os
import signal

from taskmaster.core.spec import JobSpec
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import record
from taskmaster.watchdog.confinement import Limits
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.premises import Premises
from taskmaster.watchdog.rendezvous import NAME, Rendezvous
from taskmaster.watchdog.runner import Runner
from taskmaster.watchdog.verbs import Verbs
from taskmaster.wire.link import (
    Acknowledge,
    Act,
    Begun,
    Configure,
    Done,
    HandOver,
    Hello,
    Inherited,
    Leave,
    Missing,
    Ping,
    Published,
    Restore,
    Retire,
    ToWatchdog,
)


class Service:
    """The watchdog of one job. ``logs``: the job's log folder; ``limits`` for its processes."""

    def __init__(
        self,
        loop: EventLoop,
        directory: int,
        spec: JobSpec,
        sha256: str,
        logs: str,
        limits: Limits,
        lock: int,
    ) -> None:
        self._loop = loop
        self._directory = directory
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.runner = Runner(loop, directory, spec, sha256, limits, null, logs)
        self.runner.endings.ask = self._ask
        self.runner.settled = self._settled
        self._verbs = Verbs(self.runner, self._answer)
        self._answers: list[Done] = []
        self._rendezvous = Rendezvous(loop, directory, self._received, self._attached)
        self._premises = Premises(loop, directory, lock, self._rendezvous, self._tell)
        self.runner.restore = lambda: self._restore(now=False)
        # Only to wake the loop: commit looks for children that have ended.
        loop.on_signal(signal.SIGCHLD, lambda: None)
        # What a new daemon sends that has not found us where we should be.
        loop.on_signal(signal.SIGUSR1, self._restore_now)
        loop.after_turn = self.runner.commit

    def begin(self, link: int) -> None:
        """Take up the link it was born with, and go on with what was adopted."""
        self._rendezvous.attach(link)
        self.runner.commit()

    def unusable_record(self, why: str) -> None:
        """There is a state record that nobody can use: say so, and keep it for whoever looks into it."""
        kept = f"{record.FILE}.rejected"
        os.replace(record.FILE, kept, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self.runner.notices.add("state.rejected", file=kept, error=why)

    # from the control plane -----------------------------------------------------------------------

    def _received(self, message: ToWatchdog) -> None:
        if isinstance(message, Act):
            self._begun(message.id)
            self._verbs.act(message.id, message.verb, message.cause)
        elif isinstance(message, Configure):
            self._begun(message.id)
            self._verbs.configure(message.id, message.spec, message.sha256, message.cause)
        elif isinstance(message, HandOver):
            self.runner.endings.handed_over(message.pid, message.start, message.status)
        elif isinstance(message, Acknowledge):
            if self.runner.notices.acknowledge(message.through):
                # At once: what a record still holds is told again by a replacement.
                self.runner.mark_dirty()
        elif isinstance(message, Inherited):
            self.runner.inherit(message.processes, message.denied)
        elif isinstance(message, Retire):
            self._begun(message.id)
            self._verbs.retire(message.id, message.cause)
        elif isinstance(message, Leave):
            self.runner.mark_dirty()
            self.runner.commit()
            self._loop.stop()
        elif isinstance(message, Restore):
            self._begun(message.id)
            there = self._restore(now=True)
            self._answer(
                message.id, "success" if there else "fail", "" if there else "not possible now"
            )
        else:
            assert isinstance(message, Ping)
            self._answer(message.id, "success", "")

    # the state folder ----------------------------------------------------------------------------

    def _restore_now(self) -> None:
        self._restore(now=True)

    def _restore(self, *, now: bool) -> bool:
        there = self._premises.restore(now=now)
        if there:
            self.runner.mark_dirty()
        return there

    def _tell(self, event: str, **fields: object) -> None:
        self.runner.notices.add(event, **fields)
        self.runner.mark_dirty()

    # to the control plane -------------------------------------------------------------------------

    def _begun(self, request: int) -> None:
        self._rendezvous.send(Begun(request))

    def _answer(self, request: int, outcome: str, error: str) -> None:
        self._answers.append(Done(request, outcome, error))

    def _ask(self, place: Place) -> None:
        if not self._rendezvous.up:
            return
        assert place.pid is not None
        assert place.start is not None
        self._rendezvous.send(Missing(place.number, place.pid, place.start))

    def _attached(self) -> None:
        runner = self.runner
        runner.family.greeted()
        adopted = sum(1 for place in runner.places.values() if place.pid is not None)
        self._rendezvous.send(
            Hello(
                runner.spec.job,
                runner.ledger,
                os.getpid(),
                runner.sha256,
                runner.spec,
                adopted,
                runner.instance,
            )
        )
        self._publish(full=True)
        runner.notices.send_again()
        for place in runner.places.values():
            if place.asking:
                self._ask(place)

    def _publish(self, *, full: bool) -> None:
        runner = self.runner
        changed = [place for place in runner.places.values() if full or place.changed]
        removed, runner.removed = tuple(runner.removed), []
        if not (full or changed or removed):
            return
        statuses = tuple(place.status() for place in changed)
        self._rendezvous.send(Published(full, statuses, removed, runner.dropped_bytes))
        for place in changed:
            place.changed = False

    def _settled(self) -> None:
        """The end of a commit: tell what it brought."""
        retired = self._verbs.settle()
        if retired:
            self.runner.forget()
            self._verbs.retired()
        if self._rendezvous.up:
            # What happened before how it stands: a client that sees the state finds its cause in the log.
            for notice in self.runner.notices.unsent():
                self._rendezvous.send(notice)
            self._publish(full=False)
            for answer in self._answers:
                self._rendezvous.send(answer)
        self._answers.clear()
        if retired:
            for name in (NAME, "lock"):
                try:
                    os.unlink(name, dir_fd=self._directory)
                except FileNotFoundError:
                    pass  # somebody was quicker to clean up
            self._loop.stop()
