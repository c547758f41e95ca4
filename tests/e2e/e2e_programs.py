"""Programs that jobs run in these tests, and the search for what they leave behind."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

#: Ignores SIGTERM, forks twice, and leaves a grandchild in a session of its own with an empty environment.
#: Every process has MARK as its last argument.
ESCAPEE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1] == "main":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execve(sys.executable, [sys.executable, sys.argv[0], "grandchild", sys.argv[2]], {})
        os._exit(0)
    os.wait()
while True:
    time.sleep(1000)
"""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def python(script: Path, text: str, *arguments: str) -> list[str]:
    """Argument vector of a Python program whose text is written to ``script``."""
    script.write_text(text)
    return [sys.executable, str(script), *arguments]


def with_mark(mark: str) -> dict[int, str]:
    """Living processes that have ``mark`` in an argument, but this one: pid to command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                command = Path("/proc", entry, "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue  # gone meanwhile
            if mark in command:
                found[int(entry)] = command.replace("\0", " ")
    return found
