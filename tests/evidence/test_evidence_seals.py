"""Seals: a log whose hashes were all made anew does not stand before the verification key."""

from __future__ import annotations

import pytest
from evidence_logs import SEED, Writer, again, hash_at, rechained, verify
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.evidence import sealstate
from taskmaster.evidence.anomaly import Kind
from taskmaster.evidence.chain import canonical, link_of, linked
from taskmaster.evidence.seals import (
    Keys,
    MistypedKey,
    first_key,
    next_key,
    read_key,
    seal_mac,
    written_key,
)

EPOCHS = 6
IN_EACH = 4


def sealed_log() -> Writer:
    """So many epochs of so many records, each sealed, and two records more."""
    writer = Writer()
    for epoch in range(EPOCHS):
        for number in range(IN_EACH):
            writer.record(job=f"job-{epoch}-{number}")
        writer.seal()
    writer.record()
    writer.record()
    return writer


LOG = sealed_log().lines
#: A seal is every fifth line.
EVERY = IN_EACH + 1


def test_a_good_log() -> None:
    """Every seal holds; how far they reach is told."""
    finding, seen = verify(LOG, seed=SEED)
    assert finding is None
    assert seen.checked == EPOCHS
    assert seen.sealed is not None
    assert (seen.sealed.seq, seen.sealed.epoch) == (EVERY * EPOCHS - 1, EPOCHS - 1)


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_the_whole_chain_made_anew(epoch: int) -> None:
    """A record of any epoch changed, all hashes made to fit: found at that epoch's seal, which is named."""
    at = epoch * EVERY + 1
    changed = again(LOG[at], text=(b"job-%d-1" % epoch, b"job-X"))
    attacked = rechained([*LOG[:at], changed, *LOG[at + 1 :]])
    finding, seen = verify(attacked, seed=SEED)
    assert finding is not None
    # The seal's own words are of another record now; with those made to fit too, its MAC is wrong.
    assert (finding.kind, finding.seq) == (Kind.REWRITTEN, max(1, epoch * EVERY))
    assert finding.place.line == (epoch + 1) * EVERY
    assert seen.checked == epoch


def forged(key: bytes, epoch: int, lines: list[bytes], start: int) -> list[bytes]:
    """All from ``start`` on made anew, with seals made by whoever has the key of ``epoch``."""
    made = lines[:start]
    for line in lines[start:]:
        link = link_of(line)
        assert link is not None
        prev = hash_at(made[-1]) if made else link.prev
        if link.event == "audit.sealed":
            state = sealstate.decode(sealstate.encode(sealstate.begin(SEED)))
            of = (link.seq - 1) // EVERY
            used = key
            for _ in range(of - epoch):
                used = next_key(used)
            mac = seal_mac(used, state.name, of, link.seq - 1, prev)
            fields = {"epoch": of, "key": state.name, "mac": mac}
            fields |= {"sealedHash": prev, "sealedSeq": link.seq - 1}
            common = {"event": link.event, "seq": link.seq, "prev": prev, "timestamp": "T"}
            made.append(linked(canonical(fields | common))[0])
        else:
            made.append(again(line, prev))
    return made


@pytest.mark.parametrize("noon", [1, 3, 5])
def test_who_breaks_in_at_noon_cannot_rewrite_the_morning(noon: int) -> None:
    """With the key of an epoch its records can be forged, and those after; those before cannot."""
    key = first_key(SEED)
    for _ in range(noon):
        key = next_key(key)
    for epoch in range(EPOCHS):
        at = epoch * EVERY + 1
        changed = again(LOG[at], text=(b"job-%d-1" % epoch, b"job-X"))
        finding, _ = verify(forged(key, noon, [*LOG[:at], changed, *LOG[at + 1 :]], at), seed=SEED)
        if epoch >= noon:
            assert finding is None
        else:
            assert finding is not None
            assert finding.kind is Kind.REWRITTEN


def test_a_morning_made_anew_with_the_key_of_noon() -> None:
    """A whole log that begins with a later epoch than the first is none: the seals of the morning are missing."""
    writer = Writer()
    for _ in range(3):
        writer.seals = sealstate.sealed(writer.seals, 1, "0" * 64)
    writer.record(job="forged")
    writer.seal()
    finding, _ = verify(writer.lines, seed=SEED)
    assert finding is not None
    assert "the log begins at record 1" in finding.text
    # What rotation has left of a log begins later, and with whichever epoch that was.
    rest = Writer(first=500, prev="a" * 64)
    for _ in range(3):
        rest.seals = sealstate.sealed(rest.seals, 1, "0" * 64)
    rest.record(job="there")
    rest.seal()
    assert verify(rest.lines, seed=SEED)[0] is None


def test_epochs_taken_out() -> None:
    """Records of a whole epoch removed with their seal, numbers and hashes made to fit: a number is missing."""
    writer = Writer()
    for number in range(3):
        writer.record(job=f"job-{number}")
        if number == 1:
            writer.seals = sealstate.sealed(writer.seals, 1, "0" * 64)
        else:
            writer.seal()
    finding, _ = verify(writer.lines, seed=SEED)
    assert finding is not None
    assert finding.kind is Kind.REWRITTEN
    assert "epoch 2 after epoch 0" in finding.text


def test_a_seal_tells_of_an_end_that_was_cut() -> None:
    """A log cut while the daemon was down: the next seal says what had been there."""
    writer = Writer()
    for _ in range(5):
        writer.record()
    state = sealstate.sealed(writer.seals, writer.seq, writer.hash)
    cut = Writer()
    cut.record()
    cut.record()
    last = state.last
    assert last is not None
    cut.record("audit.sealed", **{name: getattr(last, name) for name in last.__struct_fields__})
    finding, _ = verify(cut.lines)
    assert finding is not None
    assert (finding.kind, finding.seq) == (Kind.CUT, 3)


def test_the_key_of_another_log() -> None:
    """Seals of another key are counted by its name and prove nothing."""
    finding, seen = verify(LOG, seed=bytes(16))
    assert finding is None
    assert seen.checked == 0
    assert seen.sealed is None
    assert sum(seen.seals.values()) == EPOCHS


def test_a_log_whose_beginning_is_gone() -> None:
    """After a rotation the first seal that is there is checked by the key of its own epoch."""
    finding, seen = verify(LOG[2 * EVERY + 2 :], seed=SEED)
    assert finding is None
    assert seen.first_epoch == 2
    assert seen.checked == EPOCHS - 2


@given(st.binary(min_size=16, max_size=16), st.data())
def test_a_key_on_paper(seed: bytes, data: st.DataObject) -> None:
    """What is shown can be typed in with any spaces and case; a wrong digit is noticed, or it is that key."""
    text = written_key(seed)
    assert read_key(f"  {text.upper().replace('-', ' ')}\n") == seed
    at = data.draw(st.integers(0, len(text) - 1))
    typed = text[:at] + data.draw(st.sampled_from("0123456789abcdefg-")) + text[at + 1 :]
    if typed.replace("-", "") == text.replace("-", ""):
        assert read_key(typed) == seed
        return
    try:
        found = read_key(typed)
    except MistypedKey:
        return
    assert found != seed


def test_keys_are_the_same_in_any_order() -> None:
    """Epochs asked for backwards have the keys that they have forwards."""
    keys = Keys(SEED)
    forwards = [keys.of(epoch) for epoch in range(5)]
    assert [keys.of(epoch) for epoch in reversed(range(5))] == forwards[::-1]
    assert len(set(forwards)) == 5
