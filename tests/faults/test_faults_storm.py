"""A minute of ``scripts/storm``: thirty jobs, clients and faults at random, and no promise broken."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest
from running import ROOT, alive, wait_for

#: Below the test's own limit, so that a storm that hangs is ended by its own clean-up.
_STORM_S = 210


def summary(text: str) -> dict[str, int]:
    """The figures that a storm prints at its end."""
    return {name: int(figure) for name, figure in re.findall(r"(?m)^([a-z ]+): (\d+)$", text)}


@pytest.mark.timeout(240)
def test_one_minute(tmp_path):
    """Everything was tried, and the observer found no violation; on one, its whole report is shown."""
    folder = tmp_path / "storm"
    storm = subprocess.Popen(
        [str(ROOT / "scripts/storm"), "--minutes", "1", "--seed", "1", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = storm.communicate(timeout=_STORM_S)
    finally:
        if storm.poll() is None:
            storm.terminate()
            storm.communicate()
    assert storm.returncode == 0, said
    figures = summary(said)
    assert figures["violations"] == 0
    assert figures["faults"] >= 50
    assert figures["commands"] >= 100
    assert figures["exits"] == figures["starts"] >= 150
    assert figures["lines"] >= 10_000
    assert not folder.exists()


def test_ended_by_ctrl_c(tmp_path):
    """A storm that is interrupted ends everything that it has started and removes its folder."""
    folder = tmp_path / "storm"
    storm = subprocess.Popen(
        [str(ROOT / "scripts/storm"), "--minutes", "5", "--seed", "2", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
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
        if storm.poll() is None:
            storm.terminate()
            storm.communicate()
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
