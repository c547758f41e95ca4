"""``audit verify`` and ``audit keygen`` as a person has them: words, exit statuses, files."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from taskmaster.audit import AuditLog, Event
from taskmaster.cli import app

NOON = 1795608000.25
KEY = re.compile(r"^    ((?:[0-9a-f]{4}-){8}[0-9a-f]{4})$", re.MULTILINE)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """One command line: exit status, standard output, standard error."""

    def ran(*arguments: object) -> tuple[int, str, str]:
        status = app.run(["audit", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return ran


def written(path: Path, records: int = 30, *, max_bytes: int = 0, seal: Path | None = None) -> None:
    log = AuditLog(path, max_bytes=max_bytes, backups=100, wall_clock=lambda: NOON, seal=seal)
    for number in range(records):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
        log.flush(durable=False)
    if seal is not None:
        assert log.seal()
    log.close()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_a_good_log_of_many_files(run: Run, tmp_path: Path) -> None:
    """What it covers, in how many files, and the head to keep; also of files named one by one in any order."""
    path = tmp_path / "audit.jsonl"
    written(path, max_bytes=2000)
    status, out, err = run("verify", path)
    assert (status, err) == (0, "")
    files = len(list(tmp_path.iterdir()))
    assert files > 3
    assert re.search(
        rf"^good: 30 records, 1 to 30, 2026-11-25T12:00:00.250000Z to 2026-11-25T12:00:00.250000Z, "
        rf"in {files} files, \S+\.{files - 1} to \S+audit.jsonl$",
        out,
        re.MULTILINE,
    )
    head = re.search(r"^head (30:[0-9a-f]{64})$", out, re.MULTILINE)
    assert head
    assert run("verify", "--head", head[1], *sorted(tmp_path.iterdir()))[:2] == (0, out)
    status, out, _ = run("verify", tmp_path / "audit.jsonl.2", tmp_path / "audit.jsonl.3")
    assert status == 0
    assert "in 2 files" in out
    (tmp_path / "audit.jsonl.2").unlink()
    status, out, err = run("verify", path)
    assert status == 1
    assert re.search(r"audit.jsonl.1 line 1: records \d+ to \d+ were removed", err)
    assert "good up to there" in out


def test_bad_logs(run: Run, tmp_path: Path) -> None:
    """File, line and record on standard error, exit status 1; as a document with --json."""
    path = tmp_path / "audit.jsonl"
    written(path)
    lines = lines_of(path)
    head = json.loads(run("verify", "--json", path)[1])["head"]
    path.write_bytes(b"".join([*lines[:9], lines[9].replace(b"job-9", b"job-8"), *lines[10:]]))
    status, out, err = run("verify", path)
    assert status == 1
    words = "record 10 was changed: its hash is not that of its content"
    assert err == f"taskmasterctl: {path} line 10: {words}\n"
    assert out.startswith("good up to there: 9 records, 1 to 9, ")
    status, out, _ = run("verify", "--json", path)
    document = json.loads(out)
    assert (status, document["good"]) == (1, False)
    assert document["finding"] == {
        "kind": "changed",
        "seq": 10,
        "file": str(path),
        "line": 10,
        "text": words,
    }
    path.write_bytes(b"".join(lines[:20]))
    assert run("verify", path)[0] == 0
    status, _, err = run("verify", "--head", head, path)
    assert status == 1
    assert "the end was cut off: the head names record 30, and the log ends with record 20" in err


def test_half_a_line_at_the_end(run: Run, tmp_path: Path) -> None:
    """A log whose writer is at it, or was killed, is good without its last line, which is told."""
    path = tmp_path / "audit.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-30])
    status, out, _ = run("verify", path)
    assert status == 0
    assert "good: 29 records" in out
    assert f"{path} line 30 has no end" in out


def test_the_log_of_the_daemon(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FILE, that which taskmasterd would write; the sealing key goes where taskmasterd looks for it."""
    (tmp_path / "log").mkdir()
    config = tmp_path / "config.json"
    config.write_text('{"logDirectory": "log", // as it is\n}')
    monkeypatch.setenv("TASKMASTER_CONFIG", str(config))
    status, out, err = run("verify")
    assert (status, out) == (78, "")
    assert f"{tmp_path}/log/audit.jsonl: found that it cannot be opened (No such file" in err
    status, out, _ = run("keygen")
    assert status == 0
    written(tmp_path / "log/audit.jsonl", seal=tmp_path / "log/audit.seal")
    status, out, _ = run("verify")
    assert status == 0
    assert "seals: 1, not checked, which takes --key" in out
    config.write_text('{"logDirectory": "log", "auditSealFile": null}')
    status, _, err = run("keygen")
    assert status == 78
    assert "auditSealFile: found null" in err


