"""A minute of ``scripts/storm``: thirty jobs, clients and faults at random, and no promise broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import ROOT, alive, wait_for

pytestmark = pytest.mark.timeout(240)
#: Below the tests' own limit, so that a storm that hangs is ended by its own clean-up.
_STORM_S = 210


class Ended(NamedTuple):
    """A storm that is over: where it was, its exit status, and what it printed."""

    folder: Path
    status: int
    said: str


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """A storm of a minute; what it left is there until the last test of this file."""
    folder = tmp_path_factory.mktemp("storm") / "kept"
    words = ["--minutes", "1", "--seed", "1", "--keep", "--folder", str(folder)]
    process = start(*words)
    try:
        said, _ = process.communicate(timeout=_STORM_S)
    finally:
        end(process)
    yield Ended(folder, process.returncode, said)
    shutil.rmtree(folder)


def start(*words: str) -> subprocess.Popen[str]:
    """scripts/storm, running."""
    return subprocess.Popen(
        [str(ROOT / "scripts/storm"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    """End a storm that has not ended."""
    if process.poll() is None:
        process.terminate()
        process.communicate()


def summary(text: str) -> dict[str, int]:
    """The figures that a storm prints at its end."""
    return {name: int(figure) for name, figure in re.findall(r"(?m)^([a-z ]+): (\d+)$", text)}


def test_one_minute(storm):
    """Everything was tried, and the observer found no violation; on one, its whole report is shown."""
    assert storm.status == 0, storm.said
    figures = summary(storm.said)
    assert figures["violations"] == 0
    assert figures["faults"] >= 50
    for kind in ("upgrade that fails", "state removed"):
        assert re.search(rf"(?m)^ +\d+ {kind}$", storm.said), storm.said
    if os.geteuid() == 0:
        assert figures["raids"] >= 20
    assert figures["commands"] >= 100
    assert figures["exits"] == figures["starts"] >= 150
    assert figures["lines"] >= 10_000


def lose_a_record(folder: Path) -> None:
    """Of the audit log, take one out of the middle."""
    file = folder / "log/audit.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[len(lines) // 2]
    file.write_bytes(b"".join(lines))


def tell_another_exit(folder: Path) -> None:
    """On record, another exit code than the one the program noted."""
    file = folder / "log/audit.jsonl"
    told = re.compile(r'(?m)("event":"process\.exited".*"exitCode":)(\d+)')
    text, count = told.subn(lambda found: f"{found[1]}{int(found[2]) + 1}", file.read_text(), 1)
    assert count == 1
    file.write_text(text)


def lose_a_line(folder: Path) -> None:
    """Of a program that was never ended, take one out of the middle."""
    file = folder / "log/jobs/wri0/0_stdout.log"
    lines = file.read_bytes().splitlines(keepends=True)
    del lines[len(lines) // 2]
    file.write_bytes(b"".join(lines))


def forget(list_name: str, which: Callable[[dict[str, Any]], bool]) -> Callable[[Path], None]:
    """Take what fits out of the storm's own ledger."""

    def change(folder: Path) -> None:
        file = folder / "course.json"
        course = json.loads(file.read_text())
        left = [one for one in course[list_name] if not which(one)]
        assert len(left) < len(course[list_name])
        course[list_name] = left
        file.write_text(json.dumps(course))

    return change


@pytest.mark.parametrize(
    ("falsify", "found"),
    [
        pytest.param(lose_a_record, "audit log: seq", id="record-lost"),
        pytest.param(tell_another_exit, "another end on record", id="exit-code"),
        pytest.param(lose_a_line, "wri0/0_stdout.log: line", id="line-lost"),
        pytest.param(
            forget("faults", lambda one: True),
            "exit status unknown, though not both were dead",
            id="unknown-without-fault",
        ),
        pytest.param(
            forget("commands", lambda one: one["response"] == "success"),
            "in the audit log, and nobody asked",
            id="unasked-command",
        ),
    ],
)
def test_judge_notices(storm, tmp_path, falsify, found):
    """The same storm judged again with one thing made false is condemned for just that."""
    folder = tmp_path / "false"
    shutil.copytree(storm.folder, folder, ignore=shutil.ignore_patterns("*.sock", "product"))
    falsify(folder)
    judged = subprocess.run(
        [str(ROOT / "scripts/storm"), "--judge", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert judged.stderr == ""
    assert judged.returncode == 1
    assert re.search(rf"(?m)^VIOLATION .*{re.escape(found)}", judged.stdout), judged.stdout


def test_ended_by_ctrl_c(tmp_path):
    """A storm that is interrupted ends everything that it has started and removes its folder."""
    folder = tmp_path / "storm"
    storm = start("--minutes", "5", "--seed", "2", "--folder", str(folder))
    try:
        ledgers = folder / "ledgers"
        wait_for(lambda: ledgers.exists() and len(list(ledgers.glob("*.lock"))) > 30)
        pids = {
            int(pid)
            for file in ledgers.iterdir()
            for pid in re.findall(r'"event":"start","pid":(\d+)', file.read_text())
        }
        assert any(alive(pid) for pid in pids)
        storm.send_signal(signal.SIGINT)
        storm.communicate(timeout=_STORM_S / 4)
    finally:
        end(storm)
    assert storm.returncode == 130
    assert not folder.exists()
    left = [pid for pid in pids if alive(pid) and str(folder) in command_of(pid)]
    assert left == []


def command_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
