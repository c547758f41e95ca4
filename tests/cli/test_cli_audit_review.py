"""What the review decides without a daemon: times, filters, pairing, tables; each for any input."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timedelta, timezone

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.cli import app
from taskmaster.cli.audit import entries, table, times
from taskmaster.cli.audit.criteria import OUTCOMES, Criteria
from taskmaster.cli.audit.entries import Timeline
from taskmaster.wire import replies

DETERMINED = settings(deadline=None, derandomize=True)
NOW = datetime(2026, 11, 24, 9, 30, 15, tzinfo=timezone.utc)
AT = "2026-11-24T09:00:00.000000Z"


def line(seq, event, **fields):
    record = {"hash": "00", "event": event, "timestamp": AT, "seq": seq} | fields
    return json.dumps(record, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def asked(seq, name, command="stop", **fields):
    return line(seq, "command.requested", id=name, command=command, **fields)


def done(seq, name, command="stop", outcome="success", **fields):
    return line(seq, "command.completed", id=name, command=command, outcome=outcome, **fields)


def told(lines, in_order=True):
    timeline = Timeline(in_order=in_order)
    found = [entry for one in lines for entry in timeline.feed(one)]
    return found + list(timeline.rest()), timeline


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("now", "2026-11-24T09:30:15.000000Z"),
        ("today", "2026-11-24T00:00:00.000000Z"),
        (" yesterday ", "2026-11-23T00:00:00.000000Z"),
        ("2h", "2026-11-24T07:30:15.000000Z"),
        ("1h30m", "2026-11-24T08:00:15.000000Z"),
        ("45s", "2026-11-24T09:29:30.000000Z"),
        ("1w1d", "2026-11-16T09:30:15.000000Z"),
        ("09:00", "2026-11-24T09:00:00.000000Z"),
        ("9:00:30", "2026-11-24T09:00:30.000000Z"),
        ("2026-11-24", "2026-11-24T00:00:00.000000Z"),
        ("2026-11-24 09:00", "2026-11-24T09:00:00.000000Z"),
        ("2026-11-24T09:00:00.25", "2026-11-24T09:00:00.250000Z"),
        ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00.000000Z"),
        ("2026-11-24T09:00:00.123456+01:00", "2026-11-24T08:00:00.123456Z"),
        ("2026-11-24 09:00-0330", "2026-11-24T12:30:00.000000Z"),
    ],
)
def test_times(text, wanted):
    """Each accepted form, with UTC for the local time."""
    assert times.parse(text, NOW) == wanted


@pytest.mark.parametrize(
    "text",
    ["", " ", "soon", "2", "h", "-1h", "1h2w", "25:00", "9:60", "2026-13-01", "2026-02-30", "24.11.2026", "1e3s",
     "٢h", "2026-11-24T", "2026-11-24T09", "9999999w", "0000-01-01", "2026-11-24T09:00:00+99:99", "2h\0"],
)  # fmt: skip
def test_no_times(text):
    """Anything else is named, with all that is accepted."""
    with pytest.raises(ValueError, match="accepted: 2h") as caught:
        times.parse(text, NOW)
    assert repr(text) in str(caught.value)


@DETERMINED
@given(st.text(max_size=20) | st.from_regex(r"[0-9wdhms:TZ+ -]{0,24}", fullmatch=True))
def test_any_text_is_a_time_or_an_error(text):
    """No text makes anything but a moment as records have it, or a ValueError that lists what is accepted."""
    try:
        found = times.parse(text, NOW)
    except ValueError as error:
        found, said = "", str(error)
    else:
        said = ""
    assert times.ACCEPTED in said or times.shown(found, utc=True, blank="T") == found[:23] + "Z"


def test_local_time_knows_the_season(monkeypatch):
    """A clock time is that of its own day: in summer another offset than now."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = NOW.astimezone()
        assert times.parse("2026-07-01 12:00", now) == "2026-07-01T10:00:00.000000Z"
        assert times.parse("2026-11-24 12:00", now) == "2026-11-24T11:00:00.000000Z"
        assert times.parse("today", now) == "2026-11-23T23:00:00.000000Z"
        assert (
            times.shown("2026-07-01T10:00:00.123456Z", utc=False, blank=" ")
            == "2026-07-01 12:00:00.123"
        )
        assert times.shown(AT, utc=False, blank="T") == "2026-11-24T10:00:00.000"
        assert times.shown("no time", utc=False, blank="T") == "no time"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_pairs_are_told_in_the_order_they_were_asked():
    """Whatever order the answers come in; as they follow live, in that of the answers."""
    lines = [
        asked(1, "a"),
        asked(2, "b"),
        done(3, "b"),
        line(4, "process.exited", job="x"),
        done(5, "a"),
    ]
    found, _ = told(lines)
    assert [one.first.seq for one in found] == [1, 2, 4]
    assert [one.done.seq for one in found[:2]] == [5, 3]
    live, _ = told(lines, in_order=False)
    assert [one.first.seq for one in live] == [2, 4, 1]


