"""A job's state directory, and a function in a process of its own; each test leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
