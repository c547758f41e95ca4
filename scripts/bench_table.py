"""What a row is, how it is judged, and the table of them as it is printed."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Choice = TypeVar("_Choice")


class Verdict(enum.Enum):
    """How a row is judged; the value is what the table shows."""

    NONE = "-"
    YES = "yes"
    NO = "NO"
    #: Over the limit, but not by more than what this machine itself takes at the moment: ask again.
    UNDECIDED = "noise"


@dataclass(frozen=True)
class Options:
    """How the benchmark was called. ``against``: the checkout that ours is compared with."""

    quick: bool
    supervisor: bool
    against: Path | None = None

    def pick(self, *, quick: _Choice, full: _Choice) -> _Choice:
        """One of two, by ``--quick``."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One measured thing. ``figure`` is what the limit is for: a ratio, or a number of ``unit``.

    ``limit`` None: there is none, the row is for reading. ``at_least``: less than the limit misses it.
    ``noise``: the same figure of something that cannot be at fault, measured beside it.
    """

    what: str
    ours: str
    theirs: str
    figure: float
    unit: str = ""
    limit: float | None = None
    at_least: bool = False
    noise: float = 0.0

    @classmethod
    def failed(cls, name: str) -> Row:
        """A row that has no figure; the reason is told elsewhere."""
        return cls(f"{name}: could not be measured", "", "", math.nan, limit=0.0)

    @classmethod
    def skipped(cls, name: str, why: str) -> Row:
        """A row that cannot be measured here, which is nobody's fault."""
        return cls(f"{name}: not measured, {why}", "", "", math.nan)

    @property
    def verdict(self) -> Verdict:
        """Whether it is within its limit, to the digits that are shown.

        A busy machine can only add to a time: so one that is within the limit is good whatever the noise, and
        one that is over it by more than the noise is not. What lies between is not decided.
        """
        if self.limit is None:
            return Verdict.NONE
        figure = float(f"{self.figure:.3g}")
        if figure >= self.limit if self.at_least else figure <= self.limit:
            return Verdict.YES
        return Verdict.UNDECIDED if abs(figure - self.limit) <= self.noise else Verdict.NO

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sign = ">=" if self.at_least else "<="
        return (
            self.what,
            self.ours or "-",
            self.theirs or "-",
            "-" if math.isnan(self.figure) else f"{self.figure:.3g}{self.unit}",
            "-" if self.limit is None else f"{sign} {self.limit:g}{self.unit}",
            self.verdict.value,
        )


HEADER = ("what", "taskmaster", "compared with", "ratio or figure", "limit", "ok")


def text(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, tuple("-" * width for width in widths))
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)
