"""Logs whose beginning is gone: when the first seal proves it, and what a thief of the key can do."""

from __future__ import annotations

import datetime

import msgspec
import pytest
from evidence_logs import SEED, hash_at, verify

from taskmaster.evidence import sealstate
from taskmaster.evidence.chain import NOTHING, canonical, linked
from taskmaster.evidence.spans import Spans, seconds

HOUR = 3600
MORNING = datetime.datetime(2026, 11, 28, 8, tzinfo=datetime.timezone.utc)


def stamp(at_s: float) -> str:
    when = MORNING + datetime.timedelta(seconds=at_s)
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Writer:
    """The daemon, or somebody with its key, on a clock of the test."""

    def __init__(
        self, first: int = 1, prev: str = NOTHING, state: sealstate.SealState | None = None
    ):
        self.lines: list[bytes] = []
        self.seq, self.hash = first - 1, prev
        self.state = sealstate.begin(SEED) if state is None else state
        self.at_s = 0.0

    def record(self, event: str = "job.added", **fields: object) -> None:
        self.seq += 1
        common = {"event": event, "seq": self.seq, "prev": self.hash, "timestamp": stamp(self.at_s)}
        line, digest = linked(canonical({**fields, **common}))
        self.lines.append(line)
        self.hash = digest.decode()

    def seal(self) -> None:
        self.state = sealstate.sealed(self.state, self.seq, self.hash, stamp(self.at_s))
        assert self.state.last is not None
        self.record("audit.sealed", **msgspec.structs.asdict(self.state.last))

    def rotate(self) -> int:
        """Begin a new file as the daemon does; where it begins."""
        begins_at = len(self.lines)
        seal = self.state.last
        self.record("audit.rotated", seal=None if seal is None else msgspec.structs.asdict(seal))
        return begins_at

    def work(self, epochs: int, every_s: float = 900.0) -> None:
        for _ in range(epochs):
            for _ in range(3):
                self.record(job="web")
                self.at_s += every_s / 3
            self.seal()


def doubted(lines: list[bytes], **known: object) -> str:
    finding, seen = verify(lines, seed=SEED, **known)  # type: ignore[arg-type]
    assert finding is None, finding
    return seen.doubt()


def test_an_honest_log_that_was_rotated() -> None:
    """Whichever files are left of it, what they hold is proved; so is the whole log, and one sealed late."""
    writer = Writer()
    writer.work(4)
    begins = []
    for _ in range(3):
        writer.record(job="db")
        begins.append(writer.rotate())
        writer.work(3)
    assert doubted(writer.lines) == ""
    for begin in begins:
        assert doubted(writer.lines[begin:]) == ""
    late = Writer(first=100, prev="a" * 64)
    late.work(2)
    assert doubted(late.lines) == "", "sealed for the first time after the beginning was gone"


def test_an_older_log_needs_a_head() -> None:
    """Without the seal before it the beginning is not proved; a head behind the first seal proves it, no other."""
    writer = Writer()
    writer.work(8)
    left = writer.lines[10:]
    assert "nothing here shows that the seal of epoch 1 came just before record 11" in doubted(left)
    heads = {number: {number: hash_at(writer.lines[number - 1])} for number in (11, 13, 30)}
    # Record 11 is the last that the first seal here is over.
    assert doubted(left, heads=heads[11]) == ""
    assert doubted(left, heads=heads[30]) == ""
    assert doubted(writer.lines[8:], heads=heads[11]) == ""
    assert doubted(writer.lines[9:], heads={10: hash_at(writer.lines[9])}) != ""


def stolen(at_epoch: int) -> Writer:
    """What somebody has who breaks in at the end of the morning: the daemon's log and its key."""
    writer = Writer()
    writer.work(at_epoch)
    return writer


def test_a_morning_of_their_own() -> None:
    """Everything before left out as if rotated away, and a morning written with the key of noon."""
    real = stolen(16)
    forged = Writer(first=40, prev="b" * 64, state=real.state)
    forged.work(1, 3.5 * HOUR)
    finding, seen = verify(forged.lines, seed=SEED)
    assert finding is None
    assert "whoever had the sealing key of epoch 16" in seen.doubt()


