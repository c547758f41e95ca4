"""Rows about users who attack: what root and an honest user wait for meanwhile, and what the daemon grows by.

Each attack is run in turns: against the daemon, which the two honest clients ask, and against a sink that burns
as much as it can (bench_sink), while the same clients ask a bare echo server that is not attacked. The second is
what this machine costs at the moment, with the same attackers beside it; a figure over its limit by no more
than that is undecided (see ``Row.verdict``), and measured again a few times before it is left so. Those who
ask and those who are asked come before all else on a CPU: who waits then waits for the server.

The peak of the daemon's memory is the kernel's, so none between two looks is missed.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from attacks import ATTACKS, Attack
from bench_client import Client, Missed, frame
from bench_host import ROOT, Daemon, Host, free_port, wait_for
from bench_table import Options, Row, Verdict

_ATTACKERS: Final = (5001, 5003, 5004)
_HONEST: Final = 5002
_ROOT_MS: Final = 5.0
_OTHER_MS: Final = 10.0
_MEMORY_MIB: Final = 64.0
#: The hard limit of the row about descriptors.
_FEW_DESCRIPTORS: Final = 300
#: Rounds at most, where noise leaves a row undecided.
_MAX_ROUNDS: Final = 9
#: A job file as large as they get, and a history as long: what is dear to tell.
_LARGE: Final = 1_000_000
_VERSIONS: Final = 150
#: Of the daemon, the echo server and the honest clients.
_PRIORITY: Final = -15
#: Until an attack has taken what it can, and until what it has left is cleared away.
_TAKES_HOLD_S: Final = 1.0
_CLEARS_S: Final = 0.5


class Waited(NamedTuple):
    """The slowest hundredth of the answers to root and to another user, in one round, milliseconds."""

    root: float
    other: float


class _Arena:
    """A daemon with an attack on it, and the machine with the same attack on nobody."""

    def __init__(self, host: Host, name: str, seconds: float) -> None:
        self._host = host
        self._name = name
        self._attack: Attack = ATTACKS[name]
        self._seconds = seconds
        self._files = 0
        self._port = free_port()
        self.daemon = self._daemon()
        self._first(self.daemon.pid)
        self._echo_port, self._sink_port = self._others()

    def _daemon(self) -> Daemon:
        daemon = self._host.daemon()
        access: list[dict[str, Any]] = [{"role": "viewer", "users": [_HONEST]}]
        if self._attack.role is not None:
            rule: dict[str, Any] = {"role": self._attack.role, "users": list(_ATTACKERS)}
            access.append({**rule, "jobs": ["own"]} if self._attack.role == "operator" else rule)
        daemon.configure(port=self._port, access=access)
        if self._name == "descriptors":
            daemon.descriptors = _FEW_DESCRIPTORS
        daemon.job("job", [self._host.probe])
        daemon.job("own", [self._host.probe], autoStart=False)
        daemon.job("unsettled", ["/bin/false"], restartTimes=-1, startTime=1, autoStart=False)
        daemon.begin()
        client = daemon.connect()
        daemon.names = ["job"]
        daemon.wait_running(client)
        client.ask("start", "unsettled")
        self._prepare(client)
        return daemon

    def _prepare(self, client: Client) -> None:
        """Make dear what the attack asks for."""
        words = {"cmd": [str(self._host.probe)], "startTime": 0, "restart": "always"}
        if self._name == "flood-history":
            for number in range(_VERSIONS):
                client.ask("push", "job", data=_file({**words, "restartTimes": number}))
        if self._name == "flood-pull":
            client.ask("push", "job", data=_file(words, _LARGE))
        if self._name == "flood-audit":
            client.many([frame("status", "nobody") for _ in range(2000)])

    def _first(self, pid: int) -> int:
        """Let it come before all other programs of this machine, which are not what is measured."""
        os.setpriority(os.PRIO_PROCESS, pid, _PRIORITY)
        return pid

    def _others(self) -> tuple[int, int]:
        echo, sink = free_port(), free_port()
        documents = self._host.folder / "documents.json"
        client = self.daemon.connect()
        documents.write_text(json.dumps({"job": client.statuses(["job"])[0]}))
        scripts = ROOT / "scripts"
        said = self._host.folder / "others.messages"
        server: list[str | Path] = [sys.executable, scripts / "bench_echo.py", str(echo), documents]
        self._first(self._host.spawn(server, said))
        self._host.spawn([sys.executable, scripts / "bench_sink.py", str(sink)], said)
        return echo, sink

    # one round ------------------------------------------------------------------------------------

    def attacked(self) -> Waited:
        """One round with the daemon attacked and asked."""
        return self._round(self._port, self._port)

    def beside(self) -> Waited:
        """The same with others attacked and asked."""
        return self._round(self._sink_port, self._echo_port)

    def _round(self, attacked: int, asked: int) -> Waited:
        other = self._probe(_HONEST, asked)
        # Where descriptors are taken, root is the one who comes late, and comes anew each time.
        late = self._name == "descriptors"
        root = None if late else self._probe(0, asked)
        users = _ATTACKERS[: self._attack.users]
        attackers = [self._attacker(uid, attacked) for uid in users]
        if root is None:
            time.sleep(_TAKES_HOLD_S)
            root = self._probe(0, asked, "anew")
        time.sleep(self._seconds)
        found = Waited(self._end(root), self._end(other))
        for pid in attackers:
            self._host.kill(pid)
        time.sleep(_CLEARS_S)
        return found

    def _output(self) -> Path:
        self._files += 1
        return self._host.folder / f"output{self._files}"

    def _attacker(self, uid: int, port: int) -> int:
        words = [self._name, str(uid), str(port), "3600", "1", "job", "unsettled", "own"]
        return self._host.spawn(
            [sys.executable, ROOT / "scripts/attacks.py", *words], self._output()
        )

    def _probe(self, uid: int, port: int, *anew: str) -> tuple[int, Path]:
        output = self._output()
        words = [str(uid), str(port), "job", *anew]
        probe: list[str | Path] = [sys.executable, ROOT / "scripts/bench_probe.py", *words]
        pid = self._first(self._host.spawn(probe, output))
        if not anew:
            wait_for(lambda: "answered" in output.read_text(), "an honest client is answered")
        return pid, output

    def _end(self, probe: tuple[int, Path]) -> float:
        pid, output = probe
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        said = output.read_text()
        try:
            took_ms = json.loads(said.splitlines()[-1])
        except (IndexError, ValueError):
            raise Missed(f"an honest client ended by itself: {said[-400:]}") from None
        if not took_ms:
            raise Missed("an honest client did not come to ask")
        return statistics.quantiles(took_ms, n=100)[98] if len(took_ms) > 1 else float(took_ms[0])

    # memory ---------------------------------------------------------------------------------------

    def memory_mib(self, what: str) -> float:
        """``VmRSS``, or ``VmHWM``: the peak since ``forget_peak``."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
        raise Missed(f"pid {self.daemon.pid} has no {what}")

    def forget_peak(self) -> None:
        """Let the peak begin anew."""
        Path(f"/proc/{self.daemon.pid}/clear_refs").write_text("5")


