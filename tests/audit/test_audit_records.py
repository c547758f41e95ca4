"""One record: its keys, its values whatever they are, and the vocabulary it is part of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.audit import KEYS, Event
from taskmaster.audit.events import COMMON_KEYS
from taskmaster.audit.rendering import REFUSED_FIELDS, Renderer, milliseconds
from taskmaster.evidence.chain import LONGEST_LINE, NOTHING, canonical, link_of, linked

DOCUMENT = Path(__file__).parents[2] / "docs" / "audit.rst"

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
    max_leaves=10,
)


def line_of(seq: int, event: Event, fields: dict[str, Any], clock: float = 0.0) -> bytes:
    """The line of a record as the log writes it."""
    text, before, after = Renderer(lambda: clock).render(event, fields)
    return linked(text % (*before, NOTHING.encode(), seq, *after))[0]


def rendered(event: Event = Event.JOB_ADDED, /, clock: float = 0.0, **fields: object) -> Any:
    return json.loads(line_of(1, event, fields, clock))


def test_keys_stand_in_a_fixed_order() -> None:
    """Sorted, the hash last, None included."""
    record = rendered(Event.PROCESS_EXITED, job="web", exitCode=None, signal=9)
    keys = ["event", "exitCode", "job", "prev", "seq", "signal", "timestamp", "hash"]
    assert list(record) == keys
    assert record["event"] == "process.exited"
    assert record["exitCode"] is None


@pytest.mark.parametrize(
    ("clock", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1795608000.25, "2026-11-25T12:00:00.250000Z"),
        (1795607999.999999, "2026-11-25T11:59:59.999999Z"),
    ],
)
def test_timestamp_is_utc_with_microseconds(clock: float, text: str) -> None:
    """ISO 8601, UTC, always six digits after the point."""
    assert rendered(clock=clock)["timestamp"] == text


def test_timestamp_follows_a_clock_that_is_set_back() -> None:
    """The text kept for a second is not used for another one."""
    times = iter([100.5, 100.75, 99.5])
    renderer = Renderer(lambda: next(times))
    seconds = [renderer.timestamp()[17:] for _ in range(3)]
    assert seconds == ["40.500000Z", "40.750000Z", "39.500000Z"]


@pytest.mark.parametrize("field", sorted(REFUSED_FIELDS))
def test_a_field_that_may_hold_a_secret_is_refused(field: str) -> None:
    """data, env and the log's own keys are mistakes of the caller, told by name."""
    with pytest.raises(ValueError, match=f"the field {field}"):
        Renderer(lambda: 0.0).render(Event.JOB_ADDED, {field: "x"})


@given(st.dictionaries(st.text(min_size=1).filter(lambda key: key not in REFUSED_FIELDS), values))
def test_any_value_from_outside_makes_one_short_line(fields: dict[str, Any]) -> None:
    """Whatever a client put into it, a record is one line of JSON, below the cap."""
    line = line_of(7, Event.COMMAND_REQUESTED, fields)
    assert line.count(b"\n") == 1
    assert len(line) < LONGEST_LINE
    assert json.loads(line)["seq"] == 7
    link = link_of(line)
    assert link is not None
    assert link.intact
    assert (link.seq, link.prev) == (7, NOTHING)


@given(
    st.dictionaries(
        st.sampled_from(["event", "id", "job", "prev", "seq", "uptime"]),
        st.integers(-(2**53), 2**53) | st.text() | st.floats(0, 2**53).map(lambda s: round(s, 3)),
    )
)
def test_what_is_hashed_can_be_written_again_by_others(record: dict[str, Any]) -> None:
    """The canonical form is what json.dumps gives, with keys sorted and numbers that are whole as such."""
    whole = {
        key: int(value) if isinstance(value, float) and value == int(value) else value
        for key, value in record.items()
    }
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(record) == text.encode()


@pytest.mark.parametrize("took_s", [0.0, 0.00012, 0.003, 1.234567])
def test_a_form_makes_the_same_record(took_s: float) -> None:
    """What comes again and again is rendered once, and the lines are those it would have had."""
    renderer = Renderer(lambda: 1795608000.25)
    fields = {"command": "status", "job": "100%d", "peer": {"uid": 0}}
    form = renderer.form(Event.COMMAND_COMPLETED, fields, prefix="a%b-", timed=True)
    assert form is not None
    args = (b"h" * 64, 7)
    for _ in range(2):
        took = milliseconds(round(took_s * 1_000_000))
        again = form.text % (took, 12, *args, *renderer.moment())
        whole = fields | {"id": "a%b-12", "durationMs": round(took_s * 1000, 3)}
        text, before, after = renderer.render(Event.COMMAND_COMPLETED, whole)
        assert again == text % (*before, *args, *after)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 5_000_000,
        ["y" * 2000] * 5000,
        {"k" * 5000: "v" * 5000},
        {str(n): n for n in range(90000)},
    ],
    ids=["text", "list", "long-key", "many-keys"],
)
def test_a_huge_value_is_cut(value: object) -> None:
    """A client cannot fill the disk with one refused command; the record still says what it was."""
    line = line_of(1, Event.COMMAND_REQUESTED, {"command": "start", "job": value})
    assert len(line) <= LONGEST_LINE
    assert json.loads(line)["command"] == "start"


def test_many_huge_values_are_cut() -> None:
    """Also where the fields are huge only together."""
    fields = {f"field{number}": ["x" * 1000] * 30 for number in range(500)}
    line = line_of(1, Event.COMMAND_REQUESTED, fields)
    assert len(line) <= LONGEST_LINE
    assert "field0" in json.loads(line)["cut"]


def test_text_that_is_no_utf8_is_escaped() -> None:
    """A file name of arbitrary bytes, as Python has it, appears with backslashes."""
    assert rendered(job="a\udcffb")["job"] == "a\\udcffb"


def documented() -> dict[str, tuple[str, ...]]:
    """Events and their keys as the document's tables have them."""
    table: dict[str, tuple[str, ...]] = {}
    event = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if start := re.match(r"``([a-z]+\.[a-z_]+)``$", line):
            event = start[1]
            table[event] = ()
        elif not line.startswith("  "):
            event = ""
        if event and (keys := re.search(r"\[(.*)\]$", line)):
            table[event] += tuple(re.findall(r"``(\w+)``", keys[1]))
    return table


def test_the_document_lists_every_event_with_its_keys() -> None:
    """docs/audit.rst and the vocabulary in the code are the same, in the same order."""
    assert documented() == {event.value: keys for event, keys in KEYS.items()}
    assert list(documented()) == [event.value for event in Event]


def test_no_event_has_a_key_that_is_refused() -> None:
    """What the vocabulary promises can be recorded."""
    for event, keys in KEYS.items():
        assert not REFUSED_FIELDS & set(keys), event
        assert len(set(keys)) == len(keys), event
    assert set(COMMON_KEYS) < REFUSED_FIELDS
