"""The chain: whatever is done to a log is found, and the first record concerned is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from evidence_logs import Writer, again, hash_at, log, rechained, verify
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.evidence.anomaly import Kind
from taskmaster.evidence.chain import NOTHING, link_of

LOG = log(20)
HEAD = {20: hash_at(LOG[-1])}
Lines = list[bytes]


def flipped(lines: Lines, index: int, at: int) -> Lines:
    line = lines[index]
    at %= len(line)
    changed = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
    return [*lines[:index], changed, *lines[index + 1 :]]


def moved(lines: Lines, source: int, target: int) -> Lines:
    rest = [*lines[:source], *lines[source + 1 :]]
    return [*rest[:target], lines[source], *rest[target:]]


def unchained(line: bytes) -> bytes:
    """The record without its hash, and as it was before there was a chain if ``prev`` goes too."""
    return line[: line.rindex(b',"hash"')] + b"}\n"


def old(line: bytes) -> bytes:
    at = line.index(b',"prev"')
    return unchained(line[:at] + line[at + 74 :])


FAKE = again(LOG[9], text=(b"job-9", b"job-X"))

ATTACKS: dict[str, tuple[Callable[[Lines], Lines], Kind, int | None, int]] = {
    "a byte of the first key": (lambda o: flipped(o, 9, 3), Kind.CHANGED, 10, 10),
    "a byte of the opening brace": (lambda o: flipped(o, 9, 0), Kind.CHANGED, 10, 10),
    "a byte of the hash": (lambda o: flipped(o, 9, -20), Kind.CHANGED, 10, 10),
    "the closing brace": (lambda o: flipped(o, 9, -2), Kind.CHANGED, 10, 10),
    "the line end": (lambda o: flipped(o, 9, -1), Kind.CHANGED, 10, 10),
    "a byte of the last": (lambda o: flipped(o, 19, 30), Kind.CHANGED, 20, 20),
    "a byte of the first": (lambda o: flipped(o, 0, 30), Kind.CHANGED, 1, 1),
    "removed": (lambda o: o[:9] + o[10:], Kind.REMOVED, 10, 10),
    "three removed": (lambda o: o[:9] + o[12:], Kind.REMOVED, 10, 10),
    "swapped": (lambda o: [*o[:9], o[10], o[9], *o[11:]], Kind.REORDERED, 11, 10),
    "two far apart swapped": (
        lambda o: [*o[:9], o[14], *o[10:14], o[9], *o[15:]],
        *(Kind.REORDERED, 15, 10),
    ),
    "moved back": (lambda o: moved(o, 9, 13), Kind.REORDERED, 11, 10),
    "moved forward": (lambda o: moved(o, 13, 9), Kind.REORDERED, 14, 10),
    "an old one again": (lambda o: [*o[:10], o[2], *o[10:]], Kind.INSERTED, 3, 11),
    "the same again": (lambda o: [*o[:10], o[9], *o[10:]], Kind.INSERTED, 10, 11),
    "a later one before": (lambda o: [*o[:10], o[14], *o[10:]], Kind.INSERTED, 15, 11),
    "another of its number before": (lambda o: [*o[:9], FAKE, *o[9:]], Kind.INSERTED, 10, 10),
    "another of its number behind": (lambda o: [*o[:10], FAKE, *o[10:]], Kind.INSERTED, 10, 11),
    "no record": (lambda o: [*o[:10], b"hello\n", *o[10:]], Kind.INSERTED, None, 11),
    "the first with half a hash before all": (
        lambda o: [o[0][:-10] + o[0][-9:], *o],
        *(Kind.CHANGED, 1, 1),
    ),
    "no record before all": (lambda o: [b"hello\n", *o], Kind.INSERTED, None, 1),
    "replaced, its hash fits": (lambda o: [*o[:9], FAKE, *o[10:]], Kind.CHANGED, 10, 10),
    "a hash taken away": (lambda o: [*o[:9], unchained(o[9]), *o[10:]], Kind.CHANGED, 10, 10),
    "ten hashes taken away": (
        lambda o: [*map(unchained, o[:10]), *o[10:]],
        *(Kind.CHANGED, 1, 1),
    ),
    "ten made old ones": (lambda o: [*map(old, o[:10]), *o[10:]], Kind.CHANGED, 10, 11),
    "the end cut": (lambda o: o[:15], Kind.CUT, 16, 15),
    "all cut": (lambda o: [], Kind.CUT, 20, 0),
    "all made anew": (
        lambda o: rechained([*o[:9], FAKE, *o[10:]]),
        *(Kind.REWRITTEN, 20, 20),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_done_is_named(name: str) -> None:
    """Each attack by its kind, with the number of the first record concerned and its line."""
    attack, kind, seq, line = ATTACKS[name]
    finding, _ = verify(attack(list(LOG)), heads=HEAD)
    assert finding is not None
    assert (finding.kind, finding.seq, finding.place.line) == (kind, seq, line), finding.text


def test_a_good_log() -> None:
    """Nothing is found, all is covered, and the head is that of the last record; also from the middle on."""
    finding, seen = verify(LOG, heads=HEAD)
    assert finding is None
    assert seen.first is not None
    assert seen.last is not None
    assert (seen.first.link.seq, seen.last.link.seq, seen.last.link.hash) == (1, 20, HEAD[20])
    finding, seen = verify(LOG[7:])
    assert finding is None
    assert seen.first is not None
    assert seen.first.link.seq == 8
    assert seen.first.link.prev != NOTHING


def test_who_makes_all_anew_is_found_by_the_head_alone() -> None:
    """Without head or key, a log made anew from one record on is as good as another: that is what they are for."""
    attacked = rechained([*LOG[:9], FAKE, *LOG[10:]])
    assert verify(attacked)[0] is None
    finding, _ = verify(attacked, heads={15: hash_at(LOG[14])})
    assert finding is not None
    assert (finding.kind, finding.seq) == (Kind.REWRITTEN, 15)
    assert verify(attacked, heads={9: hash_at(LOG[8])})[0] is None


@st.composite
def mutated(draw: st.DrawFn) -> Lines:
    """The log after one to three of: a byte changed, added or taken out; a line removed, copied or moved."""
    data = list(LOG)
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(data) - 1))
        line = data[index]
        at = draw(st.integers(0, max(0, len(line) - 1)))
        byte = bytes([draw(st.integers(0, 255))])
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[index] = line[:at] + byte + line[at + 1 :]
        elif kind == 1:
            data[index] = line[:at] + byte + line[at:]
        elif kind == 2:
            data[index] = line[:at] + line[at + 1 :]
        elif kind == 3 and len(data) > 1:
            del data[index]
        elif kind == 4:
            data.insert(draw(st.integers(0, len(data))), line)
        else:
            data = moved(data, index, draw(st.integers(0, len(data) - 1)))
    return data


@given(mutated())
def test_any_change_is_found(lines: Lines) -> None:
    """Whatever is done to bytes and lines, with the head at hand it is found, at or before the first difference
    that a reader sees; and nothing is found where nothing was done."""
    finding, seen = verify(lines, heads=HEAD)
    now = b"".join(lines).splitlines(keepends=True)
    same = 0
    while same < len(LOG) and same < len(now) and now[same] == LOG[same]:
        same += 1
    if now == LOG:
        assert finding is None
        return
    if same == 0 and now and now[0] in LOG[1:]:
        # Its beginning removed: as after a rotation, which is said, unless more was done.
        assert seen.first is not None
        assert seen.first.link.seq > 1
        return
    assert finding is not None
    assert finding.text
    assert same <= finding.place.line <= same + 2
    assert seen.last is None or seen.last.link.seq <= same + 1


@given(st.lists(st.binary(max_size=300)))
def test_any_bytes_end_in_a_verdict(lines: Lines) -> None:
    """A file of anything is read to its end; without a record with a hash nothing is called proved."""
    _, seen = verify(lines)
    assert seen.last is None


def test_lines_that_the_daemon_has_told_of() -> None:
    """Rubbish that audit.repaired tells of is counted; rubbish that no record tells of is found."""
    writer = Writer()
    writer.record()
    writer.lines.append(b"rubb\xffish\n")
    writer.record("audit.repaired", skippedBytes=9)
    writer.record()
    finding, seen = verify(writer.lines)
    assert finding is None
    assert seen.accounted == 1
    assert seen.last is not None
    assert seen.last.link.seq == 3


RUBBISH = b'{"seq":-1,"timestamp":"T","event":"job.added"}\n'


@pytest.mark.parametrize(
    ("before", "repair", "good"),
    [
        (RUBBISH, {"skippedBytes": len(RUBBISH), "bytes": 70, "kept": False}, True),
        (RUBBISH, {"skippedBytes": 0, "bytes": len(RUBBISH) - 1, "kept": True}, True),
        (b"x\n" + RUBBISH, {"skippedBytes": 2, "bytes": len(RUBBISH) - 1, "kept": True}, True),
        (RUBBISH, {"skippedBytes": 0, "bytes": 70, "kept": False}, False),
        (RUBBISH, {"skippedBytes": 0, "bytes": len(RUBBISH) - 1, "kept": False}, False),
        (RUBBISH * 2, {"skippedBytes": len(RUBBISH), "bytes": 0, "kept": False}, False),
        (RUBBISH, {"skippedBytes": len(RUBBISH) + 1, "bytes": 0, "kept": False}, False),
        (RUBBISH, {"skippedBytes": "all"}, False),
        (RUBBISH, {}, False),
    ],
)
def test_a_repair_accounts_for_its_own_bytes_alone(
    before: bytes, repair: dict[str, object], good: bool
) -> None:
    """Lines put before a true record of a repair are found: it says how many bytes are no records."""
    writer = Writer()
    writer.record()
    writer.lines.append(before)
    writer.record("audit.repaired", resumedAfter=1, **repair)
    writer.record()
    finding, _ = verify(writer.lines)
    if good:
        assert finding is None, finding.text
        return
    assert finding is not None
    assert (finding.kind, finding.seq, finding.place.line) == (Kind.INSERTED, None, 2)
    assert "a line that is no record was inserted between record 1 and record 2" in finding.text


def test_what_is_no_record_at_the_end() -> None:
    """Nothing is said to have been changed where no record is behind it."""
    for rubbish in (b"junk\n", RUBBISH * 2):
        finding, _ = verify([*LOG, rubbish])
        assert finding is not None
        assert finding.text == "a line that is no record stands after record 20"
        assert (finding.kind, finding.seq, finding.place.line) == (Kind.INSERTED, None, 21)


def test_an_older_log_goes_on_with_a_chain() -> None:
    """Records of before are counted and nothing is said to be proved of them; a number missing is found."""
    old = [b'{"seq":%d,"timestamp":"T","event":"job.added"}\n' % seq for seq in range(1, 6)]
    writer = Writer(first=6)
    for _ in range(3):
        writer.record()
    finding, seen = verify([*old, *writer.lines])
    assert finding is None
    assert seen.unchained == 5
    assert seen.first is not None
    assert seen.first.link.seq == 6
    finding, _ = verify([*old[:2], old[3], old[2], old[4], *writer.lines])
    assert finding is not None
    for without in (2, 4):
        finding, _ = verify([*old[:without], *old[without + 1 :], *writer.lines])
        assert finding is not None
        assert (finding.kind, finding.seq) == (Kind.REMOVED, without + 1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b'{"seq":-1,"timestamp":"","event":""}\n',
        b'{"seq":9007199254740993,"timestamp":"","event":""}\n',
        b'{"seq":1e3,"timestamp":"","event":""}\n',
        b'{"seq":1,"timestamp":"","event":"","prev":[]}\n',
        b"[" * 100_000 + b"\n",
        b'{"seq":1,"timestamp":"\xff","event":""}\n',
    ],
)
def test_what_is_no_record(line: bytes) -> None:
    """Hostile lines are no records, and crash nothing."""
    assert link_of(line) is None


def test_a_seal_may_come_before_the_repair_is_told() -> None:
    """Of a killed daemon the next one writes the seal that was made, and then tells of the damage it has found."""
    for told, good in ((5, True), (4, False)):
        writer = Writer()
        writer.record()
        writer.lines.append(b"junk\n")
        writer.seal()
        writer.record("audit.repaired", bytes=0, kept=False, skippedBytes=told, resumedAfter=1)
        writer.record()
        assert (verify(writer.lines)[0] is None) is good
