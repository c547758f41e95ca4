"""What a row is, and the table of them as it is printed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class Options:
    """How the benchmark was called."""

    quick: bool
    supervisor: bool

    def pick(self, *, quick: _Choice, full: _Choice) -> _Choice:
        """One of two, by ``--quick``."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One measured thing. ``figure`` is what the limit is for: a ratio, or a number of ``unit``.

    ``limit`` None: there is none, the row is for reading. ``at_least``: less than the limit misses it.
    """

    what: str
    ours: str
    theirs: str
    figure: float
    unit: str = ""
    limit: float | None = None
    at_least: bool = False

    @classmethod
    def failed(cls, name: str) -> Row:
        """A row that has no figure; the reason is told elsewhere."""
        return cls(f"{name}: could not be measured", "", "", math.nan, limit=0.0)

    @property
    def ok(self) -> bool:
        """Whether it is within its limit, to the digits that are shown."""
        if self.limit is None:
            return True
        figure = float(f"{self.figure:.3g}")
        return figure >= self.limit if self.at_least else figure <= self.limit

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sign = ">=" if self.at_least else "<="
        return (
            self.what,
            self.ours or "-",
            self.theirs or "-",
            f"{self.figure:.3g}{self.unit}",
            "-" if self.limit is None else f"{sign} {self.limit:g}{self.unit}",
            "-" if self.limit is None else "yes" if self.ok else "NO",
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
