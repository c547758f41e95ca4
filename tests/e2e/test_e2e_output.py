"""Output end to end: into the named file, over rotation without a line lost or torn."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from running import wait_for

LINES = 20000
#: Writes numbered lines to both streams, each in one write, then ends.
WRITER = f"""
import os
for number in range({LINES}):
    os.write(1, b"out %07d of a line that has some length\\n" % number)
    if number % 10 == 0:
        os.write(2, b"err %07d\\n" % number)
"""
ECHO = [
    "/bin/sh",
    "-c",
    "echo out$TASKMASTER_PROCESS; echo err$TASKMASTER_PROCESS >&2; exec sleep 1000",
]


def lines_of(file: Path) -> list[bytes]:
    """Lines of a log file and its rotated generations, oldest first; each generation holds whole lines."""
    generations = sorted(
        file.parent.glob(f"{file.name}.*"), key=lambda one: int(one.suffix[1:]), reverse=True
    )
    found: list[bytes] = []
    for generation in (*generations, file):
        content = generation.read_bytes()
        assert content == b"" or content.endswith(b"\n"), f"{generation} ends within a line"
        found += content.splitlines()
    return found


def run(daemon, name, cmd, **keys):
    daemon.job(name, cmd, **{"restart": "never", **keys})
    assert daemon.ask("reload", name, wait=60)["response"] == "success"
    return daemon.logs / "jobs" / name


@pytest.mark.parametrize("max_bytes", [10_000, 100_000, 0, 52428800])
def test_no_line_lost_or_torn(daemon, tmp_path, max_bytes):
    """20 000 lines over some hundred rotations: all there, in order, whole; no generation over the limit."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = run(
        daemon, "writer", [sys.executable, str(script)], logMaxBytes=max_bytes, logBackups=1000
    )
    daemon.wait_state("writer", "EXITED")
    out = [b"out %07d of a line that has some length" % number for number in range(LINES)]
    assert lines_of(folder / "0_stdout.log") == out
    assert lines_of(folder / "0_stderr.log") == [b"err %07d" % n for n in range(0, LINES, 10)]
    files = list(folder.glob("0_stdout.log*"))
    if max_bytes in (0, 52428800):
        assert len(files) == 1
    else:
        assert all(file.stat().st_size <= max_bytes + 65536 for file in files)
        assert len(files) > 5
    assert daemon.status("writer")["droppedBytes"] == 0


