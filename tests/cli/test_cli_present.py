"""Escaping, durations and tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.cli import present
from taskmaster.cli.screen import escape

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
KEYS = ["state", "reason", "ready", "alive", "of", "processes", "watchdog", "definition"]
PROCESS_KEYS = [
    *("number", "pid", "state", "uptime", "restarts", "exitCode", "signal", "exitReason", "reason"),
]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (11520, "3h12m"),
        (86400, "1d00h"),
        (198000, "2d07h"),
        (None, "-"),
        (-1, "-"),
        (float("inf"), "-"),
        (float("nan"), "-"),
        ("12", "-"),
    ],
)
def test_duration(seconds, text):
    """Two units at most, without a blank, and a dash for what is no time."""
    assert present.duration(seconds) == text


@given(st.text(alphabet=st.characters()))
def test_escape(text):
    """Whatever comes in, what goes out is printable, and what was printable is not changed."""
    assert escape(text).isprintable()
    assert escape(escape(text)) == escape(text)
    if text.isprintable():
        assert escape(text) == text


@given(
    st.dictionaries(st.sampled_from(KEYS), JSON),
    st.lists(st.dictionaries(st.sampled_from(PROCESS_KEYS), JSON), max_size=3),
    st.booleans(),
)
def test_any_document_is_a_row(document, processes, with_processes):
    """A document of any shape gives rows of which every cell but the last is one printable word."""
    if with_processes:
        document = document | {"processes": processes}
    rows = [
        (present.JOB_HEADER, [present.job_row("web", document)]),
        (present.PROCESS_HEADER, list(present.process_rows("web", document))),
    ]
    for header, lines in rows:
        table = present.table(header, lines, colour=False)
        assert table.count("\n") == len(lines)
        for line in lines:
            assert len(line) == len(header)
            assert all(cell and cell.isprintable() and " " not in cell for cell in line[:-1])


def test_notes():
    """What is wrong beside the state stands in the reason."""
    document = {
        "state": "RUNNING",
        "ready": False,
        "watchdog": {"state": "UNRESPONSIVE"},
        "definition": {"stale": True},
    }
    assert present.job_row("web", document)[-1] == (
        "not ready; watchdog UNRESPONSIVE; definition stale: reload applies the job file"
    )


def test_why_it_was_ended():
    """A process that runs again shows how the one before it ended, and why where that is known."""
    process = {"number": 0, "state": "RUNNING", "signal": 9, "exitReason": ""}
    for why, shown in (("", ""), ("memoryMax: 9 MiB of 8 MiB", ", memoryMax: 9 MiB of 8 MiB")):
        (row,) = present.process_rows("web", {"processes": [process | {"exitReason": why}]})
        assert row[-1] == f"last ended by signal 9{shown}"


def test_colour_does_not_move_columns():
    """With the colours taken off, a coloured table is the plain one."""
    rows = [present.job_row("web", {"state": state}) for state in ("RUNNING", "FATAL", "STOPPED")]
    plain = present.table(present.JOB_HEADER, rows, colour=False)
    coloured = present.table(present.JOB_HEADER, rows, colour=True)
    assert "\x1b[32mRUNNING\x1b[0m  " in coloured
    assert "\x1b[31mFATAL\x1b[0m    " in coloured
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain
