"""The command line of a storm."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from storm_faults import KINDS

#: Switched on and off as the faults are.
ATTACKERS: Final = "attackers"


def parsed() -> argparse.Namespace:
    """What was asked for: ``faults`` by their names, ``ATTACKERS`` among them."""
    parser = argparse.ArgumentParser(
        prog="scripts/storm",
        description="Faults, clients and attackers at random, and a verdict on what they leave.",
    )
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="default: 1")
    parser.add_argument("--seed", type=int, metavar="S", help="default: a random one, printed")
    parser.add_argument(
        "--pace",
        type=float,
        default=1.0,
        metavar="F",
        help="pauses so many times longer (default: 1)",
    )
    kinds = (*(kind.replace(" ", "-") for kind in KINDS), ATTACKERS)
    parser.add_argument(
        "--faults",
        type=lambda text: text.split(","),
        default=list(kinds),
        metavar="NAME,...",
        help=f"only these: {', '.join(kinds)}",
    )
    parser.add_argument(
        "--without",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,...",
        help="all but these",
    )
    parser.add_argument("--folder", type=Path, help="where everything is; must not exist yet")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    parser.add_argument(
        "--judge",
        type=Path,
        metavar="FOLDER",
        help="only judge what a storm has left there, once more",
    )
    arguments = parser.parse_args()
    unknown = {*arguments.faults, *arguments.without} - set(kinds)
    if unknown:
        parser.error(f"no fault {', '.join(sorted(unknown))}; there are: {', '.join(kinds)}")
    arguments.faults = [
        one if one == ATTACKERS else one.replace("-", " ")
        for one in arguments.faults
        if one not in arguments.without
    ]
    if not set(arguments.faults) - {ATTACKERS}:
        parser.error("without any fault there is no storm")
    return arguments
