"""Queries of clients: one frame to one checked Query, and the table of the commands there are.

A frame that is no JSON object ends the connection (InvalidQuery, fatal); a JSON object that is no
query is answered ``invalid`` and forgotten. Nothing here looks anything up by a name from the input
but in the one closed table below.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
import re
from typing import Any, Final

import msgspec

from taskmaster.errors import InvalidQuery


class Command(str, enum.Enum):
    """Every command of the protocol."""

    START = "start"
    STOP = "stop"
    KILL = "kill"
    REPAIR = "repair"
    STATUS = "status"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    LIST = "list"
    RELOAD = "reload"
    RESTART = "restart"
    # The project's own:
    SHUTDOWN = "shutdown"
    UPGRADE = "upgrade"
    AUDIT = "audit"
    HISTORY = "history"
    ROLLBACK = "rollback"


class Needs(enum.Enum):
    """Whether a command takes a job."""

    JOB = "job"
    MAYBE_JOB = "maybe job"
    NOTHING = "nothing"


NEEDS: Final = {
    Command.START: Needs.JOB,
    Command.STOP: Needs.JOB,
    Command.KILL: Needs.JOB,
    Command.REPAIR: Needs.JOB,
    Command.STATUS: Needs.JOB,
    Command.PULL: Needs.JOB,
    Command.PUSH: Needs.JOB,
    Command.DELETE: Needs.JOB,
    Command.LIST: Needs.NOTHING,
    Command.RELOAD: Needs.JOB,
    Command.RESTART: Needs.MAYBE_JOB,
    Command.SHUTDOWN: Needs.NOTHING,
    Command.UPGRADE: Needs.NOTHING,
    Command.AUDIT: Needs.NOTHING,
    Command.HISTORY: Needs.JOB,
    Command.ROLLBACK: Needs.JOB,
}

#: Commands that change nothing: answered even when the audit log cannot be written.
READING: Final = frozenset(
    {Command.STATUS, Command.PULL, Command.LIST, Command.AUDIT, Command.HISTORY}
)
#: Those that ``ifHash``, ``version`` and ``cursor`` mean something to; of others they are ignored.
_CONDITIONAL: Final = frozenset({Command.PUSH, Command.ROLLBACK})
_VERSIONED: Final = frozenset({Command.PULL, Command.HISTORY, Command.ROLLBACK})
_PAGED: Final = frozenset({Command.AUDIT})

#: The longest a client may ask the server to wait for an outcome, seconds (a week).
MAX_WAIT_S: Final = 604800.0
#: Characters that are kept of a name which no job can have: it is in records, replies and messages.
MAX_FOREIGN: Final = 128
#: Characters of a reason: a sentence and a ticket's address, not a document.
MAX_REASON: Final = 1024
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
#: What tells one version by its content: eight digits are as many as ``git`` begins with, and more.
_SHA256_START: Final = re.compile(r"[0-9a-f]{8,64}", re.ASCII)
_CURSOR: Final = re.compile(r"[!-~]{0,128}", re.ASCII)
#: Bytes of an ``id``, as it is written: a number, a UUID, a sentence. It is kept until the reply is sent.
MAX_ID: Final = 256
#: Version numbers are written with at most twelve digits.
_MAX_VERSION: Final = 10**12 - 1


class Query(msgspec.Struct):
    """One valid query.

    ``job`` is the decoded name, not yet known to be a possible one (of an impossible one, the beginning);
    ``data`` the decoded file;
    ``id`` the client's own id as its JSON text, empty without one; ``wait_s`` None without a wait;
    ``old_dialect`` whether the older key ``cmd`` was used; ``codes`` whether the client asks for the
    stable code of a failure beside its sentence; ``leave_jobs``, of shutdown, whether the jobs run on;
    ``force``, of restart without a job, whether it may remove every job there is.

    ``reason``: why, in the client's words, one line of printable characters. ``if_hash``, of push and
    rollback: the sha256 that the file must have, "" where there must be none, None for any. ``version``:
    a number, or the beginning of a sha256. ``cursor``, of audit: where the reply before has ended.
    """

    command: Command
    job: str | None = None
    data: bytes | None = None
    id: bytes = b""
    wait_s: float | None = None
    old_dialect: bool = False
    codes: bool = False
    leave_jobs: bool = False
    force: bool = False
    reason: str = ""
    if_hash: str | None = None
    version: int | str | None = None
    cursor: str = ""


_NULL: Final = msgspec.Raw(b"null")
#: Stands for a number out of range: of no type that any field may have.
_UNUSABLE: Final = object()


class _Wire(msgspec.Struct, rename="camel"):
    """A query as it comes; every key is checked by hand so that each error can name it."""

    command: msgspec.Raw = _NULL
    cmd: msgspec.Raw = _NULL
    job: msgspec.Raw = _NULL
    data: msgspec.Raw = _NULL
    id: msgspec.Raw = msgspec.Raw()
    wait: msgspec.Raw = _NULL
    codes: msgspec.Raw = _NULL
    leave_jobs: msgspec.Raw = _NULL
    force: msgspec.Raw = _NULL
    reason: msgspec.Raw = _NULL
    if_hash: msgspec.Raw = _NULL
    version: msgspec.Raw = _NULL
    cursor: msgspec.Raw = _NULL


class UnusableQuery(InvalidQuery):
    """A JSON object that is no valid query; keeps the ``id`` so that the reply can carry it."""

    def __init__(self, message: str, query_id: bytes, command: str = "") -> None:
        super().__init__(message)
        self.query_id = query_id
        self.command = command


def _spellings(key: str) -> str:
    """A pattern for ``key`` with any of its characters written as JSON escapes."""
    return "".join(f"(?:{one}|(?i:\\\\u{ord(one):04x}))" for one in key)


_decoder: Final = msgspec.json.Decoder(_Wire)
#: Each key that means something, wherever it stands before a colon.
_MEANT: Final = re.compile(
    ('("(?:' + "|".join(map(_spellings, _Wire.__struct_encode_fields__)) + r')")\s*:').encode()
)
_commands: Final = {command.value: command for command in Command}


def parse_query(frame: bytes) -> Query:
    """The query that a frame holds.

    Raises InvalidQuery (fatal) where the frame is no JSON object in UTF-8, UnusableQuery where it is
    one but no valid query.
    """
    try:
        frame.decode("utf-8")
        wire = _decoder.decode(frame)
        twice = _key_twice(frame)
    except UnicodeDecodeError as error:
        raise InvalidQuery(f"Not UTF-8: byte {error.start} of the frame.", fatal=True) from None
    except RecursionError:
        raise InvalidQuery("Not a usable JSON object: nested too deeply.", fatal=True) from None
    except (msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise InvalidQuery(f"Not a JSON object: {error}.", fatal=True) from None
    if twice is not None:
        query_id = b"" if twice == "id" else _checked_id(bytes(wire.id))
        raise UnusableQuery(f'The key "{twice}" stands in the query twice.', query_id)
    query_id = _checked_id(bytes(wire.id))
    word = _value(wire.command)
    old_dialect = word is None
    if old_dialect:
        word = _value(wire.cmd)
    if word is None:
        raise UnusableQuery('Missing field "command".', query_id)
    if not isinstance(word, str):
        raise UnusableQuery('"command" is not a string.', query_id)
    command = _commands.get(word)
    if command is None:
        known = ", ".join(_commands)
        raise UnusableQuery(f"Unknown command {shown(word)}; known: {known}.", query_id, word[:64])
    try:
        return Query(
            command,
            _job(command, _value(wire.job)),
            _data(command, _value(wire.data)),
            query_id,
            _wait(_value(wire.wait)),
            old_dialect,
            _value(wire.codes) is True,
            _value(wire.leave_jobs) is True,
            _value(wire.force) is True,
            _reason(_value(wire.reason)),
            _if_hash(command, _value(wire.if_hash)),
            _version(command, _value(wire.version)),
            _cursor(command, _value(wire.cursor)),
        )
    except InvalidQuery as error:
        raise UnusableQuery(str(error), query_id, command.value) from None


def shown(text: str, limit: int = 60) -> str:
    """Foreign text in quotes, as ASCII and cut to ``limit`` characters: safe in any log or terminal."""
    return ascii(text if len(text) <= limit else text[: limit - 3] + "...")


def _value(raw: msgspec.Raw) -> Any:
    """One value of the object. Decoded by itself, so that a number out of range spoils no more than its key."""
    if raw is _NULL:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return _UNUSABLE


def _key_twice(frame: bytes) -> str | None:
    """A key that means something and stands in the query more than once: two readers would see two queries."""
    found = _MEANT.findall(frame)
    if len(set(found)) == len(found) and not any(b"\\" in key for key in found):
        return None
    # One of them may be in an object that is the value of another key: seldom enough to look thoroughly.
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs if key in _Wire.__struct_encode_fields__]
        twice[:] = [key for key in keys if keys.count(key) > 1]  # the outermost object comes last

    json.loads(frame, object_pairs_hook=look, parse_int=len, parse_float=len)
    return twice[0] if twice else None


def _checked_id(raw: bytes) -> bytes:
    if len(raw) > MAX_ID:
        raise UnusableQuery(f'"id" has {len(raw)} bytes; accepted: up to {MAX_ID}.', b"")
    if not raw or raw[:1] == b'"' or raw[:1] in b"-0123456789":
        return raw
    raise UnusableQuery('"id" is neither a string nor a number.', b"")


def _job(command: Command, value: Any) -> str | None:
    needs = NEEDS[command]
    if needs is Needs.NOTHING:
        return None
    # The published D client sends an empty job where it means none.
    if needs is Needs.MAYBE_JOB and value in (None, ""):
        return None
    if value is None:
        raise InvalidQuery(f'Command "{command.value}" needs the field "job".')
    try:
        return cut(_base64("job", value).decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidQuery('"job" is not base64 of UTF-8.') from None


def cut(text: str) -> str:
    """Foreign text of at most MAX_FOREIGN characters. A name that was cut is still none that a job can have."""
    return text if len(text) <= MAX_FOREIGN else f"{text[: MAX_FOREIGN - 3]}..."


def _data(command: Command, value: Any) -> bytes | None:
    if command is not Command.PUSH:
        return None
    if value is None:
        raise InvalidQuery('Command "push" needs the field "data".')
    return _base64("data", value)


def _base64(key: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidQuery(f'"{key}" is not a string.')
    try:
        if value and not value.strip("="):
            raise binascii.Error  # padding of nothing, which Python 3.10 lets through
        return base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidQuery(f'"{key}" is not valid base64.') from None


def _wait(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidQuery('"wait" is not a number of seconds.')
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds <= MAX_WAIT_S:
        raise InvalidQuery(f'"wait" is not between 0 and {MAX_WAIT_S:.0f} seconds.')
    return seconds


def _reason(value: Any) -> str:
    """One line: it is shown in tables, and what a terminal would act upon is nobody's reason."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidQuery('"reason" is not a string.')
    if len(value) > MAX_REASON:
        raise InvalidQuery(f'"reason" has {len(value)} characters; accepted: up to {MAX_REASON}.')
    if not value.isprintable():
        found = next(character for character in value if not character.isprintable())
        raise InvalidQuery(
            f'"reason" has the character U+{ord(found):04X}; accepted: one line of printable ones.'
        )
    return value.strip()


def _if_hash(command: Command, value: Any) -> str | None:
    if value is None or command not in _CONDITIONAL:
        return None
    if not isinstance(value, str) or (value and not _SHA256.fullmatch(value)):
        raise InvalidQuery(
            '"ifHash" is not the sha256 of a file: 64 digits of 0-9a-f, or "" for no file.'
        )
    return value


def _version(command: Command, value: Any) -> int | str | None:
    if value is None or command not in _VERSIONED:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_VERSION:
        return value
    if isinstance(value, str) and _SHA256_START.fullmatch(value) and command != Command.HISTORY:
        return value
    raise InvalidQuery(
        '"version" is neither a number from 1 nor the first 8 to 64 digits (0-9a-f) of a sha256.'
        if command is not Command.HISTORY
        else '"version" is not a number from 1.'
    )


def _cursor(command: Command, value: Any) -> str:
    if value is None or command not in _PAGED:
        return ""
    if not isinstance(value, str) or not _CURSOR.fullmatch(value):
        raise InvalidQuery('"cursor" is not one that a reply to "audit" gave.')
    return value
