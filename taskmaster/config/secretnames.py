"""The key ``secretPattern``: a regular expression for names of variables, over which no search takes long.

What may take exponential time is refused; what may take time that grows with the length of the name is kept
in bounds by ``secrets``, which looks at no long ones.
"""

from __future__ import annotations

import re
from typing import Final

from taskmaster.config import kinds
from taskmaster.config.kinds import Kind, Refused, shown

DEFAULT_PATTERN: Final = "(?i)pass|secret|token|key"
_MAX_PATTERN: Final = 256
#: With so few repeats, none of them of a group, a search in 128 characters is quick whatever they are.
_MAX_REPEATS: Final = 2
_MAX_OPTIONAL: Final = 6
#: What of a pattern is one step of its reading: an escape, a set, a group's beginning, anything else.
_STEP = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[A-Za-z]*[:)]?|\{\d*,?\d*\}|.", re.DOTALL)
_REPEATS: Final = ("*", "+", "{")


def pattern() -> Kind:
    """A regular expression that cannot take long; gives it as it is written."""
    words = (
        f"a regular expression of at most {_MAX_PATTERN} characters, found anywhere in a name; no group "
        f"repeated, at most {_MAX_REPEATS} repeats (* + {{}}), no references"
    )

    def parse(value: object) -> str:
        text = kinds.text(value, _MAX_PATTERN)
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise Refused(f"{shown(text)}: {error}") from None
        _check(text)
        return text

    return Kind(words, parse, {**kinds.NO_NUL, "minLength": 1, "maxLength": _MAX_PATTERN})


def _check(text: str) -> None:
    """Raises Refused where a search may take exponential time."""
    repeats = optional = 0
    before = ""
    for match in _STEP.finditer(text):
        step = match.group()
        if step[0] in _REPEATS and before:
            if before == ")":
                raise Refused(f"{shown(text)}: a group is repeated")
            repeats += 1
        elif step == "?" and before[:1] not in ("", "*", "+", "?"):
            optional += 1
        elif step[0] == "\\" and step[1:].isdigit() and step != "\\0":
            raise Refused(f"{shown(text)}: a reference to a group")
        elif step.startswith("(?") and step not in ("(?:", "(?i)"):
            accepted = "groups ( ) and (?: ), and (?i) in front"
            raise Refused(f"{shown(text)}: a group that begins {step}", accepted)
        before = step
    if repeats > _MAX_REPEATS:
        raise Refused(f"{shown(text)}: {repeats} repeats")
    if optional > _MAX_OPTIONAL:
        raise Refused(f"{shown(text)}: {optional} optional parts", f"at most {_MAX_OPTIONAL}")
