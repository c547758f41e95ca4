"""An upgrade step by step over fakes: each step made to fail, and an order to end in the middle of each."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from taskmaster.control import handover
from taskmaster.control.handover import HandOver, OldProgram
from taskmaster.control.lifetime import fallback
from taskmaster.control.lifetime import upgrade as steps
from taskmaster.control.lifetime.fallback import WayBack
from taskmaster.control.lifetime.life import Life
from taskmaster.control.lifetime.upgrade import Upgrade
from taskmaster.core.lifetime import Effect, Event, Phase
from taskmaster.eventloop import EventLoop
from taskmaster.wire.replies import Reply

HANDED = HandOver(
    version="1",
    lock=-1,
    limits=(),
    listeners=(),
    sessions=(),
    reaped=[],
    inherited={},
    held={},
    asked=None,
)


class Asker:
    """An exchange, as far as an upgrade knows one."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.query = None

    def done(self, reply: Reply) -> None:
        assert self.reply is None, "two replies"
        self.reply = reply

    @property
    def error(self) -> str:
        assert self.reply is not None
        return self.reply.error or ""


class World:
    """Everything around an upgrade; ``script`` is what the new program does on trial."""

    def __init__(self, script: str = "exit 0") -> None:
        self.clock = 0.0
        self.handed = msgspec.structs.replace(
            HANDED, lock=os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        )
        self.loop = EventLoop(lambda: self.clock)
        self.is_quiet = False
        self.taken_back: list[Reply] = []
        self.cut_short = self.ended = False
        self.events: list[str] = []
        self.held = False
        self.reaped: dict[int, int] = {}
        audit = SimpleNamespace(
            record=lambda event, **fields: self.events.append(fields["error"]), identity=None
        )
        supervisor = SimpleNamespace(
            jobs={},
            orphans=SimpleNamespace(not_a_job=lambda pid, start: None),
            reaper=SimpleNamespace(status_of=lambda pid, start: (True, os.waitpid(pid, 0)[1])),
        )
        parts: Any = SimpleNamespace(
            loop=self.loop,
            supervisor=supervisor,
            dispatcher=self,
            premises=SimpleNamespace(audit=audit),
            removing=SimpleNamespace(keep=dict),
            say=SimpleNamespace(error=lambda text: None),
        )
        handing: Any = SimpleNamespace(
            describe=lambda: self.handed,
            collect=lambda exchange: self.handed,
            take_over=lambda handed, reply: self.taken_back.append(reply),
        )
        effects: dict[Effect, Any] = {}
        self.life = Life(Phase.SERVING, effects)
        self.upgrade = Upgrade(parts, self.life, handing, ("/bin/sh", "-c", script))
        effects |= {
            Effect.TRY: self.upgrade.try_,
            Effect.REFUSE: self.upgrade.refuse,
            Effect.HOLD: self.upgrade.hold,
            Effect.CUT_SHORT: self.upgrade.cut_short,
            Effect.BECOME: self.upgrade.become,
            Effect.GO_ON: self.upgrade.go_on,
            Effect.CANCEL: self.upgrade.cancel,
            Effect.STOP_JOBS: lambda: setattr(self, "ended", True),
        }

    # a dispatcher

    def hold_all(self) -> None:
        self.held = True

    def release_all(self) -> None:
        self.held = False

    def quiet(self, but: object) -> bool:
        return self.is_quiet

    def answer_rest(self, but: object, goes_on: Reply, not_begun: Reply) -> None:
        self.cut_short = True

    def complete(self, exchange: Asker) -> None:
        self.events.append(f"completed: {exchange.error}")

    def answer_all(self) -> None:
        pass

    # a test

    def ask(self) -> Asker:
        asker: Any = Asker()
        self.upgrade.ask(asker)
        return asker  # type: ignore[no-any-return]

    def until(self, phase: Phase) -> None:
        while self.life.phase is not phase:
            self.loop.turn()  # the trial says something, or ends
            self.upgrade.turn_over()


@pytest.fixture
def world(request: pytest.FixtureRequest, leaves_nothing: None) -> Any:
    world = World(getattr(request, "param", "exit 0"))
    yield world
    world.loop.close()
    os.close(world.handed.lock)


FAILS = {
    "echo taskmasterd: no such thing; exit 78": "no such thing",
    "echo first; echo last >&2; exit 1": "last",
    "head -c 300000 /dev/zero | tr '\\0' x; echo; echo last; exit 1": "last",
    "exit 7": "wait status 1792",
    "kill -9 $$": "wait status 9",
}


@pytest.mark.parametrize(("world", "words"), FAILS.items(), indirect=["world"])
def test_a_trial_that_fails(world: World, words: str) -> None:
    """The last line is the reason; nothing was held, and the asker has it."""
    asker = world.ask()
    world.until(Phase.SERVING)
    assert words in asker.error
    assert words in world.events[0]
    assert not world.held


