"""A reader that is killed at any moment and replaced: each byte is in the pipe or in a file, never nowhere."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from watchdog_children import DEADLINE_S, killed
from watchdog_pump import LOG, PIPE, Pump, content, files

KILLS = 40


def line(number: int) -> bytes:
    """Lines of 8 to 67 bytes."""
    return b"%07d%s\n" % (number, b"-" * (number * 7 % 60))


def write_until_told(state: Path, told: int, total: int) -> NoReturn:
    """As the job: blocking, in small blocks that end anywhere, until the other end of ``told`` closes."""
    status = 1
    try:
        dice = random.Random(3)
        job = os.open(state / PIPE, os.O_RDWR)
        text, number, written = b"", 0, 0
        while not select.select([told], [], [], 0)[0]:
            while len(text) < 4000:
                text += line(number)
                number += 1
            count = os.write(job, text[: dice.randint(1, 600)])
            text, written = text[count:], written + count
        os.write(job, text)
        os.write(total, b"%d" % (written + len(text)))
        status = 0
    finally:
        os._exit(status)


def read_until_killed(folder: Path, state: Path, limit: int, ready: int) -> NoReturn:
    """As a watchdog; whatever it drops is an error."""
    try:
        pump = Pump(folder, state, limit)
        os.write(ready, b"x")
        while pump.dropped == 0:
            pump.loop.turn()
    finally:
        os._exit(1)


def written(folder: Path) -> int:
    """About how many bytes the newest file holds; it may be renamed at any time."""
    try:
        return (folder / LOG).stat().st_size
    except FileNotFoundError:
        return 0


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Children of the test; those that are left when it fails are ended."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        try:
            killed(pid)
        except (ProcessLookupError, ChildProcessError):
            pass  # as it should be


@pytest.mark.parametrize("limit", [0, 20_000])
def test_readers_killed_one_after_the_other(
    tmp_path: Path, state: Path, started: list[int], limit: int
) -> None:
    """Forty kills, with a writer that never waits for them: all lines, once, in order, none torn."""
    folder = tmp_path / "log"
    folder.mkdir()
    holder = Pump(folder, state, limit)  # makes the pipe and holds it, as the control plane does
    told, telling = os.pipe()
    summing, total = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(telling)
        write_until_told(state, told, total)
    started.append(writer)
    moments = random.Random(11)
    for _ in range(KILLS):
        ready, saying = os.pipe()
        reader = os.fork()
        if reader == 0:
            os.close(ready)
            read_until_killed(folder, state, limit, saying)
        started.append(reader)
        os.close(saying)
        assert os.read(ready, 1) == b"x", "the reader did not start"
        # Killed after it has moved something, at a moment that nothing is in step with.
        end = time.monotonic() + DEADLINE_S
        before = written(folder)
        while written(folder) == before:
            assert time.monotonic() < end, "the reader reads nothing"
        select.select([], [], [], moments.random() * 0.001)
        assert os.waitpid(reader, os.WNOHANG) == (0, 0), "the reader ended by itself"
        os.kill(reader, signal.SIGKILL)
        assert os.waitpid(reader, 0)[1] == signal.SIGKILL
        os.close(ready)
    os.close(told)
    os.close(telling)
    os.close(total)
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        holder.loop.call_in(0.01, lambda: None)
        holder.loop.turn()
    expected = int(os.read(summing, 100))
    os.close(summing)
    holder.run()
    holder.close()
    assert holder.dropped == 0
    text = content(folder)
    assert len(text) == expected
    for number, one in enumerate(text.splitlines(keepends=True)):
        assert one == line(number)
    found = files(folder)
    assert len(found) > 5 if limit else len(found) == 1
    assert all(file.endswith(b"\n") or not file for file in found.values())
