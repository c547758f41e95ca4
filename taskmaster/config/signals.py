"""Names and numbers of signals, as job files write them."""

from __future__ import annotations

import re
import signal
from typing import Final

ACCEPTED: Final = (
    'a signal\'s name, with or without SIG ("TERM", "SIGUSR1", "RTMIN+1"), or its number, 1 to 64'
)
NAME: Final = r"[A-Za-z][A-Za-z0-9]{1,15}(?:[+-][0-9]{1,2})?"

_NAME = re.compile(r"(?:SIG)?([A-Z][A-Z0-9]*)([+-][0-9]{1,2})?", re.ASCII)
_NUMBERS: Final = {
    name[3:]: int(number)
    for name, number in vars(signal).items()
    if name.startswith("SIG") and isinstance(number, signal.Signals)
}
#: 32 and 33 are missing: glibc keeps them for its threads (signal(7)).
_VALID: Final = frozenset(int(number) for number in signal.valid_signals())


def is_valid(number: int) -> bool:
    """Whether a process can be sent signal ``number``."""
    return number in _VALID


def named(name: str) -> int | None:
    """The number of the signal called ``name``, in any case; None where there is none."""
    match = _NAME.fullmatch(name.upper())
    if match is None:
        return None
    base, offset = match.groups()
    number = _NUMBERS.get(base)
    if number is None or (offset and base not in ("RTMIN", "RTMAX")):
        return None
    number += int(offset or 0)
    # An offset must not lead out of the real-time signals: RTMIN-1 would be one of glibc's own.
    in_range = not offset or signal.SIGRTMIN <= number <= signal.SIGRTMAX
    return number if in_range and is_valid(number) else None
