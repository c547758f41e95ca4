"""Tables of keys: one row a key, from which reading a file, its JSON Schema and its manual follow.

It knows neither jobs nor the daemon. Whatever is wrong with a file is a FileError that names the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from taskmaster.config import jsonc, kinds
from taskmaster.config.kinds import Kind, Schema
from taskmaster.errors import FileError

#: Bytes of one file. The largest of 175 real configurations of other supervisors has 14.7 KB.
MAX_BYTES: Final = 1024 * 1024


class Required(msgspec.Struct, frozen=True):
    """Instead of a default: the key must be there."""


class Computed(msgspec.Struct, frozen=True):
    """Instead of a default: it follows from other keys or the environment, as ``words`` say."""

    words: str


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key: what it takes, what it is without, which fields of the value it fills.

    ``default`` is a JSON value, Required or Computed. ``meaning``: one sentence for schema and manual.
    """

    name: str
    kind: Kind
    default: object
    fields: tuple[str, ...]
    meaning: str


def read(file: str, data: bytes, table: Sequence[Key]) -> dict[str, Any]:
    """Parsed values by key, defaults filled in; an absent key whose default is Computed stays absent.

    ``file`` is for messages. Raises FileError.
    """
    members = _members(file, data)
    rows = {row.name: row for row in table}
    for name in members:
        if name not in rows:
            raise FileError(file, kinds.printable(name), "an unknown key", _nearest(name, rows))
    values: dict[str, Any] = {}
    for row in table:
        if row.name in members:
            values[row.name] = _parsed(file, row, members[row.name])
        elif isinstance(row.default, Required):
            raise FileError(file, row.name, "nothing", f"{row.kind.accepted} (it is required)")
        elif not isinstance(row.default, Computed):
            values[row.name] = row.kind.parse(row.default)
    return values


def _members(file: str, data: bytes) -> dict[str, object]:
    try:
        value = jsonc.loads(data, MAX_BYTES)
    except jsonc.JsonError as error:
        where = f" at line {error.line}, column {error.column}" if error.line else ""
        key = kinds.printable(error.key)
        raise FileError(file, key, f"{error.found}{where}", error.accepted) from None
    if not isinstance(value, dict):
        raise FileError(file, "", kinds.noun(value), 'a JSON object, {"key": value, ...}')
    return value


def _parsed(file: str, row: Key, value: object) -> Any:
    try:
        return row.kind.parse(value)
    except kinds.Refused as refused:
        accepted = refused.accepted or row.kind.accepted
        raise FileError(file, row.name, refused.found, accepted) from None


def _nearest(name: str, rows: dict[str, Key]) -> str:
    # Cut: difflib is quadratic in the length, and no key is longer. Folded: most are slips of case.
    folded = {known.lower(): known for known in rows}
    near = difflib.get_close_matches(name[:64].lower(), folded, n=1, cutoff=0.0)
    return f'known keys; the nearest is "{folded[near[0]]}"'


def schema(title: str, table: Sequence[Key]) -> Schema:
    """The table as a JSON Schema, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": {row.name: _property(row) for row in table},
        "required": [row.name for row in table if isinstance(row.default, Required)],
        "additionalProperties": False,
    }


def _property(row: Key) -> Schema:
    described = {**row.kind.schema, "description": f"{row.meaning} Accepted: {row.kind.accepted}."}
    if not isinstance(row.default, Required | Computed):
        described["default"] = row.default
    return described
