"""The judge of a storm, on attackers and sabotage: ledgers and logs are forged, each false in one thing."""

from __future__ import annotations

import datetime
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, wait_for

sys.path.insert(0, str(ROOT / "scripts"))

import storm_attack
import storm_sabotage
from storm_attack import OWN, Raid
from storm_audit import Audit
from storm_bounds import Bounds
from storm_client import Command
from storm_faults import SABOTEUR, UPGRADER, Fault
from storm_gaps import Gaps
from storm_jobs import Treatment, all_jobs
from storm_pulse import CLIENT
from storm_upgrades import Upgrades
from storm_verdict import crashes
from storm_witness import Life

STRANGER, VIEWER, OPERATOR = storm_attack.USERS
ROOT_UID = 0


class Log:
    """An audit log that is written here, and read by the judge."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "audit.jsonl"
        self._records: list[dict[str, Any]] = []

    def add(self, event: str, *, shift: float = 0.0, **keys: Any) -> None:
        """A record of this moment, or of one so many seconds later."""
        at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=shift)
        now = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        seq = len(self._records) + 1
        self._records.append({"seq": seq, "timestamp": now, "event": event, **keys})

    def command(self, uid: int, command: str, job: str | None, outcome: str, **keys: Any) -> str:
        """A command, from its request to its outcome; its id."""
        number = f"c{len(self._records)}"
        peer = {"transport": "tcp", "address": "127.0.0.1:1", "uid": uid}
        known = {"id": number, "command": command, "job": job, "peer": peer}
        self.add("command.requested", **known)
        self.add("command.completed", **known, outcome=outcome, **keys)
        return number

    def audit(self) -> Audit:
        """As the judge has it."""
        self._file.write_text("".join(json.dumps(one) + "\n" for one in self._records))
        return Audit(self._file)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def command(client: int, sent: float, took_s: float, response: str | None = "status") -> Command:
    """One of a client of the storm."""
    return Command(1, client, "status", "std0", sent=sent, ended=sent + took_s, response=response)


@pytest.mark.parametrize(
    ("uid", "word", "job", "outcome", "condemned"),
    [
        pytest.param(STRANGER, "status", "std0", "fail", False, id="stranger-refused"),
        pytest.param(STRANGER, "status", "std0", "status", True, id="stranger-looks"),
        pytest.param(VIEWER, "pull", "std0", "file", False, id="viewer-looks"),
        pytest.param(VIEWER, "push", "std0", "fail", False, id="viewer-refused"),
        pytest.param(VIEWER, "push", "std0", "success", True, id="viewer-pushes"),
        pytest.param(VIEWER, "stop", OWN, "redundant", True, id="viewer-stops"),
        pytest.param(OPERATOR, "stop", OWN, "success", False, id="operator-stops-own"),
        pytest.param(OPERATOR, "stop", "std0", "success", True, id="operator-stops-another"),
        pytest.param(OPERATOR, "upgrade", None, "success", True, id="operator-upgrades"),
    ],
)
def test_rights(log, uid, word, job, outcome, condemned):
    """Whoever was let do what their role does not have is found in the log."""
    log.command(uid, word, job, outcome)
    bounds = Bounds(log.audit(), [], [])
    bounds.check_rights()
    assert [one.startswith("an attacker was let do it") for one in bounds.violations] == (
        [True] if condemned else []
    )


@pytest.mark.parametrize("caused", [False, True], ids=["asked", "caused"])
@pytest.mark.parametrize(("count", "condemned"), [(20, False), (2000, True)])
def test_share_of_log(log, caused, count, condemned):
    """Records of an attacker, and of what their commands caused, count; those of root do not."""
    log.add("daemon.started")
    asked = log.command(OPERATOR, "start", OWN, "success")
    for _ in range(count):
        log.command(ROOT_UID, "start", "std0", "success", error="x" * 50)
        if caused:
            log.add("process.started", job=OWN, number=0, pid=1, cause=asked, error="x" * 50)
        else:
            log.command(OPERATOR, "start", OWN, "fail", error="x" * 50)
    bounds = Bounds(log.audit(), [Raid(OPERATOR, "flood-stop", 0.0, 10.0)], [])
    bounds.check_share_of_log()
    assert [f"uid {OPERATOR} filled" in one for one in bounds.violations] == (
        [True] if condemned else []
    )


@pytest.mark.parametrize(
    ("took_s", "faults", "condemned"),
    [
        pytest.param(0.2, [], False, id="in-time"),
        pytest.param(8.0, [], True, id="late"),
        pytest.param(
            8.0,
            [Fault(99.0, "stopped", "", 7), Fault(105.0, "continued", "", 7)],
            False,
            id="daemon-stopped",
        ),
        pytest.param(
            8.0,
            [Fault(99.0, "stopped", "", 7), Fault(101.0, "continued", "", 7)],
            True,
            id="daemon-stopped-for-less",
        ),
        pytest.param(8.0, [Fault(99.0, "stopped", "std0", 7)], True, id="a-watchdog-stopped"),
        pytest.param(
            8.0,
            [Fault(50.0, "killed", "", 7), Fault(60.0, "started", "", 8)],
            True,
            id="daemon-killed-long-before",
        ),
        pytest.param(8.0, [Fault(99.0, "removed", "std0", 0, "folder")], True, id="state-removed"),
    ],
)
def test_root_is_answered(log, took_s, faults, condemned):
    """Root's wait is excused by what was done to the daemon, as far as that goes; attacks are named."""
    raid = Raid(VIEWER, "flood-audit", 95.0, 105.0)
    bounds = Bounds(log.audit(), [raid], faults)
    bounds.check_pulse([command(CLIENT, 100.0, took_s)])
    assert len(bounds.violations) == condemned
    assert all("flood-audit by 5002" in one for one in bounds.violations)


