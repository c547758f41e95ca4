"""Histories have an end: of one job, of deleted jobs, of all; and nobody's past goes because of another's."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone

import pytest
from config_disk import UID, folder

from taskmaster.config.keeping import DELETED_PART, JOB_PART, LEAST_KEPT, Past, surplus
from taskmaster.config.store import JobStore
from taskmaster.errors import FileError

MIB = 1 << 20
MOST = 64 * MIB


@pytest.fixture
def jobs(tmp_path):
    return folder(tmp_path / "jobs")


def opened(jobs, most=MOST):
    seconds = itertools.count()
    start = datetime(2026, 11, 24, 9, 0, tzinfo=timezone.utc)
    return JobStore(
        jobs,
        UID,
        clock=lambda: start + timedelta(seconds=next(seconds)),
        history_max_bytes=most,
    )


@pytest.fixture
def store(jobs):
    return opened(jobs)


def large(number, size=MIB - 64):
    return b'{"cmd": "%08d"} //' % number + b"x" * (size - 32)


def taken(jobs):
    return sum(one.stat().st_size for one in (jobs / ".history").rglob("*") if one.is_file())


def test_one_job(store, jobs):
    """However often a large file is pushed, its history has an end, and the newest versions are there."""
    for number in range(20):
        store.put("web", large(number, 200_000), who="alice (pid 7, unix)")
    assert taken(jobs) <= MOST // JOB_PART
    kept = store.history("web")
    assert len(kept) == 5
    assert [one.number for one in kept] == list(range(16, 21))
    assert store.version("web", 20) == large(19, 200_000)


def test_the_two_newest_stay(store, jobs):
    """Of a job that there is, a rollback is always possible, whatever its files take."""
    for number in range(5):
        store.put("web", large(number), who="alice")
    assert len(store.history("web")) == LEAST_KEPT
    before = store.version_before("web")
    assert before is not None
    assert store.version("web", before.number) == large(3)


def test_deleted_jobs(store, jobs):
    """What was deleted is kept as long as there is room, the newest longest, and then is gone whole."""
    for number in range(40):
        store.put(f"t-{number}", large(number, 500_000), who="alice")
        store.remove(f"t-{number}", who="alice")
    assert taken(jobs) <= MOST // DELETED_PART
    assert store.history("t-0") == []
    assert not (jobs / ".history/t-0").exists()
    assert store.version("t-39", store.history("t-39")[-1].number) == large(39, 500_000)
    with pytest.raises(FileError, match="no such version"):
        store.version("t-0", 1)


def test_another_does_not_lose_their_past(store, jobs):
    """Who deletes jobs by the thousand loses their own; what root had deleted before is still there."""
    store.put("db", large(0, 300_000), who="root (pid 1, unix)")
    store.remove("db", who="root (pid 2, unix)")
    store.put("live", large(1, 300_000), who="root (pid 3, unix)")
    for number in range(30):
        store.put(f"t-{number}", large(number, 400_000), who=f"alice (pid {number}, tcp)")
        store.remove(f"t-{number}", who=f"alice (pid {number}, tcp)")
    assert [one.action for one in store.history("db")] == ["put", "deleted"]
    assert store.history("live")


def test_after_a_restart(store, jobs):
    """The limits hold for what is found at a start, also by one with a smaller limit."""
    for number in range(10):
        store.put(f"live-{number}", large(number, 300_000), who="alice")
        store.put(f"gone-{number}", large(number, 300_000), who="alice")
        store.remove(f"gone-{number}", who="alice")
    opened(jobs, 16 * MIB)
    gone = [n for n in range(10) if (jobs / f".history/gone-{n}").exists()]
    assert gone == [7, 8, 9]
    assert all(store.history(f"live-{n}") for n in range(10))
    again = opened(jobs, 0)
    again.put("free", large(0), who="alice")
    assert again.history("free")


def test_a_job_that_comes_back(store, jobs):
    """A job that was deleted and pushed again is one that there is: its two newest versions stay."""
    store.put("web", large(0, 900_000), who="alice")
    store.remove("web", who="alice")
    store.put("web", large(1, 900_000), who="alice")
    for number in range(20):
        store.put(f"t-{number}", large(number, 900_000), who="alice")
        store.remove(f"t-{number}", who="alice")
    assert len(store.history("web")) == LEAST_KEPT


def past(name, *sizes, owner="alice", deleted=False, at="2026"):
    versions = [(f"{number:06d}-x", size) for number, size in enumerate(sizes)]
    return Past(name, versions, owner, deleted, at)


def test_what_goes():
    """In the order that is promised: each job, then deleted ones by who takes the most, then the largest."""
    assert surplus([past("a", *[600] * 10)], 64_000) == {"a": 2}
    assert surplus([past("a", *[10] * 10)], 64_000) == {}
    gone = [
        past("old", 900, owner="root", deleted=True, at="2020"),
        *(past(f"t{n}", 900, deleted=True, at=f"2026-{n}") for n in range(8)),
    ]
    assert surplus(gone, 64_000) == {f"t{n}": 0 for n in range(5)}
    many = [past(f"j{n}", 300, 300, 300) for n in range(100)]
    kept = surplus([*many, past("small", 1, 1, 1)], 80_000)
    assert "small" not in kept
    assert set(kept.values()) == {2}


def test_it_is_quick():
    """A hundred thousand histories that are all too many are decided about in one go."""
    pasts = [past(f"j{n}", 10, 10, 10, deleted=n % 2 == 0, at=str(n)) for n in range(100_000)]
    assert len(surplus(pasts, 1 << 20)) > 49_000
