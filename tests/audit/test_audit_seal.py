"""Sealing: the key is evolved and the old one gone, whatever dies when; the chain goes on whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from taskmaster.audit import AuditLog, Event, generations
from taskmaster.errors import FileError
from taskmaster.evidence import sealstate
from taskmaster.evidence.chain import NOTHING
from taskmaster.evidence.seals import Keys
from taskmaster.evidence.verification import Verification

SEED = bytes(range(16))
#: What a seal does to the disk, one after the other.
STEPS = ("fdatasync", "open", "write", "fsync", "rename", "pwrite", "unlink", "close", "ftruncate")
MakeLog = Callable[..., AuditLog]
Verified = Callable[..., Verification]


@pytest.fixture
def seal(tmp_path: Path) -> Path:
    """A sealing key, just made."""
    path = tmp_path / "audit.seal"
    path.write_bytes(sealstate.encode(sealstate.begin(SEED)))
    path.chmod(0o600)
    return path


def die_at(step: int) -> None:
    """Have SIGKILL end this process before the ``step``-th call that touches the disk."""
    calls = iter(range(1_000_000))

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counting

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def record_and_seal(path: Path, seal: Path, step: int) -> NoReturn:
    """Two seals, in a child that dies at a step; exit status 0 where it did not come to that."""
    status = 1
    try:
        die_at(step)
        log = AuditLog(path, max_bytes=0, backups=0, seal=seal)
        for number in range(2):
            log.record(Event.JOB_ADDED, job=f"job-{number}")
            assert log.seal()
        log.close()
        status = 0
    finally:
        os._exit(status)


def keys_of_the_past(epoch: int) -> Iterator[bytes]:
    keys = Keys(SEED)
    for one in range(epoch):
        yield keys.of(one).hex().encode()


def test_killed_at_any_step_of_a_seal(
    path: Path, seal: Path, make_log: MakeLog, verified: Verified
) -> None:
    """At every call to the kernel: no seal is lost or made twice, and no file holds a key of the past."""
    step, died = 0, True
    while died:
        # The log goes on from one child to the next: each finds what the one before it left.
        child = os.fork()
        if child == 0:
            record_and_seal(path, seal, step)
        _, status = os.waitpid(child, 0)
        died = os.WIFSIGNALED(status)
        assert died or os.WEXITSTATUS(status) == 0
        state = sealstate.decode(seal.read_bytes())
        held = b"".join(
            file.read_bytes() for file in seal.parent.iterdir() if file.name.startswith(seal.name)
        )
        for key in keys_of_the_past(state.epoch):
            assert key not in held
        log = make_log(seal=seal)
        log.close()
        seen = verified(seed=SEED)
        # Every epoch that has ended has its seal in the log.
        assert seen.checked == state.epoch
        step += 1
    assert step > 30
    assert sorted(file.name for file in seal.parent.iterdir()) == ["audit.jsonl", "audit.seal"]


def test_a_log_that_was_cut_while_nobody_wrote(
    path: Path, seal: Path, make_log: MakeLog, verified: Verified
) -> None:
    """Who cuts the end off, with the seal over it, finds that the next start writes the seal again."""
    log = make_log(seal=seal)
    for number in range(10):
        log.record(Event.JOB_ADDED, job=f"job-{number}")
    assert log.seal()
    log.close()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    make_log(seal=seal).close()
    with pytest.raises(AssertionError, match="records 7 to 10 were cut off"):
        verified(seed=SEED)


def test_sealing_goes_on_over_rotation_and_restart(
    path: Path, seal: Path, make_log: MakeLog, verified: Verified
) -> None:
    """One chain and one row of seals over many files and starts."""
    for start in range(5):
        log = make_log(max_bytes=1500, backups=100, seal=seal)
        for number in range(7):
            log.record(Event.JOB_ADDED, job=f"job-{start}-{number}")
            log.flush(durable=False)
        assert log.seal()
        log.close()
    assert len(generations.backup_numbers(path)) > 5
    seen = verified(seed=SEED)
    assert seen.checked == 5
    assert seen.first is not None
    assert seen.first.link.prev == NOTHING


@pytest.mark.parametrize("made", ["mode", "rubbish", "link", "folder", "long"])
def test_what_is_no_sealing_key(path: Path, seal: Path, make_log: MakeLog, made: str) -> None:
    """A key that others may read, or that is none, is an error at the start that says what is accepted."""
    if made == "mode":
        seal.chmod(0o640)
    elif made == "rubbish":
        seal.write_bytes(b'{"version":1}')
    elif made == "long":
        seal.write_bytes(seal.read_bytes() + b" " * 5000)
    elif made == "link":
        seal.rename(seal.with_name("real"))
        seal.symlink_to("real")
    else:
        seal.unlink()
        seal.mkdir()
    with pytest.raises(FileError, match="sealing key") as caught:
        make_log(seal=seal)
    assert caught.value.exit_status == 78


def test_a_key_that_goes_away(seal: Path, make_log: MakeLog, verified: Verified) -> None:
    """Without its key the log is not sealed, which is an error for who asks; recording goes on."""
    log = make_log(seal=seal)
    log.record(Event.JOB_ADDED, job="a")
    seal.unlink()
    with pytest.raises(FileNotFoundError):
        log.seal()
    log.record(Event.JOB_ADDED, job="b")
    assert log.flush(durable=True)
    assert not log.look_for_seal()
    assert verified().checked == 0
