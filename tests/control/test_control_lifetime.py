"""What an upgrade refuses by identity, and what it makes of listeners: decisions, over folders and values."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from taskmaster.control.handover import HandedListener, Holdings
from taskmaster.control.lifetime import identity, listeners
from taskmaster.errors import FileError, NotPermitted


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """A configuration, as far as it matters here, and what a daemon of it stands on."""
    state, jobs = tmp_path / "state", tmp_path / "jobs"
    state.mkdir()
    jobs.mkdir()
    (state / "lock").touch()
    (jobs / "web.tm.json").touch()
    config = SimpleNamespace(state_directory=state, config_directory=jobs)
    held = Holdings(
        uid=os.geteuid(),
        lock=identity.of(state / "lock") or (0, 0),
        log=None,
        folder=str(jobs),
        folder_id=identity.of(jobs),
        jobs=("web", "gone"),
    )
    return SimpleNamespace(config=config, held=held, state=state, jobs=jobs)


def test_the_same_place(place: Any) -> None:
    """By whatever path; and of an older program nothing is known."""
    identity.check(place.config, place.held)
    identity.check(SimpleNamespace(), None)  # type: ignore[arg-type]
    place.jobs.rename(place.jobs.with_name("moved"))
    place.config.config_directory = place.jobs.with_name("moved")
    place.state.rename(place.state.with_name("elsewhere"))
    place.config.state_directory = place.state.with_name("elsewhere")
    identity.check(place.config, place.held)
    # Put in the place of the folder that there was: the old program reads this one, too.
    place.jobs.mkdir()
    (place.jobs / "web.tm.json").touch()
    place.config.config_directory = place.jobs
    identity.check(place.config, place.held)


def test_another_user(place: Any) -> None:
    """A program that would run as somebody else is not this daemon."""
    held = msgspec.structs.replace(place.held, uid=os.geteuid() + 1)
    with pytest.raises(NotPermitted, match=str(held.uid)):
        identity.check(place.config, held)


@pytest.mark.parametrize("how", ["another", "none", "lock anew"])
def test_another_state(place: Any, how: str) -> None:
    """Another folder, none, and one whose lock file was made anew: the lock is the identity."""
    if how == "another":
        place.config.state_directory = place.jobs
    elif how == "none":
        place.config.state_directory = place.state / "none"
    else:
        (place.state / "new").touch()
        (place.state / "new").rename(place.state / "lock")
    with pytest.raises(FileError, match="stateDirectory"):
        identity.check(place.config, place.held)


@pytest.mark.parametrize("how", ["another", "none", "no file of any job"])
def test_another_job_directory(place: Any, how: str) -> None:
    """Another folder, none, and one that has lost all files; without jobs there is nothing to lose."""
    if how == "another":
        place.config.config_directory = place.state
    elif how == "none":
        place.config.config_directory = place.jobs / "none"
    else:
        (place.jobs / "web.tm.json").unlink()
    with pytest.raises(FileError, match="configDirectory"):
        identity.check(place.config, place.held)
    if how == "no file of any job":
        identity.check(place.config, msgspec.structs.replace(place.held, jobs=()))


TCP = HandedListener("tcp", 3, "127.0.0.1:7777")
OPEN = HandedListener("tcp", 3, "*:7777")


@pytest.mark.parametrize(
    ("port", "remote", "handed", "kept", "opened"),
    [
        (7777, False, TCP, True, False),
        (0, False, TCP, True, False),
        (7778, False, TCP, False, True),
        (None, False, TCP, False, False),
        (7777, True, TCP, False, True),
        (7777, False, OPEN, False, True),
        (7777, True, OPEN, True, False),
        (0, True, TCP, False, True),
    ],
)
def test_tcp(
    port: int | None, remote: bool, handed: HandedListener, kept: bool, opened: bool
) -> None:
    """It goes on if it is what is asked for now; else it ends, and one is opened if one is asked for."""
    config: Any = SimpleNamespace(port=port, remote_connections=remote, socket=None)
    plan = listeners.plan(config, (handed,))
    assert (plan.kept == [handed], plan.closed == [handed]) == (kept, not kept)
    assert plan.opened == (["tcp"] if opened else [])


def test_unix(tmp_path: Path) -> None:
    """By path and file: one that was removed, or is another's by now, does not go on."""
    path = tmp_path / "s"
    config: Any = SimpleNamespace(port=None, remote_connections=False, socket=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        handed = HandedListener("unix", 3, str(path), listeners.file_of(path))
        assert listeners.plan(config, (handed,)) == ([handed], [], [])
        # Of an older program the file is not known.
        older = msgspec.structs.replace(handed, file=None)
        assert listeners.plan(config, (older,)).kept == [older]
        path.rename(tmp_path / "t")
        assert listeners.plan(config, (handed,)) == ([], [handed], ["unix"])
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert listeners.plan(config, (handed,)) == ([], [handed], ["unix"])
        listeners.remove_file(handed)
        assert path.exists(), "it is somebody else's"
    config.socket = None
    assert listeners.plan(config, (handed,)) == ([], [handed], [])