def test_another_daemon_is_not_taken_for_ours(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server is named its log is meant: none at a default place is called good instead."""
    (tmp_path / "log").mkdir()
    config = tmp_path / "config.json"
    config.write_text('{"logDirectory": "log"}')
    monkeypatch.setenv("TASKMASTER_CONFIG", str(config))
    written(tmp_path / "log/audit.jsonl")
    assert run("verify")[0] == 0
    monkeypatch.setenv("TASKMASTER_SERVER", str(tmp_path / "none.sock"))
    status, out, err = run("verify")
    assert (status, out) == (69, "")
    assert "audit verify FILE" in err
    status, out, err = run("keygen")
    assert (status, out) == (2, "")
    assert "--file" in err


def test_a_key_and_what_it_proves(run: Run, tmp_path: Path) -> None:
    """The verification key is shown once and is in no file; it proves how far the log is sealed."""
    path, seal = tmp_path / "audit.jsonl", tmp_path / "seal"
    status, out, _ = run("keygen", "--file", seal)
    match = KEY.search(out)
    assert status == 0
    assert match
    assert stat.S_IMODE(seal.stat().st_mode) == 0o600
    assert match[1].replace("-", "")[:32].encode() not in seal.read_bytes()
    status, out, err = run("keygen", "--file", seal)
    assert (status, out) == (1, "")
    assert f"{seal} is there already; nothing was made" in err
    written(path, 10, seal=seal)
    written(path, 3)
    (tmp_path / "key").write_text(f" {match[1].upper()} \n")
    for option in (("--key", match[1]), ("--key-file", tmp_path / "key")):
        status, out, err = run("verify", *option, path)
        assert (status, err) == (0, "")
        assert "sealed up to record 10, of " in out
        assert "; 3 records after the seal are chained but not sealed yet" in out
    old, first_key = seal.read_bytes(), match[1]
    status, out, _ = run("keygen", "--file", seal, "--force", "--json")
    assert status == 0
    assert seal.read_bytes() != old
    assert sorted(os.listdir(tmp_path)) == ["audit.jsonl", "key", "seal"]
    status, _, err = run("verify", "--key", json.loads(out)["key"], path)
    assert status == 1
    assert "proves nothing: the seals here are of key" in err
    # Sealed with the new key from here on: lawfully, or by somebody who has made it to forge the rest.
    second = json.loads(out)
    written(path, 2, seal=seal)
    written(path, 3)
    status, out, err = run("verify", "--key", first_key, path)
    assert status == 1
    assert re.search(
        rf"record 17, of 2026-11-25T12:00:00.250000Z, is a seal of another key \({second['name']}\).*: "
        "9 records after the last seal checked are not proved; ",
        err,
    )
    assert out.startswith("not proved: 20 records, 1 to 20, ")
    assert (
        "sealed up to record 10, of 2026-11-25T12:00:00.250000Z (epochs 0 to 0); 9 records" in out
    )
    document = json.loads(run("verify", "--json", "--key", first_key, path)[1])
    assert (document["good"], "record 17" in document["unproved"]) == (False, True)
    status, _, err = run("verify", "--key", second["key"], path)
    assert status == 1
    assert "record 11, of " in err
    status, out, err = run("verify", "--key-file", tmp_path / "key", "--key", second["key"], path)
    assert (status, err) == (0, "")
    assert out.startswith("good: ")
    assert (
        "sealed up to record 16, of 2026-11-25T12:00:00.250000Z (2 seals of 2 keys); "
        "3 records after the seal are chained but not sealed yet"
    ) in out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["verify", "--head", "x", "F"], 2, "accepted: SEQ:HASH"),
        (["verify", "--head", "1:00", "F"], 2, "accepted: SEQ:HASH"),
        (["verify", "--key", "12", "F"], 2, "it has 2 digits instead of 36"),
        (["verify", "--key", "z" * 36, "F"], 2, "other characters than 0-9, a-f"),
        (["verify", "--key", "0" * 36, "F"], 2, "a digit is mistyped"),
        (["verify", "--key-file", "NONE", "F"], 78, "NONE: found No such file"),
        (["verify", "NONE"], 78, "NONE: found that it cannot be opened (No such file"),
        (["verify", "."], 78, "no regular file"),
        (["keygen", "--file", "NONE/seal"], 78, "NONE/seal: found that it cannot be written"),
        (["keygen", "--file", ".", "--force"], 78, ".: found"),
        (["verfy"], 2, "Did you mean 'verify'?"),
    ],
)
def test_mistakes(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    """What cannot be meant is exit status 2, a file that cannot be read 78; each says what is accepted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "F").touch()
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    assert words in err
    assert [name for name in os.listdir(tmp_path) if name != "F"] == []