def test_what_has_no_answer_holds_nothing_up(monkeypatch):
    """A daemon that was killed, too many unanswered commands, the same id twice: memory stays bounded."""
    found, _ = told([asked(1, "a"), line(2, "daemon.started"), asked(3, "b")])
    assert [(one.first.seq, one.lost, one.outcome) for one in found] == [
        (1, True, "none"), (2, False, "none"), (3, False, "none"),
    ]  # fmt: skip
    monkeypatch.setattr(entries, "_KEPT", 5)
    timeline = Timeline(in_order=True)
    shown = []
    for number in range(100):
        shown += timeline.feed(asked(number + 1, f"x-{number}"))
        assert len(timeline._pending) <= 6
        assert len(timeline._row) <= 6
    shown += timeline.feed(done(200, "x-99"))
    assert [one.first.seq for one in [*shown, *timeline.rest()]] == list(range(1, 101))
    twice, _ = told([asked(1, "a"), asked(2, "a"), done(3, "a")])
    assert [one.first.seq for one in twice] == [1, 2]


WORDS = st.sampled_from(
    ["web", "web-1", "db", "a.b", "stop", "status", "x-1", "process.exited", "root", "0", 'é"x']
)
RECORDS = st.builds(
    lambda event, seq, fields: {"event": event, "seq": seq, "timestamp": AT} | fields,
    st.sampled_from(["command.requested", "command.completed", "process.exited", "daemon.started"]),
    st.integers(1, 99),
    st.fixed_dictionaries(
        {"id": WORDS, "job": WORDS | st.none()},
        optional={
            "command": WORDS, "outcome": st.sampled_from([*OUTCOMES, "é"]), "cause": WORDS,
            "error": st.text(max_size=5),
            "peer": st.builds(lambda u: {"transport": "unix", "address": "/s", "uid": 0, "user": u}, WORDS),
        },
    ),
)  # fmt: skip
SOME = st.lists(WORDS, max_size=2)


@DETERMINED
@given(st.lists(RECORDS, max_size=8), SOME, SOME, SOME, SOME, SOME, st.booleans())
def test_the_quick_look_loses_nothing(records, jobs, commands, ids, users, event, everything):
    """What is shown is the same whether every line is decoded or only those that may matter."""
    lines = [json.dumps(one, separators=(",", ":"), ensure_ascii=False).encode() for one in records]
    criteria = Criteria(
        jobs=jobs, commands=commands, ids=ids, users=users, event=event, everything=everything
    )
    needed = criteria.needed()

    def shown(some):
        return [
            entry.document()
            for entry in told(some)[0]
            if criteria.match(entry) and not criteria.hides(entry)
        ]

    every, quick = shown(lines), shown([one for one in lines if needed(one)])
    assert quick == every


def test_lines_that_only_look_like_records():
    """What the verification calls no record is none here, nor is one without hash once the chain has begun."""
    old = line(1, "job.added", job="payroll").replace(b',"hash":"00"', b"")
    fakes = [line(seq, "job.changed", job="payroll") for seq in (-1, 2**53 + 1)]
    bare = line(3, "job.changed", job="payroll").replace(b',"hash":"00"', b"")
    found, timeline = told([old, line(2, "job.changed", job="payroll"), *fakes, bare])
    assert [entry.first.seq for entry in found] == [1, 2]
    assert (timeline.damaged, timeline.first_damaged) == (3, 3)


def test_what_is_hidden():
    """Commands that only read, unless refused, asked for by name, or all are asked for."""
    found, _ = told([
        asked(1, "a", "status"), done(2, "a", "status", "status"),
        asked(3, "b", "status"), done(4, "b", "status", "fail", error="Permission denied: no"),
        asked(5, "c", "kill"), done(6, "c", "kill", "fail", error="No"),
    ])  # fmt: skip

    def shown(**criteria):
        return [
            one.first.id
            for one in found
            if Criteria(**criteria).match(one) and not Criteria(**criteria).hides(one)
        ]

    assert shown() == ["b", "c"]
    assert shown(everything=True) == shown(commands=["status", "kill"]) == ["a", "b", "c"]
    assert shown(outcomes=["denied"]) == ["b"]
    assert shown(outcomes=["fail"]) == ["b", "c"]
    assert shown(ids=["a"]) == ["a"]


