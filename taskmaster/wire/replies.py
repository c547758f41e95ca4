"""Replies to clients: each is a JSON object without white space, its keys in the order documented."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import msgspec

from taskmaster.wire.frames import END

SUCCESS: Final = "success"
FAIL: Final = "fail"
INVALID: Final = "invalid"
STATUS: Final = "status"
REDUNDANT: Final = "redundant"
FILE: Final = "file"
LIST: Final = "list"
HISTORY: Final = "history"
AUDIT: Final = "audit"


class Reply(msgspec.Struct):
    """One reply: its word, its further fields (values already base64), and for the audit the error."""

    response: str
    fields: tuple[tuple[str, str], ...] = ()
    error: str | None = None
    code: str | None = None
    #: Of a piece of something: whether another one is there.
    more: bool | None = None
    #: The frame without ``id`` and ``code``, once it was made: a reply may serve many.
    bare: bytes | None = None
    #: It is known that nothing is another than before: there is nothing to wait for until it is on disk.
    unchanged: bool = False

    def frame(self, query_id: bytes = b"", *, with_code: bool = False) -> bytes:
        """The bytes to send. ``query_id`` is the client's id as JSON text, empty for none."""
        plain = not query_id and not (with_code and self.code is not None)
        if plain and self.bare is not None:
            return self.bare
        parts = [f'{{"response":"{self.response}"']
        parts += [f',"{key}":"{value}"' for key, value in self.fields]
        if self.more is not None:
            parts.append(f',"more":{"true" if self.more else "false"}')
        if with_code and self.code is not None:
            parts.append(f',"code":"{self.code}"')
        head = "".join(parts).encode("ascii")
        if query_id:
            return b"".join((head, b',"id":', query_id, b"}", END))
        whole = b"".join((head, b"}", END))
        if plain:
            self.bare = whole
        return whole


def b64(data: bytes) -> str:
    """Standard base64 with padding, as text."""
    return base64.b64encode(data).decode("ascii")


def success() -> Reply:
    """Done."""
    return Reply(SUCCESS)


def redundant() -> Reply:
    """Already so."""
    return Reply(REDUNDANT, unchanged=True)


def unchanged() -> Reply:
    """Done, and there was nothing to do."""
    return Reply(SUCCESS, unchanged=True)


def refuse(error: str, code: str = "failed") -> Reply:
    """``fail`` of what was not begun at all."""
    reply = fail(error, code)
    reply.unchanged = True
    return reply


def fail(error: str, code: str = "failed") -> Reply:
    """Understood, and could not or may not be done."""
    return Reply(FAIL, (("error", b64(error.encode("utf-8", "replace"))),), error, code)


def invalid(error: str) -> Reply:
    """No valid query."""
    return Reply(
        INVALID, (("error", b64(error.encode("utf-8", "replace"))),), error, "invalid-query"
    )


def status(job: str, document: bytes) -> Reply:
    """The status document of a job."""
    return Reply(STATUS, (("job", b64(job.encode())), ("data", b64(document))))


def file(job: str, content: bytes) -> Reply:
    """A job file's exact bytes."""
    return Reply(FILE, (("job", b64(job.encode())), ("data", b64(content))))


def history(job: str, document: bytes) -> Reply:
    """The versions of a job's file."""
    return Reply(HISTORY, (("job", b64(job.encode())), ("data", b64(document))))


def audit(lines: bytes, cursor: str, file: bytes, *, more: bool, state: bytes = b"") -> Reply:
    """A piece of the audit log, where it ends, the path of its current file, and whether there is more now.

    ``state``: the document of how it is with the log, where that was asked.
    """
    fields = [("data", b64(lines)), ("cursor", cursor), ("file", b64(file))]
    if state:
        fields.append(("state", b64(state)))
    return Reply(AUDIT, tuple(fields), more=more)


def job_list(names: Sequence[str], *, old_dialect: bool) -> Reply:
    """The list of jobs; ``old_dialect`` adds the key that the published D programs read."""
    jobs = [{"name": name} for name in names]
    document = {"jobs": jobs, "processes": jobs} if old_dialect else {"jobs": jobs}
    encoded = b64(msgspec.json.encode(document))
    return Reply(LIST, (("list", encoded), ("data", encoded)))