@pytest.mark.parametrize("world", ["exec sleep 1000", "trap '' TERM; sleep 1000"], indirect=True)
def test_a_trial_that_hangs(world: World) -> None:
    """It is given its time, and killed."""
    asker = world.ask()
    world.clock += 31
    world.until(Phase.SERVING)
    assert "within 30 s" in asker.error


def test_a_program_that_cannot_be_executed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on trial, nor for want of a memory file to tell it by."""
    world.upgrade._program = ("/nowhere/python",)
    assert "No such file" in world.ask().error

    def full(handed: HandOver) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    monkeypatch.setattr(handover, "save", full)
    assert "Too many open files" in world.ask().error
    assert world.life.phase is Phase.SERVING


def drained(world: World) -> Asker:
    asker = world.ask()
    world.until(Phase.DRAINING)
    assert world.held
    return asker


def test_an_exec_that_the_kernel_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is taken back with the reply, that is on record, signals are as before, and it can be asked again."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(steps.os, "execve", refused)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    asker = drained(world)
    world.is_quiet = True
    world.upgrade.turn_over()
    (reply,) = world.taken_back
    assert "Cannot allocate memory" in (reply.error or "")
    assert asker.reply is not None, "it is on record with its reply"
    assert any(event.startswith("completed: ") for event in world.events)
    assert (world.life.phase, world.held) == (Phase.SERVING, False)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    world.is_quiet = False
    drained(world)
    world.life.happens(Event.END_ASKED)


def test_no_memory_file_after_all_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where it is not the exec that fails."""
    asker = drained(world)

    def full(handed: HandOver) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(handover, "save", full)
    world.is_quiet = True
    world.upgrade.turn_over()
    assert len(world.taken_back) == 1
    assert "Cannot allocate memory" in asker.error


def test_an_interpreter_that_is_gone(world: World) -> None:
    """That is found before anything is let go of."""
    asker = drained(world)
    world.upgrade._program = ("/nowhere/python",)
    world.is_quiet = True
    world.upgrade.turn_over()
    assert world.taken_back == []
    assert "no program" in asker.error


def test_who_is_waited_for_no_longer(world: World) -> None:
    """At the deadline all are answered, and it goes on in the same turn; not before."""
    asker = drained(world)
    world.upgrade._program = ("/nowhere/python",)
    world.clock += 4.9
    world.loop.call_in(0, lambda: None)
    world.loop.turn()
    world.upgrade.turn_over()
    assert not world.cut_short
    world.clock += 0.2
    world.loop.turn()
    world.upgrade.turn_over()
    assert world.cut_short
    assert asker.reply is not None


def test_a_signal_that_has_come_is_served_first(world: World) -> None:
    """It may be an order to end: no exec before its callback was called."""
    asker = drained(world)
    world.loop.on_signal(signal.SIGUSR1, lambda: world.life.happens(Event.END_ASKED))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        world.is_quiet = True
        world.upgrade.turn_over()
        assert world.life.phase is Phase.DRAINING
        world.loop.turn()
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert world.ended
    assert "cancelled" in asker.error
    assert not world.held


@pytest.mark.parametrize("world", ["exec sleep 1000"], indirect=True)
def test_the_end_during_a_trial_over_fakes(world: World) -> None:
    """The trial is killed, its end is noticed and means nothing any more; a further upgrade is refused."""
    asker = world.ask()
    world.life.happens(Event.END_ASKED)
    assert "cancelled" in asker.error
    for _ in range(3):
        world.loop.turn()
        if world.upgrade._trial is None:
            break
    assert world.upgrade._trial is None
    assert world.life.phase is Phase.ENDING
    assert "stopping" in world.ask().error


# the hand-over ------------------------------------------------------------------------------------


def test_what_an_older_program_hands_over() -> None:
    """Without the keys that there were not then it is understood."""
    old = {
        "version": "0",
        "lock": 3,
        "limits": [],
        "listeners": [{"kind": "tcp", "fd": 4, "address": "127.0.0.1:7777"}],
        "sessions": [],
        "reaped": [],
        "inherited": {},
        "held": {},
        "asked": {"session": 0, "query_id": "", "exchange": "a-1", "took_s": 1.0, "codes": False},
    }
    handed = msgspec.json.decode(msgspec.json.encode(old), type=HandOver)
    assert (handed.holdings, handed.old, handed.not_begun, handed.removals) == (None, None, {}, {})
    assert handed.descriptors() == [3, 4]


def way_back(old: OldProgram | None, failed: str = "") -> WayBack:
    return WayBack(handover.save(msgspec.structs.replace(HANDED, old=old)), failed)


OLD = OldProgram(-1, -1, ("/bin/true",), ("/bin/true",), "{}", None)


@pytest.mark.parametrize(
    ("old", "failed", "words"),
    [
        (None, "", "kept nothing"),
        (OLD, "it was mad", "it was mad"),
        (OLD, "", "cannot be executed"),
    ],
)
def test_no_way_back(
    old: OldProgram | None, failed: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why, and does not go round in circles between two programs that cannot start."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(fallback.os, "execve", refused)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    back = way_back(old, failed)
    try:
        assert words in back.take("whatever")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(back._file)