def test_outcomes_are_those_of_replies():
    """Every word of a reply can be asked for."""
    words = {
        word for name, word in vars(replies).items() if name.isupper() and isinstance(word, str)
    }
    assert set(OUTCOMES) == words | {"denied", "none"}


@DETERMINED
@given(
    st.lists(st.binary(max_size=80) | RECORDS.map(lambda r: json.dumps(r).encode()), max_size=12),
    st.booleans(),
)
def test_any_lines_make_rows(lines, in_order):
    """Any bytes: rows of printable text with every column, or nothing; a count of what is no record."""
    found, timeline = told(lines, in_order)
    assert timeline.records + timeline.damaged == len(lines)
    for row in table.rows(found, utc=True, blank="T"):
        assert len(row) == len(table.HEADER)
        assert all(cell and cell.isprintable() and len(cell) <= 2000 for cell in row)
        assert all(" " not in cell for cell in row[:-1])
    for one in found:
        assert json.dumps(one.document())


def test_columns_are_as_wide_as_what_is_there():
    """Aligned, without trailing blanks; refusals stand out in colour; a header where there are rows, or may be."""
    found, _ = told(
        [
            asked(1, "a", job="web"),
            done(2, "a"),
            asked(3, "b", job="x" * 300),
            done(4, "b", outcome="fail"),
        ]
    )
    rows = list(table.rows(found, utc=True, blank="T"))
    plain = list(table.lines(table.HEADER, rows, colour=False))
    assert {
        text.index(word) for text, word in zip(plain, ("OUTCOME", "success", "fail"), strict=True)
    } == {plain[0].index("OUTCOME")}
    assert all(text == text.rstrip() for text in plain)
    colour = list(table.lines(table.HEADER, rows, colour=True))
    assert [text[:5] for text in colour] == ["\x1b[1mW", plain[1][:5], "\x1b[31m"]
    assert list(table.lines(table.HEADER, [], colour=False)) == []
    assert list(table.lines(table.HEADER, [], colour=False, known=0)) == ["  ".join(table.HEADER)]


def test_options_and_words_of_audit():
    """FILE is whatever is no command below audit, options' values aside; each of its options is in the manual."""
    group = app.cli.commands["audit"]
    assert isinstance(group, click.Group)
    for arguments, first in (
        ([], None), (["--job", "show"], None), (["--job", "show", "f"], "f"), (["show", "x"], "show"),
        (["--json", "verify"], "verify"), (["-n", "5", "--utc"], None), (["--", "show"], None),
        (["--since=1h", "a"], "a"),
        (["-"], "-"), (["-c", "verify", "keygen"], "keygen"),
    ):  # fmt: skip
        assert group._first_word(click.Context(group), arguments) == first, arguments
    from cli_servers import ROOT

    manual = (ROOT / "docs/taskmasterctl.rst").read_text(encoding="utf-8")
    for name in ("review", "show"):
        for parameter in group.commands[name].params:
            if isinstance(parameter, click.Option):
                assert any(f"``{option}" in manual for option in parameter.opts), parameter.opts


def test_a_million_records_would_take_seconds(tmp_path):
    """Twenty thousand records are looked through in far less than the fiftieth part of ten seconds, times ten."""
    file = tmp_path / "audit.jsonl"
    with file.open("wb") as out:
        for number in range(10_000):
            out.write(asked(2 * number + 1, f"a-{number}", job=f"web-{number % 9}"))
            out.write(done(2 * number + 2, f"a-{number}", job=f"web-{number % 9}"))
    begun = time.process_time()
    out_fd = os.dup(1)
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    try:
        assert app.run(["audit", "--job", "web-3", str(file)]) == 0
    finally:
        os.dup2(out_fd, 1)
        os.close(out_fd)
        os.close(null)
    assert time.process_time() - begun < 2.0


def test_since_counts_from_when_it_was_asked():
    """A command that began before is not shown for having ended after."""
    later = (NOW + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    found, _ = told([asked(1, "a"), done(2, "a").replace(AT.encode(), later.encode())])
    since = NOW.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert not Criteria(since=since).match(found[0])
    assert Criteria(since=AT, until=since).match(found[0])
