"""A program: the init of a small host, for daemons that are killed and whose orphans somebody must inherit.

Reads commands from standard input, one JSON list a line: the argv of a daemon to start. Writes JSON lines:
``["started", PID]``, ``["ended", PID, WAIT_STATUS]``. Every orphan becomes its child and is reaped. When
standard input ends, whatever still lives is killed and named: ``["left", PID, COMMAND]``.
"""

import ctypes
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn


def say(*what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def reap(daemons: set[int]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in daemons:
            daemons.discard(pid)
            say("ended", pid, status)


def start(argv: list[str], messages: str) -> int:
    pid = os.fork()
    if not pid:
        become(argv, messages)
    return pid


def become(argv: list[str], messages: str) -> NoReturn:
    os.setsid()
    log = os.open(messages, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.closerange(3, 100)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.execv(argv[0], argv)


def children() -> list[int]:
    return [
        int(pid)
        for pid in Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    ]


def command_of(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    except OSError:
        return "?"


def main() -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    daemons: set[int] = set()
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            reap(daemons)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            pending += data
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                argv, messages = json.loads(line)
                pid = start(argv, messages)
                daemons.add(pid)
                say("started", pid)
    reap(daemons)
    told: set[int] = set()
    while left := children():
        for pid in left:
            if pid not in told:
                told.add(pid)
                say("left", pid, command_of(pid))
            os.kill(pid, signal.SIGKILL)
        select.select([wake_read], [], [], 0.2)
        reap(daemons)


if __name__ == "__main__":
    sys.exit(main())
