"""What every area may use: a loop, waiting with a deadline, and the proof that nothing is left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Daemon

from taskmaster.eventloop import EventLoop

# Whoever starts the tests in the background may have these ignored, and everything started here inherits it.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _default)

DEADLINE_S = 45.0
#: Of linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_TICK_S = 0.01


#: Files that take a good part of a minute: begun first, so that none of them is alone at the end.
_LONG = ("test_faults_storm.py", "test_e2e_fuzz.py", "test_e2e_planted_links.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first; all others in their order."""
    items.sort(key=lambda item: item.path.name not in _LONG)


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add((entry, os.readlink(f"/proc/self/fd/{entry}")))
        except FileNotFoundError:
            pass  # the listing's own
    return found


def _children() -> set[str]:
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split()}


def _prctl(option: int, argument: object) -> None:
    assert ctypes.CDLL(None).prctl(option, argument, 0, 0, 0) == 0


@pytest.fixture(autouse=True)
def no_subreaper() -> Iterator[None]:
    """A test may make this process a subreaper, as a daemon does; the next one begins as none."""
    yield
    found = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found))
    if found.value:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """No descriptor and no child, dead or alive, more than before; an area makes this autouse."""
    before = _descriptors(), _children()
    yield
    assert (_descriptors(), _children()) == before


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """A loop on the real clock."""
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def until(loop: EventLoop) -> Callable[[Callable[[], object]], None]:
    """Turn the loop until a condition holds; fails when it does not in time."""

    def turn(condition: Callable[[], object]) -> None:
        end = loop.now() + DEADLINE_S
        while not condition():
            assert loop.now() < end, "the condition did not come true in time"
            tick = loop.call_in(_TICK_S, lambda: None)
            loop.turn()
            tick.cancel()

    return turn


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons in folders of their own, not started yet; at the end each is stopped and has left nothing."""
    made: list[Daemon] = []

    def make(name: str = "host", **config: object) -> Daemon:
        folder = tmp_path / name
        folder.mkdir()
        # Readable for jobs that run as another user.
        for above in (folder, *folder.parents):
            if above.stat().st_uid == os.geteuid() and above != Path("/"):
                above.chmod(above.stat().st_mode | 0o011)
        daemon = Daemon(folder, **config)
        made.append(daemon)
        return daemon

    yield make
    left = [what for daemon in made for what in daemon.close()]
    assert left == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can search. Not below pytest's own, which each start of pytest closes to others."""
    with tempfile.TemporaryDirectory(prefix="taskmaster-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon that serves and has no jobs yet."""
    daemon = make_daemon()
    daemon.start()
    return daemon
