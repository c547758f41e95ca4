"""A row measured in turns on this checkout and on another: medians side by side, and their ratio.

For rows that take seconds and cannot have two daemons in one run; the status rows do it themselves, in turns of
milliseconds (``bench_wire.SIDE_BY_SIDE``). There is no limit here: what these rows measure varies by more than
an honest limit would allow, and they have limits of their own.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench_host import ROOT
from bench_table import Options, Row


def compared(measure: Callable[[Path], list[Row]], options: Options) -> list[Row]:
    """``measure`` of both checkouts, as often as the options say; one row for each that both of them have."""
    assert options.against is not None
    ours: dict[str, list[Row]] = defaultdict(list)
    theirs: dict[str, list[Row]] = defaultdict(list)
    for _ in range(options.pick(quick=1, full=3)):
        for checkout, rows in ((ROOT, ours), (options.against, theirs)):
            for row in measure(checkout):
                rows[row.what].append(row)
    return [_ratio(rows, theirs[what]) for what, rows in ours.items() if what in theirs]


def _ratio(ours: list[Row], theirs: list[Row]) -> Row:
    mine = statistics.median(row.figure for row in ours)
    other = statistics.median(row.figure for row in theirs)
    unit = ours[0].unit
    what = f"{ours[0].what}{' (higher is better)' if ours[0].at_least else ''}"
    ratio = mine / other if other else math.nan
    return Row(what, f"{mine:.3g}{unit}", f"against {other:.3g}{unit}", ratio)
