"""A job's state directory, and a function in a process of its own; each test leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog_pump import MakePump, Pump


@pytest.fixture(autouse=True)
def _clean(leaves_nothing: None) -> None:
    pass


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of a job, as a path."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def directory(state: Path) -> Iterator[int]:
    """A descriptor of the state directory."""
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the log goes."""
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def pump(folder: Path, state: Path) -> Iterator[MakePump]:
    """Make the pump; it is closed afterwards."""
    made: list[Pump] = []

    def make(max_bytes: int = 0, backups: int = 1000, **more: Any) -> Pump:
        made.append(Pump(more.pop("folder", folder), state, max_bytes, backups, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