@pytest.mark.parametrize("epochs", [1, 14])
def test_a_morning_behind_the_last_true_seal(epochs: int) -> None:
    """With the last true seal before it, in one epoch or in many: it would be older than that seal."""
    real = stolen(16)
    forged = Writer(first=real.seq + 1, prev="b" * 64, state=real.state)
    forged.rotate()
    forged.work(epochs, 3.5 * HOUR / epochs)
    assert "older than the seal before them" in doubted(forged.lines)


def test_an_early_seal_before_it() -> None:
    """With a true seal of the morning before it: the epochs between that and the first here are missing."""
    real = stolen(16)
    early = stolen(5)
    forged = Writer(first=early.seq + 1, prev="b" * 64, state=real.state)
    forged.at_s = early.at_s
    assert early.state.last is not None
    forged.record("audit.rotated", seal=msgspec.structs.asdict(early.state.last))
    forged.work(10)
    assert "nothing here shows that the seal of epoch 15" in doubted(forged.lines)


@pytest.mark.parametrize(
    "change",
    [
        {"mac": "0" * 64},
        {"sealedAt": stamp(-HOUR)},
        {"epoch": 14},
        {"sealedSeq": 7},
        {"key": "0" * 16},
        {"sealedAt": ""},
        {"epoch": 2**53},
        {"mac": 7},
    ],
)
def test_a_seal_that_was_touched(change: dict[str, object]) -> None:
    """A seal before the log that is not as it was made proves nothing, and nothing crashes."""
    real = stolen(16)
    forged = Writer(first=real.seq + 1, prev="b" * 64, state=real.state)
    assert real.state.last is not None
    forged.at_s = real.at_s
    forged.record("audit.rotated", seal={**msgspec.structs.asdict(real.state.last), **change})
    forged.work(2)
    assert doubted(forged.lines) != ""


def test_what_remains_possible() -> None:
    """Whoever has the key of the epoch that runs can write what comes after the last seal: no more than that."""
    real = stolen(16)
    forged = Writer(first=real.seq + 1, prev="b" * 64, state=real.state)
    forged.at_s = real.at_s
    forged.rotate()
    forged.work(2)
    assert doubted(forged.lines) == ""


def test_epochs_that_are_too_long() -> None:
    """Named with their records; one as long as it may be is not, nor one of which the times cannot be read."""
    writer = Writer()
    writer.work(3, 900)
    writer.work(1, 3 * HOUR)
    writer.work(2, 900)
    _, seen = verify(writer.lines, seed=SEED, seal_s=900.0)
    (long,) = seen.spans.long
    assert (long.epoch, long.first, long.last, long.seconds) == (3, 13, 15, 2 * HOUR)
    assert verify(writer.lines, seed=SEED)[1].spans.long == []
    odd = Spans(1.0)
    for text in ("", "T1", "2026-99-99T99:99:99Z", "9999-12-31T23:59:59.999999Z"):
        odd.record(1, text)
        odd.sealed(1)


def test_a_clock_that_is_set_back() -> None:
    """Said, with the record; what comes a moment out of order is nothing."""
    writer = Writer()
    writer.work(2)
    writer.at_s -= 1
    writer.record(job="web")
    assert verify(writer.lines)[1].spans.back_at is None
    writer.at_s -= HOUR
    writer.record(job="web")
    _, seen = verify(writer.lines)
    assert (seen.spans.back_count, seen.spans.back_at) == (1, writer.seq)


@pytest.mark.parametrize("year", [1970, 1999, 2000, 2024, 2026, 2100])
@pytest.mark.parametrize("day", [1, 59, 60, 61, 365])
def test_seconds(year: int, day: int) -> None:
    """Times of records as seconds since 1970, leap years and all."""
    when = datetime.datetime(year, 1, 1, 13, 14, 15, 250_000, tzinfo=datetime.timezone.utc)
    when += datetime.timedelta(days=day - 1)
    assert seconds(when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")) == when.timestamp()
