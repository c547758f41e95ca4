"""The pipes of a job's output: which there are, and that nothing else is ever taken for one."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskmaster import fifos
from taskmaster.core.spec import JobSpec

OBSTACLES: dict[str, tuple[Callable[[Path], Any], set[int]]] = {
    "file": (lambda path: path.write_text("precious"), {errno.EEXIST}),
    "link to a pipe": (
        lambda path: (os.mkfifo(f"{path}.real"), path.symlink_to(f"{path}.real")),
        {errno.ELOOP},
    ),
    "dangling link": (lambda path: path.symlink_to("nowhere"), {errno.ELOOP}),
    "folder": (lambda path: path.mkdir(), {errno.EISDIR}),
    "socket": (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), {errno.ENXIO}),
}


def test_held_by_anyone_it_keeps_what_is_in_it(directory: int, state: Path) -> None:
    """Readers come and go, also the last of them while a writer holds it: nothing of it is lost."""
    umask = os.umask(0)
    try:
        writer = fifos.hold(directory, "0.stdout")
    finally:
        os.umask(umask)
    status = (state / "0.stdout").stat()
    assert stat.S_ISFIFO(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert not os.get_inheritable(writer)
    expected = b""
    for number in range(5):
        os.write(writer, b"line %d\n" % number)
        expected += b"line %d\n" % number
        reader = fifos.hold(directory, "0.stdout")
        if number == 2:
            assert os.read(reader, 1000) == expected
            expected = b""
        os.close(reader)
    reader = fifos.hold(directory, "0.stdout")
    os.close(writer)
    assert os.read(reader, 1000) == expected == b"line 3\nline 4\n"
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)


@pytest.mark.parametrize("what", OBSTACLES)
def test_something_else_of_that_name(directory: int, state: Path, what: str) -> None:
    """Refused with its errno, neither followed nor changed nor left open."""
    make, numbers = OBSTACLES[what]
    make(state / "0.stdout")
    before = sorted((entry.name, entry.lstat().st_mode) for entry in state.iterdir())
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the errno is looked at
        fifos.hold(directory, "0.stdout")
    assert refused.value.errno in numbers
    after = sorted((entry.name, entry.lstat().st_mode) for entry in state.iterdir())
    assert after == before
    if what == "file":
        assert (state / "0.stdout").read_text() == "precious"


BOTH = ["0.stdout", "0.stderr"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, BOTH),
        ({"proc_nr": 2}, [*BOTH, "1.stdout", "1.stderr"]),
        ({"log_max_bytes": 0}, []),
        ({"stdout": None}, ["0.stderr"]),
        ({"stderr": None}, ["0.stdout"]),
        ({"stdout": None, "stderr": None}, []),
        ({"stderr_to_stdout": True}, ["0.stdout"]),
        ({"stderr_to_stdout": True, "stdout": None}, []),
        ({"stdout": "x.log", "stderr": "x.log"}, ["0.stdout"]),
        ({"stdout": "x.log", "stderr": "%n_x.log", "proc_nr": 2}, ["0.stdout", "1.stdout"]),
        ({"stdout": "/a/x.log", "stderr": "/b/x.log"}, BOTH),
        ({"stdout": "0.log", "stderr": "%n.log", "proc_nr": 1}, ["0.stdout"]),
    ],
)
def test_which_pipes_a_job_needs(changed: dict[str, Any], expected: list[str]) -> None:
    """One for each stream that is kept, rotated, and has a file of its own."""
    assert list(fifos.needed(JobSpec("web", ("/bin/true",), **changed))) == expected