def test_backups_are_counted(daemon, tmp_path):
    """No more than logBackups generations are kept; the newest is ``.1`` and the last line is in the file."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = run(daemon, "writer", [sys.executable, str(script)], logMaxBytes=20_000, logBackups=2)
    daemon.wait_state("writer", "EXITED")
    names = sorted(file.name for file in folder.glob("0_stdout.log*"))
    assert names == ["0_stdout.log", "0_stdout.log.1", "0_stdout.log.2"]
    numbers = [int(line.split()[1]) for line in lines_of(folder / "0_stdout.log")]
    assert numbers == list(range(numbers[0], LINES))


@pytest.mark.parametrize("max_bytes", [0, 52428800], ids=["direct", "rotated"])
def test_where_it_goes(daemon, tmp_path, max_bytes):
    """Each form of stdout and stderr puts the bytes where the contract says, with and without rotation."""
    absolute = tmp_path / "abs_%n.log"
    cases = {
        "default": ({}, {"0_stdout.log": "out0\n", "0_stderr.log": "err0\n"}),
        "same": ({"stderr": "stdout"}, {"0_stdout.log": "out0\nerr0\n"}),
        "twice": ({"stdout": "x.log", "stderr": "./x.log"}, {"x.log": "out0\nerr0\n"}),
        "null": ({"stdout": None, "stderr": "e.log"}, {"e.log": "err0\n"}),
        "both": ({"stdout": None, "stderr": None}, {}),
        "nullsame": ({"stdout": None, "stderr": "stdout"}, {}),
        "nested": ({"stdout": "a/b/%n.log"}, {"a/b/0.log": "out0\n", "0_stderr.log": "err0\n"}),
        "many": (
            {"procNr": 2, "stdout": "o.log", "stderr": "d/e.log"},
            {
                "0_o.log": "out0\n",
                "1_o.log": "out1\n",
                "d/0_e.log": "err0\n",
                "d/1_e.log": "err1\n",
            },
        ),
        "percent": ({"stdout": "100%%.log", "stderr": None}, {"100%.log": "out0\n"}),
    }
    for name, (keys, files) in cases.items():
        folder = run(daemon, name, ECHO, logMaxBytes=max_bytes, **keys)

        def written(folder=folder):
            return {
                str(file.relative_to(folder)): file.read_text()
                for file in folder.rglob("*")
                if file.is_file()
            }

        wait_for(lambda written=written, files=files: _same(written(), files), f"{name}: {files}")
    run(daemon, "absolute", ECHO, logMaxBytes=max_bytes, stdout=str(absolute), stderr="stdout")
    wait_for(
        lambda: (
            (tmp_path / "abs_0.log").exists()
            and (tmp_path / "abs_0.log").read_text() == "out0\nerr0\n"
        )
    )


def _same(found, wanted):
    return found == wanted


def test_a_change_of_file_takes_effect_on_the_run(daemon):
    """After a reload with another file and limit, a running process's next line goes there, none is lost."""
    fifo = daemon.folder / "say"
    os.mkfifo(fifo)
    cmd = ["/bin/sh", "-c", f"while :; do while read line; do echo $line; done < {fifo}; done"]
    folder = run(daemon, "talk", cmd)
    fifo.write_text("one\n")
    wait_for(lambda: (folder / "0_stdout.log").read_bytes() == b"one\n")
    (pid,) = daemon.pids("talk")
    run(daemon, "talk", cmd, stdout="other.log")
    fifo.write_text("two\n")
    wait_for(
        lambda: (folder / "other.log").exists() and (folder / "other.log").read_bytes() == b"two\n"
    )
    assert (folder / "0_stdout.log").read_bytes() == b"one\n"
    assert daemon.pids("talk") == [pid]


def test_output_of_a_daemon_that_is_killed(daemon, tmp_path):
    """Lines written while the control plane and every watchdog are dead are in the file afterwards."""
    gate = tmp_path / "gate"
    script = f"echo before; until test -e {gate}; do sleep 0.02; done; seq 1000; echo done >&2; exec sleep 1000"
    folder = run(daemon, "talk", ["/bin/sh", "-c", script])
    (pid,) = daemon.pids("talk")
    watchdog = daemon.status("talk")["watchdog"]["pid"]
    daemon.kill()
    os.kill(watchdog, 9)
    gate.touch()
    daemon.start()
    wait_for(lambda: (folder / "0_stderr.log").read_bytes() == b"done\n")
    assert (folder / "0_stdout.log").read_text().split() == ["before", *map(str, range(1, 1001))]
    assert daemon.pids("talk") == [pid]
    assert json.loads(daemon.ask("list")["data"]) == {"jobs": [{"name": "talk"}]}


@pytest.mark.parametrize("what", ["file", "folder", "all"])
@pytest.mark.parametrize("max_bytes", [50, 52428800])
def test_logs_that_are_removed_come_back(daemon, what, max_bytes):
    """A log file or its whole folder is removed: after a restart of the job at the latest it is there again."""
    loop = ["/bin/sh", "-c", "while :; do echo hello; sleep 0.02; done"]
    folder = run(daemon, "talk", loop, logMaxBytes=max_bytes)
    log = folder / "0_stdout.log"
    wait_for(lambda: log.exists() and b"hello" in log.read_bytes())
    if what == "file":
        log.unlink()
    else:
        shutil.rmtree(folder if what == "folder" else folder.parent)
    assert daemon.ask("restart", "talk", wait=60) == {"response": "success"}
    wait_for(lambda: log.exists() and b"hello" in log.read_bytes(), "it is written again", 15)
