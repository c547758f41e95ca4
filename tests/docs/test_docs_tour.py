"""The tour of the README works as it is typed, on what ``scripts/run`` starts; Ctrl-C then leaves nothing."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import ROOT, console, page
from running import Host, wait_for

#: Commands that only look: what they show may take a moment to be so.
LOOKING = ("taskmasterctl status", "tail ", "grep ")

#: What differs each time, and what it looks like: durations, numbers, command ids. 1/2 stays 1/2.
VARYING = (
    (r"(?<![\w./])\d+/\d+(?![\w/])", None),
    (r"\d+[smhd](?:\d+[smhd])?\b", r"\\d+[smhd](?:\\d+[smhd])?"),
    (r'"[0-9a-f]{8}-\d+"', r'"[0-9a-f]{8}-\\d+"'),
    (r"\d+", r"\\d+"),
    (r"\s+", r"\\s+"),
)


def pattern(line: str) -> re.Pattern[str]:
    """A regular expression for a line of sample output."""
    every = "|".join(f"({one})" for one, _ in VARYING)

    def varying(match: re.Match[str]) -> str:
        meant = VARYING[(match.lastindex or 1) - 1][1]
        return re.escape(match.group()) if meant is None else meant.replace("\\\\", "\\")

    parts, at = [], 0
    for match in re.finditer(every, line):
        parts += [re.escape(line[at : match.start()]), varying(match)]
        at = match.end()
    return re.compile("".join([*parts, re.escape(line[at:])]) + r"\s*")


def same(sample: list[str], output: str) -> bool:
    lines = output.splitlines()
    return len(lines) == len(sample) and all(
        pattern(one).fullmatch(line) for one, line in zip(sample, lines, strict=True)
    )


class Terminal:
    """A shell that is typed into, a line at a time."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
            text=True,
        )

    def type(self, line: str) -> tuple[int, str]:
        """The exit status of a line, and what was printed."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{line}\nprintf '\\n%s %s\\n' end-of-line $?\n")
        self._shell.stdin.flush()
        output = ""
        while not (end := re.search(r"\nend-of-line (\d+)\n$", output)):
            said = self._shell.stdout.readline()
            assert said, f"the shell has ended in {line!r}: {output}"
            output += said
        return int(end.group(1)), output[: end.start()]

    def close(self) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.stdout.close()
        self._shell.wait(60)


class Run:
    """``scripts/run`` in a terminal of its own, with ``TMPDIR`` for the folder that it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.messages = folder / "messages"
        self.host = Host()
        environment = f"TMPDIR={folder}"
        self.pid = self.host.start(
            ["/usr/bin/env", environment, str(ROOT / "scripts/run")], self.messages
        )

    def said(self) -> str:
        return self.messages.read_text() if self.messages.exists() else ""

    def ready(self) -> str:
        """What it says in the end of what it says at first."""

        def look() -> str:
            assert self.pid not in self.host.ended, self.said()
            return self.said().partition("How things stand:")[2].partition("\n\n\n")[0]

        found: str = wait_for(lambda: look().count("\n") > 4 and look(), "scripts/run is ready")
        return found

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to all that the terminal's foreground has; the exit status."""
        os.killpg(self.pid, signal.SIGINT)
        return os.waitstatus_to_exitcode(self.host.wait(self.pid))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """It runs, with port 7777 taken, and shows the first table; whatever the tests did, nothing of it is left."""
    # Not pytest's folder: its name is long, and what is printed there is to be typed.
    folder = Path(tempfile.mkdtemp(prefix="tour."))
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", 7777))
        holder.listen()
    except OSError:
        pass  # somebody else has it: as good
    running = Run(folder)
    try:
        running.ready()
        yield running
    finally:
        holder.close()
        if running.pid not in running.host.ended:
            running.interrupt()
        left = running.host.close()
        said = running.said()
        folders = [one.name for one in folder.iterdir() if one != running.messages]
        shutil.rmtree(folder)
    assert (left, folders) == ([], []), said


def test_it_says_how_to_talk_to_it(run: Run) -> None:
    """The command lines that scripts/run prints do what they say, over a port that is not taken and the socket."""
    said = run.said().partition("From another terminal:")[2]
    lines = re.findall(r"^  (\S*/taskmasterctl -c .*)$", said, re.MULTILINE)
    assert len(lines) == 2
    assert " -c 127.0.0.1:7777 " not in said
    _, there = re.findall(r"^  ((?:export|cd) .*)$", said, re.MULTILINE)
    terminal = Terminal(Path("/"))
    try:
        assert terminal.type(lines[0])[0] == 3, "flaky does not run"
        status, output = terminal.type(lines[1])
        assert (status, [row[2] for row in rows(output)]) == (0, ["RUNNING", "RUNNING"])
        assert terminal.type(there) == (0, "")
        assert terminal.type("ls -d jobs log state") == (0, "jobs\nlog\nstate\n")
        assert terminal.type("stat -c %a . jobs state config.json") == (0, "700\n700\n700\n600\n")
    finally:
        terminal.close()
    assert (
        " takes no arguments"
        in subprocess.run(
            [ROOT / "scripts/run", "x"], stderr=subprocess.PIPE, text=True, timeout=60, check=False
        ).stderr
    )


def typed(terminal: Terminal, command: str, expected: list[str]) -> str:
    """Type a command of the tour; what it printed, which is what was expected."""
    # The pauses are for people: here one waits until it is so.
    command = re.sub(r"; sleep \d+$", "", command)
    good = (0, 3) if command.startswith("taskmasterctl status") else (0,)
    last = ""

    def once() -> bool:
        nonlocal last
        status, output = terminal.type(command)
        last = f"$ {command}\n{output}\n[{status}]"
        return status in good and same(expected, output)

    try:
        if command.startswith(LOOKING):
            wait_for(once)
        else:
            assert once()
    except AssertionError:
        raise AssertionError(f"{last}\nbut the README has\n" + "\n".join(expected)) from None
    return last.partition("\n")[2].rpartition("\n")[0]


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()[1:]]


def test_tour(run: Run) -> None:
    """Every line of the README's console blocks does what the README shows."""
    steps = console(page("README.rst"))
    # The first two are for the first terminal and for a test run, which this is.
    assert [step.command.split()[0] for step in steps[:2]] == ["scripts/run", "scripts/test"]
    assert os.access(ROOT / "scripts/test", os.X_OK)
    tour = steps[2:]
    assert len(tour) > 12
    user = pwd.getpwuid(os.geteuid()).pw_name
    terminal = Terminal(ROOT, TMPDIR=str(run.folder))
    tables: list[list[list[str]]] = []
    try:
        for command, sample in tour:
            expected = [re.sub(r"\banna\b", user, line) for line in sample]
            output = typed(terminal, command, expected)
            if command.startswith("taskmasterctl status -v worker"):
                tables.append(rows(output))
    finally:
        terminal.close()
    pids = [[row[3] for row in table] for table in tables]
    assert len(pids) == 3
    assert pids[0][0] != pids[1][0], "a process that was killed is another one"
    assert pids[0][1] == pids[1][1], "its neighbour is the same"
    assert pids[1] == pids[2], "a watchdog's and the daemon's death touch no process"
    restarts = [[row[5] for row in table] for table in tables]
    assert restarts == [["0", "0"], ["1", "0"], ["1", "0"]]
    assert run.interrupt() == 0
    assert "ended by signal 9; the jobs run on, and it is started again" in run.said()
    assert "all jobs are stopped" in run.said()