def test_root_is_answered_during_an_upgrade(log):
    """The time that an upgrade takes is not held against the daemon; other clients are not looked at."""
    asked = upgrade(UPGRADER, 99.0, 5.0, "success")
    another = Command(3, 1, "stop", "std0", wait=20.0, sent=100.0, ended=130.0, response="fail")
    bounds = Bounds(log.audit(), [], [])
    bounds.check_pulse([command(CLIENT, 100.0, 8.0), asked, another])
    assert bounds.violations == []


def test_memory(log):
    """A daemon that has grown is told of."""
    bounds = Bounds(log.audit(), [], [])
    bounds.check_memory(70.0)
    assert bounds.violations == []
    bounds.check_memory(900.0)
    assert "a daemon held 900 MiB" in bounds.violations[0]


def test_records_of_attackers_are_nobody_elses(log):
    """The commands of attackers are not held against clients, and one of root that is missing still is."""
    log.command(VIEWER, "status", "std0", "status")
    audit = log.audit()
    now = time.monotonic()
    audit.check_commands([], [])
    assert audit.violations == []
    audit.check_commands([command(CLIENT, now, 0.1)], [])
    assert "answered, and not in the audit log" in audit.violations[0]


def upgrade(
    client: int, sent: float, took_s: float = 0.9, response: str | None = "fail"
) -> Command:
    """One that was asked for."""
    return Command(1, client, "upgrade", None, sent=sent, ended=sent + took_s, response=response)


@pytest.mark.parametrize(
    ("clients", "condemned"),
    [
        pytest.param([SABOTEUR], False, id="sabotaged"),
        pytest.param([UPGRADER], True, id="not-sabotaged"),
        pytest.param([SABOTEUR, UPGRADER], True, id="the-last-one-was-not"),
        pytest.param([], True, id="nobody-asked"),
    ],
)
def test_failed_upgrade_on_record(log, clients, condemned):
    """One that was sabotaged fails as it has to; one that was not is a violation."""
    asked = [upgrade(client, time.monotonic() + at) for at, client in enumerate(clients, -5)]
    log.add("daemon.upgrade_failed", pid=1, error="why")
    upgrades = Upgrades(log.audit(), asked, [])
    upgrades.check_failures()
    assert len(upgrades.violations) == condemned