def test_an_endless_line_and_a_log_without_records(run: Run, tmp_path: Path) -> None:
    """A file that is no log is said to be none, however long its lines are."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"")
    assert run("verify", path)[:2] == (0, f"no record with a hash in {path}\n")
    path.write_bytes(b"x" * 1_000_000 + b"\n" + b"y\n")
    status, _, err = run("verify", path)
    assert status == 1
    assert "line 1: a record was changed: the line is no record any more" in err


@pytest.fixture
def own(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The log of this user's daemon, sealed three times, and its verification key."""
    config = tmp_path / "config.json"
    config.write_text('{"logDirectory": "log"}')
    monkeypatch.setenv("TASKMASTER_CONFIG", str(config))
    (tmp_path / "log").mkdir()
    path, seal = tmp_path / "log/audit.jsonl", tmp_path / "log/audit.seal"
    _, out, _ = run("keygen")
    key = KEY.search(out)
    assert key
    for _ in range(3):
        written(path, 5, seal=seal)
    return path, key[1]


@pytest.mark.parametrize("cut", [1, 2, 7, 12])
def test_an_end_cut_off_with_its_seals(run: Run, own: tuple[Path, str], cut: int) -> None:
    """A sealing key that can be read tells how many seals it has made; only the last may be missing."""
    path, key = own
    assert run("verify", "--key", key)[0] == 0
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:-cut]))
    status, _, err = run("verify", "--key", key)
    if cut == 1:
        assert (status, err) == (0, ""), "as if the daemon had been killed before it wrote the seal"
    else:
        assert status == 1
        assert "the end was cut off: the sealing key has made the seal of epoch 2" in err
    path.with_name("audit.seal").unlink()
    assert run("verify", "--key", key)[0] == 0, "nobody can tell without it"


def test_a_beginning_that_nothing_proves(run: Run, own: tuple[Path, str]) -> None:
    """It is said, in words and in JSON, with exit status 1; a head behind the first seal proves it."""
    path, key = own
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[8:]))
    status, out, err = run("verify", "--key", key)
    assert status == 1
    assert "unproved: nothing here shows that the seal of epoch 0 came just before record 9" in err
    assert out.startswith("not proved: ")
    status, out, _ = run("verify", "--json", "--key", key)
    document = json.loads(out)
    assert (status, document["good"], document["finding"]) == (1, False, None)
    assert "epoch 1" in document["unproved"]
    head = json.loads(lines[-1])
    assert run("verify", "--key", key, "--head", f"{head['seq']}:{head['hash']}")[0] == 0
    assert run("verify")[0] == 0, "without a key nothing is claimed"
