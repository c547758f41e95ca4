"""JSON with ``//`` comments and trailing commas: bytes in, a Python value out.

For files that people write. Every byte is hostile: size, nesting and length of numbers are capped, time
is linear in the size, and whatever is wrong is a JsonError with line and column. It must never show
more than one character of a value: what stands near a mistake may be a password.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Final, NoReturn

#: Nesting of objects and lists. The deepest accepted file is three deep; an own cap, far below the
#: interpreter's recursion limit, makes a bomb of brackets an error like any other.
MAX_DEPTH: Final = 32
#: Characters of one number. int() is quadratic in its digits, and no accepted number has over 20.
MAX_NUMBER: Final = 64

_BLANK = re.compile(r"[ \t\r\n]+|//[^\n]*")
_WORD = re.compile(r"[A-Za-z0-9_]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
# Unrolled so that no two parts can match the same character: a failing match gives back in linear time.
_STRING = re.compile(
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*', re.ASCII
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LITERALS: Final = {"true": True, "false": False, "null": None}

_A_VALUE = 'a JSON value: an object, a list, a string in double quotes ("), a finite number, true, false, null'
_COMMENTS = "comments that begin with //"


class JsonError(ValueError):
    """Not such JSON. ``key`` is set where a duplicate key is at fault.

    ``found`` and ``accepted`` are for an error message; ``line`` and ``column`` count from 1, the column
    in characters.
    """

    def __init__(
        self, found: str, accepted: str, line: int = 0, column: int = 0, key: str = ""
    ) -> None:
        self.found, self.accepted, self.line, self.column = found, accepted, line, column
        self.key = key
        where = f" at line {line}, column {column}" if line else ""
        super().__init__(f"found {found}{where}; accepted: {accepted}")


def loads(data: bytes, max_bytes: int) -> object:
    """The value in ``data``: dict, list, str, int, float, bool or None.

    Raises JsonError: over ``max_bytes`` bytes, not UTF-8, not JSON as described above, a key twice in
    one object, NaN or Infinity, a number over MAX_NUMBER characters, nesting over MAX_DEPTH.
    """
    if len(data) > max_bytes:
        raise JsonError(f"{len(data)} bytes", f"at most {max_bytes} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise JsonError(
            f"byte 0x{data[error.start]:02x}, which is not UTF-8", "UTF-8 text", *_place(before)
        ) from None
    return _Reader(text).document()


def _place(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _Reader:
    """A recursive descent over one text; the depth of the recursion is capped by MAX_DEPTH."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def document(self) -> object:
        if self._text.startswith("\ufeff"):
            self._fail("a byte order mark", "UTF-8 without byte order mark")
        value = self._value()
        if self._peek():
            self._unexpected("nothing more after the value")
        return value

    def _fail(self, found: str, accepted: str, *, at: int | None = None, key: str = "") -> NoReturn:
        before = self._text[: self._at if at is None else at]
        raise JsonError(found, accepted, *_place(before), key)

    def _unexpected(self, accepted: str) -> NoReturn:
        character = self._text[self._at : self._at + 1]
        if character and character in "/#":
            accepted = _COMMENTS
        self._fail(_named(character), accepted)

    def _peek(self) -> str:
        """The next character that is neither blank nor comment; empty at the end."""
        character = self._text[self._at : self._at + 1]
        # Without this first look, a list of 500 000 numbers took 0.9 s instead of 0.7.
        if character not in " \t\r\n/":
            return character
        while match := _BLANK.match(self._text, self._at):
            self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _value(self) -> object:
        first = self._peek()
        if first == '"':
            return self._string()
        if first == "{":
            return self._nested(self._object)
        if first == "[":
            return self._nested(self._list)
        if first and first in "-0123456789":
            return self._number()
        word = _WORD.match(self._text, self._at)
        if word and word.group() in _LITERALS:
            self._at = word.end()
            return _LITERALS[word.group()]
        if word and word.group() in ("NaN", "Infinity", "True", "False", "None"):
            self._fail(word.group(), _A_VALUE)
        return self._unexpected(_A_VALUE)

    def _nested(self, read: Callable[[], object]) -> object:
        if self._depth == MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} levels of nesting", f"at most {MAX_DEPTH} levels")
        self._depth += 1
        self._at += 1
        value = read()
        self._depth -= 1
        return value

    def _object(self) -> dict[str, object]:
        members: dict[str, object] = {}
        while self._peek() != "}":
            if self._peek() != '"':
                self._unexpected('a key in double quotes ("), or }')
            start = self._at
            key = self._string()
            if key in members:
                self._fail("a key for the second time", "each key once", at=start, key=key)
            if self._peek() != ":":
                self._unexpected("a colon (:) after the key")
            self._at += 1
            members[key] = self._value()
            self._separator("}")
        self._at += 1
        return members

    def _list(self) -> list[object]:
        items: list[object] = []
        while self._peek() != "]":
            items.append(self._value())
            self._separator("]")
        self._at += 1
        return items

    def _separator(self, closing: str) -> None:
        following = self._peek()
        if following == ",":
            self._at += 1
        elif following != closing:
            self._unexpected(f"a comma (,) or {closing}")

    def _string(self) -> str:
        start = self._at
        match = _STRING.match(self._text, start)
        end = match.end() if match else start
        if self._text[end : end + 1] != '"':
            self._at = end
            self._broken_string()
        self._at = end + 1
        raw = self._text[start + 1 : end]
        if "\\" not in raw:
            return raw
        value: str = json.loads(self._text[start : end + 1])
        if _SURROGATE.search(value):
            # It cannot be encoded; worse, half of them would become raw bytes in a file name or argv.
            self._fail("half of a surrogate pair", "whole characters in \\u escapes", at=start)
        return value

    def _broken_string(self) -> NoReturn:
        if self._text[self._at : self._at + 1] == "\\":
            self._fail("an unknown escape", 'in a string: \\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX')
        found = _named(self._text[self._at : self._at + 1])
        self._fail(f"{found} inside a string", 'a closing " (a line break is \\n)')

    def _number(self) -> int | float:
        match = _NUMBER.match(self._text, self._at)
        if not match:
            self._unexpected(_A_VALUE)
        token = match.group()
        if len(token) > MAX_NUMBER:
            self._fail(f"a number of {len(token)} characters", f"at most {MAX_NUMBER} characters")
        value = float(token) if match.group(1) or match.group(2) else int(token)
        if not math.isfinite(value):
            self._fail("a number too large", "numbers up to 1.7e308")
        self._at = match.end()
        return value


def _named(character: str) -> str:
    """One character in words that a terminal can be given."""
    if not character:
        return "the end of the file"
    if character == "\n":
        return "a line break"
    if character.isprintable():
        return f"'{character}'" if character != "'" else '"\'"'
    return f"the character U+{ord(character):04X}"