@pytest.mark.parametrize(
    ("response", "more", "condemned"),
    [
        pytest.param("fail", [], False, id="refused"),
        pytest.param("success", [], True, id="succeeded"),
        pytest.param(None, [], False, id="daemon-killed"),
        pytest.param("success", [Fault(9.5, "started", "", 9)], True, id="started-before"),
        pytest.param("success", [Fault(10.5, "started", "", 9)], False, id="mended-for-a-start"),
    ],
)
def test_sabotage(log, response, more, condemned):
    """An upgrade to a program that cannot start must not be a success."""
    asked = upgrade(SABOTEUR, 10.1, response=response)
    faults = sorted([Fault(10.0, "sabotaged", "", 7, "import"), *more], key=lambda one: one.at)
    upgrades = Upgrades(log.audit(), [asked], faults)
    upgrades.check_answers()
    assert len(upgrades.violations) == condemned


def life(ended: float) -> Life:
    """A process of ``web`` that ended without a word of its own."""
    return Life("web", 0, "main", 7, 1, 90.0, 1, 7, 0, dead_at=ended)


REMOVED = Fault(100.0, "removed", "web", 0, "folder")
PIPE = Fault(100.0, "removed", "web", 0, "0.stdout")
KILLED = Fault(101.0, "killed", "web", 5)


@pytest.mark.parametrize(
    ("faults", "record", "pipe"),
    [
        pytest.param([REMOVED, KILLED], True, True, id="folder-and-watchdog"),
        pytest.param([REMOVED], False, False, id="folder-alone"),
        pytest.param([KILLED], False, False, id="watchdog-alone"),
        pytest.param([PIPE, KILLED], False, True, id="pipe-and-watchdog"),
        pytest.param(
            [KILLED, Fault(105.0, "removed", "web", 0, "folder")], False, False, id="removed-later"
        ),
        pytest.param(
            [Fault(100.0, "removed", "db", 0, "folder"), KILLED], False, False, id="another-job"
        ),
    ],
)
def test_what_a_removed_state_excuses(log, faults, record, pipe):
    """A lost end needs a record that was removed, and a watchdog that died before it had made another."""
    gaps = Gaps(log.audit(), faults, [])
    assert gaps.record_lost("web", 101.5, 103.0) is record
    assert gaps.pipe_lost(life(101.2)) is pipe


@pytest.mark.parametrize(
    ("code", "job", "after_s", "condemned"),
    [(73, "web", 1.0, 0), (73, "db", 1.0, 1), (73, "web", 20.0, 1), (70, "web", 1.0, 1)],
)
def test_a_watchdog_without_a_state_folder(log, code, job, after_s, condemned):
    """It may end so just after the folder of its own job was removed; another exit status is a crash as ever."""
    log.add("watchdog.lost", job="web", exitCode=code)
    audit = log.audit()
    at = audit.records[0]["mono"] - after_s
    audit.check_itself([Fault(at, "removed", job, 0, "folder")])
    assert len(audit.violations) == condemned


def test_a_record_that_is_there_again_excuses_nothing(log):
    """From the moment that it is said to be there, an end has to be on record as always."""
    now = time.monotonic()
    log.add("state.restored", job="web", what="folder")
    faults = [Fault(now - 5, "removed", "web", 0, "folder"), Fault(now + 5, "killed", "web", 5)]
    gaps = Gaps(log.audit(), faults, [])
    assert not gaps.record_lost("web", now + 4, now + 6)
    assert gaps.record_lost("web", now - 5, now + 6) is False


@pytest.mark.parametrize(
    ("at", "untold"),
    [
        pytest.param(-8.0, False, id="the-log-has-heard-of-the-job-since"),
        pytest.param(-3.5, True, id="before-the-removal"),
        pytest.param(-2.0, True, id="nobody-was-there"),
        pytest.param(3.0, False, id="another-watchdog-was"),
    ],
)
def test_what_went_with_a_record(log, at, untold):
    """What happened since the log heard last of a job, until its next watchdog, may be gone with its record."""
    now = time.monotonic()
    log.add("process.started", job="web", number=0, pid=7, shift=-5.0)
    log.add("watchdog.launched", job="web", pid=9, shift=0.0)
    faults = [
        Fault(now - 4, "killed", "web", 5),
        Fault(now - 3, "removed", "web", 0, "state.json"),
    ]
    gaps = Gaps(log.audit(), faults, [])
    assert gaps.untold("web", now + at) is untold
    assert not Gaps(log.audit(), faults[:1], []).untold("web", now + at)


