"""The benchmark: its rows, its command line, its table. See scripts/bench."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import bench_against
import bench_client
import bench_fairness
import bench_host
import bench_hostile
import bench_output
import bench_processes
import bench_table
import bench_weight
import bench_wire
from bench_table import Options, Row, Verdict

ROWS: Final[dict[str, Callable[[bench_host.Host, Options], list[Row]]]] = {
    "status-1": bench_wire.status_of_one,
    "status-200": bench_wire.status_of_many,
    "pipelined": bench_wire.pipelined,
    "changing": bench_wire.changing,
    "slow-senders": bench_hostile.slow_senders,
    "half-open-tls": bench_hostile.half_open,
    **bench_fairness.ROWS,
    "command-line": bench_wire.command_line,
    "restart": bench_processes.restart,
    "start": bench_processes.start,
    "adopt": bench_processes.adopt,
    "daemon-killed": bench_processes.daemon_killed,
    "serving-again": bench_processes.serving_again,
    "memory": bench_weight.memory,
    "at-rest": bench_weight.at_rest,
    "output": bench_output.one_file,
    "output-rotated": bench_output.rotated,
}

#: Nothing is missed, and something could not be decided on a machine as busy as this one.
_TRY_AGAIN: Final = 75


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer measurements")
    parser.add_argument("--supervisor", action="store_true", help="Supervisor side by side")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="compare with the checkout there, in the same run and in turns with it",
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    if arguments.against is not None:
        arguments.against = arguments.against.resolve()
        if not (arguments.against / "taskmaster" / "control").is_dir():
            parser.error(f"--against: {arguments.against} is not a checkout of taskmaster")
    return arguments


def _ended(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _measured(name: str, options: Options) -> list[Row]:
    row = ROWS[name]
    if options.against is None or row in bench_wire.SIDE_BY_SIDE:
        return _measure(name, options)
    return bench_against.compared(partial(_measure, name, options), options)


def _measure(name: str, options: Options, checkout: Path = bench_host.ROOT) -> list[Row]:
    host = bench_host.Host(checkout)
    try:
        return ROWS[name](host, options)
    finally:
        # Ctrl-C pressed twice must not leave anything running.
        held = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        )
        host.end()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def main() -> int:
    arguments = _arguments()
    if arguments.list:
        for name, row in ROWS.items():
            print(f"{name:22}{(row.__doc__ or '').strip()}")
        return 0
    options = Options(arguments.quick, arguments.supervisor, arguments.against)
    bench_host.become_subreaper()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    rows: list[Row] = []
    failed: list[str] = []
    began = time.monotonic()
    try:
        for name in arguments.rows or ROWS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                rows += _measured(name, options)
            except bench_client.Missed as error:
                rows.append(Row.failed(name))
                failed.append(f"{name}: {error}")
    except KeyboardInterrupt:
        return 130
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} CPUs, "
        f"load {load}, {time.monotonic() - began:.0f} s"
    )
    print(bench_table.text(rows))
    for one in failed:
        print(f"scripts/bench: {one}", file=sys.stderr)
    verdicts = {row.verdict for row in rows}
    return 1 if Verdict.NO in verdicts else _TRY_AGAIN if Verdict.UNDECIDED in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