def _file(words: dict[str, object], size: int = 0) -> str:
    return base64.b64encode(json.dumps(words).encode().ljust(size)).decode()


def _wait_rows(name: str, rounds: list[tuple[Waited, Waited]]) -> list[Row]:
    rows = []
    for who, limit, which in (
        ("root's status", _ROOT_MS, "root"),
        ("another user's", _OTHER_MS, "other"),
    ):
        attacked = [getattr(one, which) for one, _ in rounds]
        beside = [getattr(one, which) for _, one in rounds]
        ours = f"rounds {min(attacked):.1f} to {max(attacked):.1f} ms"
        theirs = f"machine {min(beside):.1f} to {max(beside):.1f} ms"
        figure = statistics.median(attacked)
        rows.append(
            Row(f"{name}: {who} p99", ours, theirs, figure, " ms", limit=limit, noise=max(beside))
        )
    return rows


def _row(name: str, host: Host, options: Options) -> list[Row]:
    if os.geteuid() != 0:
        return [Row.skipped(name, "it needs root, to attack as another user")]
    arena = _Arena(host, name, options.pick(quick=2.0, full=4.0))
    arena.forget_peak()
    before = arena.memory_mib("VmRSS")
    rounds: list[tuple[Waited, Waited]] = []
    wanted = options.pick(quick=3, full=5)
    while True:
        rounds.append((arena.attacked(), arena.beside()))
        if len(rounds) < wanted:
            continue
        rows = _wait_rows(name, rounds)
        undecided = any(row.verdict is Verdict.UNDECIDED for row in rows)
        if not undecided or len(rounds) >= _MAX_ROUNDS:
            break
    grown = arena.memory_mib("VmHWM") - before
    memory = f"of {before:.0f} MiB"
    what = f"{name}: the daemon's memory grows by"
    return [*rows, Row(what, memory, "", grown, " MiB", limit=_MEMORY_MIB)]


def _made(name: str) -> Callable[[Host, Options], list[Row]]:
    row = partial(_row, name)
    attack = ATTACKS[name]
    who = f"a {attack.role}" if attack.role else "a stranger"
    row.__doc__ = (
        f"What others wait for beside {who}'s attack, on {attack.connections} connections."
    )
    return row


#: A row for each attack.
ROWS: Final = {f"attack-{name}": _made(name) for name in ATTACKS}
