"""Kinds of values a key may take: the words for it, its parser and its JSON Schema, side by side.

A kind knows nothing of files and keys. It must never put a value in an error except through ``shown``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

Schema = dict[str, Any]

#: Characters of a value that an error shows.
SHOWN: Final = 60
#: PATH_MAX of Linux less its NUL, in bytes (limits.h).
MAX_PATH: Final = 4095
NO_NUL: Final[Schema] = {"type": "string", "pattern": "^[^\\u0000]*$"}


class Refused(Exception):
    """A value is not of the kind. ``accepted`` is empty where the words of the kind say it all."""

    def __init__(self, found: str, accepted: str = "") -> None:
        self.found, self.accepted = found, accepted
        super().__init__(found)


class Kind(msgspec.Struct, frozen=True):
    """What is accepted in words; what makes the value of it, or raises Refused; its JSON Schema."""

    accepted: str
    parse: Callable[[object], Any]
    schema: Schema


_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def shown(value: object) -> str:
    """A value as an error shows it: JSON, nothing a terminal acts on, at most SHOWN characters.

    Of a list or an object only that it is one, of NAME=VALUE the name: variables in the wrong place must not get
    into the log.
    """
    if isinstance(value, list | dict):
        return noun(value) if value else json.dumps(value)
    if isinstance(value, str) and _VARIABLE.match(value):
        value = f"{value.partition('=')[0]}=..."
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = f"a value of type {type(value).__name__}"
    return printable(text)


def printable(text: str) -> str:
    """``text`` shortened to SHOWN characters, whatever is not printable (bidi, ESC, ...) escaped."""
    # Cut first: escaping a megabyte to show sixty characters of it would be a waste.
    escaped = "".join(c if c.isprintable() else _escaped(c) for c in text[: SHOWN + 1])
    return escaped if len(escaped) <= SHOWN else escaped[: SHOWN - 3] + "..."


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def noun(value: object) -> str:
    """What sort of JSON value it is, for errors that must not show it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def is_number(value: object) -> bool:
    """Whether ``value`` is a JSON number; true and false, ints to Python, are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole_in(value: object, low: int, high: int) -> int | None:
    """``value`` as an int if it is a whole JSON number (2 or 2.0) from ``low`` to ``high``."""
    if not is_number(value):
        return None
    assert isinstance(value, int | float)
    if value != int(value) or not low <= value <= high:
        return None
    return int(value)


def boolean() -> Kind:
    """true or false."""

    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise Refused(shown(value))
        return value

    return Kind("true or false", parse, {"type": "boolean"})


def whole(low: int, high: int, note: str = "") -> Kind:
    """A whole number from ``low`` to ``high``; ``note`` says what special ones mean."""

    def parse(value: object) -> int:
        number = whole_in(value, low, high)
        if number is None:
            raise Refused(shown(value))
        return number

    words = f"a whole number from {low} to {high}" + (f" ({note})" if note else "")
    return Kind(words, parse, {"type": "integer", "minimum": low, "maximum": high})


def seconds(low: float, high: float) -> Kind:
    """A number of seconds from ``low`` to ``high``, fractions allowed."""

    def parse(value: object) -> float:
        if not is_number(value):
            raise Refused(shown(value))
        assert isinstance(value, int | float)
        if not low <= value <= high:
            raise Refused(shown(value))
        return float(value)

    words = f"a number of seconds from {low:g} to {high:.0f}"
    return Kind(words, parse, {"type": "number", "minimum": low, "maximum": high})


def pattern(expression: str, words: str) -> Kind:
    """A string that ``expression`` matches as a whole; kept to what Python and ECMA 262 read alike."""
    compiled = re.compile(expression, re.ASCII)

    def parse(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise Refused(shown(value))
        return value

    return Kind(words, parse, {"type": "string", "pattern": f"^(?:{expression})$"})


def one_of(*choices: str) -> Kind:
    """One of these strings."""

    def parse(value: object) -> str:
        if value not in choices or not isinstance(value, str):
            raise Refused(shown(value))
        return value

    words = " or ".join(f'"{choice}"' for choice in choices)
    return Kind(words, parse, {"enum": list(choices)})


def text(value: object, max_bytes: int) -> str:
    """``value`` if it is a string without NUL of 1 to ``max_bytes`` bytes; raises Refused."""
    if not isinstance(value, str) or not value:
        raise Refused(shown(value))
    if "\0" in value:
        raise Refused("a NUL character", "text without NUL")
    size = len(value.encode())
    if size > max_bytes:
        raise Refused(f"{size} bytes", f"at most {max_bytes} bytes")
    return value


def path() -> Kind:
    """A path, absolute or relative to a folder that the key's meaning names."""
    return Kind("a path", lambda value: text(value, MAX_PATH), {**NO_NUL, "minLength": 1})


def or_null(kind: Kind, meaning: str) -> Kind:
    """``kind``, or null, which means ``meaning``."""

    def parse(value: object) -> Any:
        return None if value is None else kind.parse(value)

    words = f"{kind.accepted}, or null: {meaning}"
    return Kind(words, parse, {"anyOf": [kind.schema, {"type": "null"}]})


def one_or_list(
    words: str, one: Callable[[object], Any], schema: Schema
) -> tuple[Callable[[object], list[Any]], Schema]:
    """A parser for what may be given once or in a list, and its schema. ``words`` go into errors."""

    def parse(value: object) -> list[Any]:
        items: Sequence[object] = value if isinstance(value, list) else [value]
        return [_item(item, one, words) for item in items]

    return parse, {"anyOf": [schema, {"type": "array", "items": schema}]}


def _item(item: object, one: Callable[[object], Any], words: str) -> Any:
    try:
        return one(item)
    except Refused as refused:
        raise Refused(refused.found, refused.accepted or words) from None
