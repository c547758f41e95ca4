"""How ``scripts/bench`` judges, what its attacks send, and the comparison with another checkout."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import attacks
import bench_against
from bench_table import Options, Row, Verdict


@pytest.mark.parametrize(
    ("figure", "noise", "verdict"),
    [
        pytest.param(4.0, 0.0, Verdict.YES, id="within"),
        pytest.param(4.0, 50.0, Verdict.YES, id="within, whatever the noise"),
        pytest.param(7.0, 1.0, Verdict.NO, id="over by more than the noise"),
        pytest.param(7.0, 3.0, Verdict.UNDECIDED, id="over by less than the noise"),
        pytest.param(2000.0, 20.0, Verdict.NO, id="far over on a noisy machine"),
        pytest.param(math.nan, 5.0, Verdict.NO, id="no figure"),
    ],
)
def test_verdict(figure, noise, verdict):
    """Noise neither condemns what is good nor hides what is bad."""
    assert Row("what", "", "", figure, " ms", limit=5.0, noise=noise).verdict is verdict


def test_verdict_where_more_is_better():
    """Less than the limit misses it."""
    rows = [Row("rate", "", "", figure, limit=0.9, at_least=True) for figure in (0.95, 0.6)]
    assert [row.verdict for row in rows] == [Verdict.YES, Verdict.NO]


def test_verdict_without_a_limit():
    """A row for reading, or one that cannot be measured here, misses nothing."""
    assert Row("what", "", "", 1e9).verdict is Verdict.NONE
    assert Row.skipped("what", "it needs root").verdict is Verdict.NONE
    assert Row.failed("what").verdict is Verdict.NO


def test_in_turns_with_another_checkout():
    """Each round measures both; the row shows both medians and their ratio, and none that only one has."""
    figures = {True: iter([2.0, 90.0, 4.0]), False: iter([2.0, 1.0, 8.0])}
    order = []

    def measure(checkout: Path) -> list[Row]:
        ours = checkout == ROOT
        order.append(ours)
        rows = [Row("both", "", "", next(figures[ours]), " ms", limit=1.0)]
        return [*rows, Row("ours alone", "", "", 1.0)] if ours else rows

    options = Options(quick=False, supervisor=False, against=Path("/elsewhere"))
    (row,) = bench_against.compared(measure, options)
    assert order == [True, False] * 3
    assert (row.what, row.ours, row.theirs, row.figure) == ("both", "4 ms", "against 2 ms", 2.0)
    assert row.verdict is Verdict.NONE


def test_a_row_for_each_attack():
    """The benchmark has them all."""
    listed = subprocess.run(
        [str(ROOT / "scripts/bench"), "--list"], capture_output=True, text=True, check=True
    )
    for name in attacks.ATTACKS:
        assert f"attack-{name} " in listed.stdout


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_attack(name):
    """An attack connects, sends frames that are queries (or a part of one), and hangs up everywhere at its end."""
    attack = attacks.ATTACKS[name]
    data = attack.sends(attacks.Jobs("running", "unsettled", "own"))
    *frames, rest = data.split(b";;")
    assert all("command" in json.loads(sent) for sent in frames)
    assert (name == "unfinished") == bool(rest)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        crowd = attacks.Crowd(attack, listener.getsockname()[1], data)
        crowd.turn()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            while data and crowd.took["bytes"] == 0:
                crowd.turn()
            crowd.end()
            received = 0
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
            assert bool(received) == bool(data)
    assert crowd.took["ended"] == crowd.took["connections"] >= 1
