"""Who gets which signal in a stop, how often, and who is looked at when one of them ends."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from watchdog_children import wait_for

from taskmaster import children, procfs
from taskmaster.core.events import Event, Exited
from taskmaster.core.lifecycle import Phase, Process
from taskmaster.core.spec import JobSpec, StopTo
from taskmaster.core.states import Desired
from taskmaster.eventloop import EventLoop
from taskmaster.procfs import ProcStat
from taskmaster.watchdog import process
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.signalling import Signalling

TERM, KILL, CONT = signal.SIGTERM, signal.SIGKILL, signal.SIGCONT


class Stage:
    """As much of a runner as ``Signalling`` asks of it; ``members`` are what lives, by place."""

    def __init__(self, loop: EventLoop, places: int, **spec: Any) -> None:
        self.loop = loop
        self.spec = JobSpec("web", ("/bin/web",), **spec)
        self.places = {number: Place(number) for number in range(places)}
        self.members: dict[int | None, list[ProcStat]] = {}
        self.unreadable = False
        self.family = SimpleNamespace(
            members=self._members,
            orphans=lambda places, dead: True,
            moving=frozenset(),
            look_again=lambda: None,
        )
        self.endings = SimpleNamespace(to_reap=[])
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.fed: list[tuple[int, Event]] = []
        self.signalling = Signalling(self)  # type: ignore[arg-type]

    def _members(
        self, places: object, *, thorough: bool = True
    ) -> dict[int | None, list[ProcStat]]:
        if self.unreadable:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.members

    def notice(self, place: Place, event: str, **fields: Any) -> None:
        self.notices.append((event, fields))

    def touch(self, place: Place) -> None:
        place.changed = True

    def feed(self, place: Place, event: Event) -> None:
        self.fed.append((place.number, event))
        place.process = Process(Phase.STOPPED)

    def stopping(self, number: int, pid: int | None = None, start: int | None = None) -> Place:
        """A place that is being stopped, with its main process or without."""
        place = self.places[number]
        place.process = Process(Phase.STOPPING, Desired.DOWN)
        place.pid, place.start, place.due_at = pid, start, self.loop.now() + 10
        return place


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was sent, as (pid, signal), SIGCONT left out."""
    found: list[tuple[int, int]] = []

    def send(pid: int, start: int, number: int) -> bool:
        if number != CONT:
            found.append((pid, number))
        return True

    monkeypatch.setattr(process, "send", send)
    return found


@pytest.fixture
def living() -> Iterator[list[ProcStat]]:
    """Three real processes to be left behind, so that there are ends to be told of."""
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        pids.append(pid)
    found = [procfs.stat(pid) for pid in pids]
    yield [one for one in found if one is not None]
    for pid in pids:
        if children.reap(pid) is None and os.path.exists(f"/proc/{pid}"):
            os.kill(pid, KILL)
            os.waitpid(pid, 0)


def stat(pid: int, state: str = "S") -> ProcStat:
    return ProcStat(pid, state, 1, pid, pid, pid * 10)


def test_main_first(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """The main process alone; then each of the rest once, and whoever is new."""
    stage = Stage(loop, 1)
    place = stage.stopping(0, 5, 50)
    stage.members = {0: [stat(5), stat(6), stat(7)]}
    stage.signalling.begin(place)
    assert sent == [(5, TERM)]
    place.pid, place.ended = None, True
    stage.members = {0: [stat(6), stat(7)]}
    for _ in range(3):
        stage.signalling.check(place)
    stage.members = {0: [stat(7), stat(8)]}
    stage.signalling.check(place)
    assert sent == [(5, TERM), (6, TERM), (7, TERM), (8, TERM)]
    assert place.left_pids == (7, 8)
    assert [fields.get("reason") for _, fields in stage.notices] == [
        None,
        "outlived the main process: pid 6, 7",
    ]
    stage.members = {}
    stage.signalling.check(place)
    assert stage.fed == [(0, Exited(True, 0.0))]
    assert (place.left, place.asked, place.stop_signal) == (0, set(), 0)


def test_to_all(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """Everything at once, and nothing of it again once the main process has ended."""
    stage = Stage(loop, 1, stop_to=StopTo.ALL)
    place = stage.stopping(0, 5, 50)
    stage.members = {0: [stat(5), stat(6)]}
    stage.signalling.begin(place)
    assert sent == [(5, TERM), (6, TERM)]
    place.pid, place.ended = None, True
    stage.members = {0: [stat(6)]}
    stage.signalling.check(place)
    assert len(sent) == 2
    assert len(stage.notices) == 1


def test_the_signal_is_that_of_the_beginning(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """Another definition meanwhile does not have what is left asked in another way."""
    stage = Stage(loop, 1)
    place = stage.stopping(0, 5, 50)
    stage.signalling.begin(place)
    stage.spec = JobSpec("web", ("/bin/other",), stop_signal=signal.SIGQUIT)
    place.pid, place.ended = None, True
    stage.members = {0: [stat(6)]}
    stage.signalling.check(place)
    assert sent == [(5, TERM), (6, TERM)]


@pytest.mark.parametrize("adopted", [False, True])
def test_what_belongs_to_nobody_is_asked_once(
    loop: EventLoop, sent: list[tuple[int, int]], adopted: bool
) -> None:
    """It is everybody's when all places stop; also for a replacement, which has it from the record."""
    stage = Stage(loop, 3)
    stage.members = {None: [stat(9)]}
    for number in range(3):
        place = stage.stopping(number)
        stage.signalling.begin(place)
    assert sent == [(9, TERM)]
    if adopted:
        for number, place in list(stage.places.items()):
            stage.places[number] = Place.recorded(place.record(100))
            stage.places[number].ended = True
    for place in stage.places.values():
        stage.signalling.check(place)
    assert sent == [(9, TERM)]


@pytest.mark.parametrize(
    ("phase", "desired", "pid", "stays"),
    [
        (Phase.RUNNING, Desired.UP, 5, True),
        (Phase.STARTING, Desired.UP, 5, True),
        (Phase.SPAWNING, Desired.UP, 5, True),
        (Phase.SPAWNING, Desired.UP, None, False),
        (Phase.SPAWNING, Desired.DOWN, 5, False),
        (Phase.STOPPING, Desired.UP, 5, False),
        (Phase.STOPPING, Desired.DOWN, 5, False),
        (Phase.CLEARING, Desired.UP, None, False),
        (Phase.BACKOFF, Desired.UP, None, False),
        (Phase.EXITED, Desired.UP, None, False),
        (Phase.FATAL, Desired.UP, None, False),
        (Phase.STOPPED, Desired.DOWN, None, False),
    ],
)
def test_what_belongs_to_nobody_may_be_of_one_that_stays(
    loop: EventLoop, phase: Phase, desired: Desired, pid: int | None, stays: bool
) -> None:
    """It is left alone for a process that nobody is ending, and for none that is restarted or has crashed."""
    stage = Stage(loop, 2)
    stage.members = {None: [stat(9)]}
    place = stage.stopping(0)
    stage.places[1].process, stage.places[1].pid = Process(phase, desired), pid
    assert [one.pid for one in stage.signalling.of(place)] == ([] if stays else [9])


def test_everybody_who_waits_for_an_end_is_told(
    loop: EventLoop, living: list[ProcStat], until: Any
) -> None:
    """What belongs to nobody ends: each place that waited for it looks again, not only the first one."""
    stage = Stage(loop, 3)
    stage.members = {None: living[:1]}
    for number in range(3):
        place = stage.stopping(number)
        place.ended = True
        stage.signalling.check(place)
    assert stage.fed == []
    stage.members = {}
    os.kill(living[0].pid, KILL)
    until(lambda: len(stage.fed) == 3)
    assert sorted(number for number, _ in stage.fed) == [0, 1, 2]


def test_what_moves_is_not_gone(loop: EventLoop, sent: list[tuple[int, int]], until: Any) -> None:
    """Nothing is found, and something went while one looked: one looks again, and only rest is an end."""
    stage = Stage(loop, 2)
    place = stage.stopping(0)
    place.ended = True
    for moving in ({None}, {0}):
        stage.family.moving = frozenset(moving)
        stage.signalling.check(place)
        assert stage.fed == []
        assert place.looking is not None
    stage.family.moving = frozenset({1})  # another place's
    until(lambda: stage.fed)
    assert [number for number, _ in stage.fed] == [0]


def test_what_may_not_be_signalled_is_said(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status has the pid and its user, for as long as that is so."""

    def send(pid: int, start: int, number: int) -> bool:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(process, "send", send)
    stage = Stage(loop, 1)
    stage.members = {0: [stat(os.getpid())]}
    place = stage.stopping(0)
    stage.signalling.begin(place)
    words = f"not permitted to signal pid {os.getpid()}, which runs as user {os.getuid()}"
    assert place.status().refused == words
    stage.members = {}
    place.ended = True
    stage.signalling.check(place)
    assert place.status().refused == ""


def test_one_end_does_not_make_others_forget(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """A place comes to its end: what is asked elsewhere stays asked."""
    stage = Stage(loop, 2)
    stage.members = {0: [stat(6)], 1: [stat(7), stat(8)]}
    for number in range(2):
        stage.signalling.begin(stage.stopping(number))
    stage.members = {1: [stat(8)]}
    for place in stage.places.values():
        stage.signalling.check(place)
    assert [number for number, _ in stage.fed] == [0]
    assert sent == [(6, TERM), (7, TERM), (8, TERM)]


def test_killed_is_said_once_and_truly(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """SIGKILL goes to all, and again; the record has whom it found, and there is none where nobody was."""
    stage = Stage(loop, 1)
    place = stage.stopping(0)
    stage.signalling.kill(place, "asked for")
    assert stage.notices == []
    stage.members = {0: [stat(6), stat(7)]}
    place.killing = False
    for _ in range(2):
        stage.signalling.kill(place, "stopTime was over")
    assert sent == [(6, KILL), (7, KILL)] * 2
    assert stage.notices == [
        ("process.killed", {"pid": 6, "reason": "stopTime was over; left behind: pid 6, 7"})
    ]
    # A replacement goes on with SIGKILL.
    adopted = stage.places[0] = Place.recorded(place.record(100))
    adopted.ended = True
    stage.signalling.check(adopted)
    assert sent[4:] == [(6, KILL), (7, KILL)]


@pytest.mark.parametrize("number", [TERM, KILL])
def test_without_a_descriptor_left(
    loop: EventLoop, living: list[ProcStat], until: Any, number: int
) -> None:
    """/proc cannot be read: the main process is reached by the descriptor that is held."""
    stage = Stage(loop, 1)
    stage.unreadable = True
    place = stage.stopping(0, living[0].pid, living[0].start)
    place.held = os.pidfd_open(living[0].pid)
    try:
        if number == KILL:
            stage.signalling.kill(place, "asked for")
        else:
            stage.signalling.begin(place)
        wait_for(lambda: children.peek(living[0].pid) is not None)
    finally:
        os.close(place.held)
    assert children.exit_of(children.reap(living[0].pid) or 0) == (None, number)


def test_the_record_has_an_end(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """So many that were asked are in the record, no more: what is left out may be asked again."""
    stage = Stage(loop, 1, stop_to=StopTo.ALL)
    place = stage.stopping(0, 5, 50)
    stage.members = {0: [stat(pid) for pid in range(5, 505)]}
    stage.signalling.begin(place)
    assert len(place.asked) == 500
    assert len(place.record(100).asked) == 100


def test_the_dead_are_forgotten(loop: EventLoop, sent: list[tuple[int, int]]) -> None:
    """A program that forks for as long as it has time does not fill memory with its dead."""
    stage = Stage(loop, 1)
    place = stage.stopping(0)
    stage.signalling.begin(place)
    place.ended = True
    for round_ in range(20):
        stage.members = {0: [stat(1000 * round_ + pid) for pid in range(5, 1005)]}
        stage.signalling.check(place)
    assert len(sent) == 20_000
    assert len(place.asked) <= 6000