def test_tracebacks(tmp_path):
    """What a sabotaged program says is expected; what another one says is not."""
    meant = f"Traceback (most recent call last):\n  File x\nRuntimeError: {storm_sabotage.MARK} x\n"
    messages = tmp_path / "messages"
    messages.write_text(f"taskmasterd: hello\n{meant}taskmasterd: more\n{meant}")
    assert crashes(tmp_path) == []
    messages.write_text(
        f"{meant}Traceback (most recent call last):\n  File y\nKeyError: 1\n{meant}"
    )
    (found,) = crashes(tmp_path)
    assert "KeyError" in found


def test_sabotaged_product(make_daemon, tmp_path):
    """An upgrade fails in each step that is sabotaged and says why; it succeeds once that is mended."""
    folder = tmp_path / "product"
    product = storm_sabotage.Product(ROOT / "taskmaster", folder)
    daemon = make_daemon()
    argv = ["/usr/bin/env", "-C", str(folder), f"PYTHONPATH={folder}", sys.executable, "-B"]
    argv += ["-m", "taskmaster.control", "-c", str(daemon.config)]
    daemon.pid = daemon.host.start(argv, daemon.messages)
    wait_for(daemon.serves)
    for step in storm_sabotage.STEPS:
        with product.broken(step):
            reply = daemon.ask("upgrade")
        assert reply["response"] == "fail"
        assert f"{storm_sabotage.MARK} {step}" in reply["error"] or "left" in step
    for file in (ROOT / "taskmaster").rglob("*.py"):
        assert (folder / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
    assert daemon.ask("upgrade")["response"] == "success"


def test_removed_state(tmp_path):
    """In the end everything is removed, one by one or a folder at a time, and each time it is told what."""
    none = frozenset()
    assert storm_sabotage.remove_state(tmp_path / "none", random.Random(1), none) is None
    for job in ("a", "b"):
        (tmp_path / job).mkdir()
        for name in ("state.json", "lock", "link.sock", "0.stdout", "0.stderr"):
            (tmp_path / job / name).touch()
    choice, told = random.Random(1), []
    while os.listdir(tmp_path):
        done = storm_sabotage.remove_state(tmp_path, choice, none)
        if done is not None:
            told.append(done)
            job, what = done
            assert not (tmp_path / job / ("" if what == "folder" else what)).exists()
    assert {job for job, _ in told} == {"a", "b"}


def test_a_record_that_is_all_there_is(tmp_path):
    """Of a job without a pipe, all but the record may be removed."""
    (tmp_path / "a").mkdir()
    for name in ("state.json", "lock", "link.sock", "0.stdout", "0.stderr"):
        (tmp_path / "a" / name).touch()
    choice = random.Random(1)
    for _ in range(100):
        storm_sabotage.remove_state(tmp_path, choice, frozenset({"a"}))
    assert os.listdir(tmp_path / "a") == ["state.json"]


def test_the_attackers_job():
    """One job is the operator's, by the name that the rules have; nobody else is let near it."""
    (own,) = [job for job in all_jobs() if job.treatment is Treatment.ATTACKED]
    assert own.name == OWN
    (rule,) = [one for one in storm_attack.access() if one["role"] == "operator"]
    assert rule["jobs"] == ["own*"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--without", "watchdog-klled"], "no fault watchdog-klled; there are: watchdog-killed"),
        (["--faults", "attackers"], "without any fault there is no storm"),
    ],
)
def test_unknown_fault(words, said):
    """A mistyped fault is an error before anything happens."""
    done = subprocess.run(
        [str(ROOT / "scripts/storm"), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert said in done.stderr
