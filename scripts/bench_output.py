"""Rows about output: how fast it is captured and what that costs, against ``cat >file`` fed the same way."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from bench_client import Client, Missed, interleaved
from bench_host import Daemon, Host, wait_for
from bench_proc import cpu_s
from bench_table import Options, Row

#: One file of lines, written by the job again and again.
_FILE_BYTES = 50 * 1024 * 1024
_LINE = b"2026-01-01T00:00:00 a line of a log, of the length that such lines have: eighty bytes.\n"
_POLL_S = 0.002


class _Capture:
    """A job that writes the file ``copies`` times: through taskmaster, or through a pipe into ``cat``."""

    def __init__(self, host: Host, copies: int, **keys: Any) -> None:
        self.total = _FILE_BYTES * copies
        self.cpu_ours: list[float] = []
        self.cpu_theirs: list[float] = []
        lines = host.folder / "lines"
        lines.write_bytes((_LINE * (_FILE_BYTES // len(_LINE) + 1))[:_FILE_BYTES])
        self._argv = ["cat", *[str(lines)] * copies]
        self._file = host.folder / "out"
        self._host = host
        self._daemon: Daemon = host.daemon()
        self._daemon.job("writer", self._argv, autoStart=False, restart="never", **keys)
        self._logs: Path = self._daemon.folder / "log" / "jobs" / "writer"
        self._daemon.begin()
        self._client: Client = self._daemon.connect()
        self._state("STOPPED")

    def _state(self, state: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            document = self._client.statuses(["writer"])[0]
            return document if document["state"] == state else None

        found: dict[str, Any] = wait_for(reached, f"the writer is {state}", _POLL_S)
        return found

    def _captured(self) -> int:
        try:
            return sum(file.stat().st_size for file in self._logs.glob("0_stdout.log*"))
        except FileNotFoundError:
            return 0  # renamed while it was looked at: looked at again

    def ours(self) -> float:
        """Seconds from the command to EXITED, which the job is when its last byte is in the files."""
        watchdog = self._client.statuses(["writer"])[0]["watchdog"]["pid"]
        cpu_before = cpu_s(watchdog)
        before = time.perf_counter()
        if self._client.ask("start", "writer")["response"] != "success":
            raise Missed("the writer did not start")
        self._state("EXITED")
        took = time.perf_counter() - before
        self.cpu_ours.append(cpu_s(watchdog) - cpu_before)
        if self._captured() != self.total:
            raise Missed(f"{self._captured()} bytes captured of {self.total}")
        for file in self._logs.glob("0_stdout.log*"):
            file.unlink()
        return took

    def theirs(self) -> float:
        """Seconds that ``cat >file`` takes for the same."""
        before = time.perf_counter()
        with subprocess.Popen(self._argv, stdout=subprocess.PIPE) as writer:
            with self._file.open("wb") as file:
                reader = subprocess.Popen(["cat"], stdin=writer.stdout, stdout=file)
            assert writer.stdout is not None
            writer.stdout.close()
            _, status, usage = os.wait4(reader.pid, 0)
            reader.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - before
        self.cpu_theirs.append(usage.ru_utime + usage.ru_stime)
        self._file.unlink()
        return took


def _rows(host: Host, options: Options, what: str, copies: int, **keys: Any) -> list[Row]:
    capture = _Capture(host, copies, **keys)
    mine, other, ratio = interleaved(options.pick(quick=5, full=9), capture.ours, capture.theirs)
    megabytes, gigabytes = capture.total / 1e6, capture.total / 1e9
    cpu = statistics.median(capture.cpu_ours) / gigabytes
    cpu_cat = statistics.median(capture.cpu_theirs) / gigabytes
    return [
        Row(
            f"output, {what}: rate",
            f"{megabytes / mine:.0f} MB/s",
            f"cat >file {megabytes / other:.0f} MB/s",
            1 / ratio,
            limit=0.9,
            at_least=True,
        ),
        Row(
            f"output, {what}: CPU-s a GB",
            f"{cpu:.2f} s",
            f"cat >file {cpu_cat:.2f} s",
            cpu / cpu_cat,
        ),
    ]


def one_file(host: Host, options: Options) -> list[Row]:
    """Into one file that is not rotated meanwhile."""
    return _rows(host, options, "one file", options.pick(quick=10, full=20), logMaxBytes=4 * 2**30)


def rotated(host: Host, options: Options) -> list[Row]:
    """Into files of 50 MiB, as is the default; all of them are kept, so that every byte is counted."""
    return _rows(host, options, "rotated at 50 MiB", 10)
