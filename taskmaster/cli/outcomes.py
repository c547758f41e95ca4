"""Names to queries, replies to outcomes, outcomes to exit statuses.

Knows nothing of click and prints nothing. Which names are valid and what may be done is the
daemon's word; only a name that cannot be sent is refused here.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from taskmaster.cli.client import Client, Query, Reply, loads
from taskmaster.errors import InvalidJobName, NoSuchJob, NotPermitted, TaskmasterError, Unavailable

_EXIT_BY_CODE = {kind.code: kind.exit_status for kind in TaskmasterError.__subclasses__()}


class Outcome:
    """What became of one job (``job`` None: of the configuration directory).

    ``response`` is the reply's word, ``none`` where no reply came; ``status`` the exit status it
    stands for; ``data`` the decoded bytes of a status, file or list reply.
    """

    __slots__ = ("code", "data", "error", "job", "response", "status")

    def __init__(
        self,
        job: str | None,
        response: str,
        *,
        error: str = "",
        code: str = "",
        status: int = 0,
        data: bytes = b"",
    ) -> None:
        self.job, self.response, self.error = job, response, error
        self.code, self.status, self.data = code, status, data

    def document(self) -> dict[str, Any]:
        """The outcome for ``--json``."""
        fields: dict[str, Any] = {"job": self.job, "response": self.response}
        if self.error:
            fields["error"] = self.error
        if self.code:
            fields["code"] = self.code
        return fields


#: What to ask about (None: the configuration directory), or what is known without asking.
Target = str | Outcome | None


def encode(data: bytes) -> str:
    """Base64 as the wire has it."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def failed(job: str | None, error: TaskmasterError, response: str = "fail") -> Outcome:
    """The outcome that ``error`` is."""
    return Outcome(job, response, error=str(error), code=error.code, status=error.exit_status)


def exit_status(code: object, error: str) -> int:
    """The exit status of a reply that refuses: by its code, else by its text."""
    if isinstance(code, str) and code in _EXIT_BY_CODE:
        return _EXIT_BY_CODE[code]
    if error.startswith("Invalid job name.") or error.endswith(" does not exist."):
        return NoSuchJob.exit_status
    if error.startswith("Permission denied"):
        return NotPermitted.exit_status
    return TaskmasterError.exit_status


def outcome(job: str | None, reply: Reply, expected: str) -> Outcome:
    """Read one reply; raises Unavailable where it is none that answers the query.

    ``expected`` is the word of a reply that brings a document (``status``, ``file``, ``list``,
    ``history``, ``audit``), else ``success``.
    """
    response = reply["response"]
    if response == expected or (response == "redundant" and expected == "success"):
        data = b"" if expected == "success" else field(reply, "data", "list")
        return Outcome(job, response, data=data)
    if response in ("fail", "invalid"):
        error = field(reply, "error").decode("utf-8", "replace") if "error" in reply else ""
        code = reply["code"] if isinstance(reply.get("code"), str) else ""
        error = error or "taskmasterd gave no reason"
        return Outcome(job, response, error=error, code=code, status=exit_status(code, error))
    raise Unavailable(f"taskmasterd answered {response!r}, which answers nothing that was asked")


def field(reply: Reply, *names: str) -> bytes:
    """The decoded bytes of the first of these keys that the reply has; raises Unavailable."""
    for name in names:
        if isinstance(reply.get(name), str):
            try:
                return binascii.a2b_base64(reply[name])
            except ValueError:  # binascii.Error is one; so is a character that is not ASCII
                break
    raise Unavailable(f"taskmasterd's answer has no base64 in its {' or '.join(names)!r}")


def ask(
    client: Client,
    command: str,
    targets: Sequence[Target],
    fields: dict[str, Any] | None = None,
    *,
    expected: str = "success",
    window: int | None = None,
) -> Iterator[Outcome]:
    """One outcome for every target, in order; a server lost on the way is an outcome as well.

    Raises Unavailable or NotPermitted only where there is no connection to begin with: then
    nothing became of any job.
    """
    queries: list[Query] = []
    for target in targets:
        if not isinstance(target, Outcome):
            job = {} if target is None else {"job": encode(target.encode())}
            queries.append({"command": command, **job, **(fields or {})})
    if queries and client.lost is None:
        client.open()
    replies = client.ask(queries, window)
    for target in targets:
        if isinstance(target, Outcome):
            yield target
        elif client.lost is not None:
            yield failed(target, type(client.lost)("not answered: see above"), "none")
        else:
            try:
                yield outcome(target, next(replies), expected)
            except TaskmasterError as error:
                yield failed(target, error, "none")


def document(found: Outcome) -> dict[str, Any]:
    """The JSON object that a reply brought; raises Unavailable where it is none."""
    try:
        read = loads(found.data)
    except ValueError as error:
        raise Unavailable(f"its {found.response} document cannot be read: {error}") from None
    if not isinstance(read, dict):
        raise Unavailable(f"its {found.response} document is no JSON object")
    return read


def list_document(client: Client) -> dict[str, Any]:
    """The document of ``list``; raises TaskmasterError."""
    found = outcome(None, next(client.ask([{"command": "list"}])), "list")
    if found.status:
        refusal = TaskmasterError(f"list: {found.error}")
        refusal.exit_status = found.status
        raise refusal
    return document(found)


def job_names(client: Client) -> list[str]:
    """The names of all jobs, in the daemon's order; raises TaskmasterError."""
    jobs = list_document(client).get("jobs")
    entries = jobs if isinstance(jobs, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [name for name in names if isinstance(name, str) and is_text(name)]


def expand(words: Sequence[str], names: Callable[[], list[str]]) -> list[Target]:
    """Job names and globs to targets, each job once; ``names`` is called only if there is a glob."""
    targets: list[Target] = []
    every: list[str] | None = None
    for word in words:
        if is_text(word) and is_glob(word):
            from fnmatch import fnmatchcase

            every = names() if every is None else every
            matching = [name for name in every if fnmatchcase(name, word)]
            targets += [name for name in dict.fromkeys(matching) if name not in targets]
            if not matching:
                error = f'No job matches "{word}" (jobs there are: {len(every)}).'
                status = NoSuchJob.exit_status
                targets.append(
                    Outcome(word, "fail", error=error, code=NoSuchJob.code, status=status)
                )
        elif word not in targets:
            targets.append(exactly(word))
    return targets


def is_glob(word: str) -> bool:
    """Whether ``word`` is a pattern; no job name holds any of these characters."""
    return any(c in word for c in "*?[")


def exactly(word: str) -> Target:
    """``word`` as the name it is.

    One that cannot be sent, an empty one above all, is refused here: ``restart "$UNSET"`` must
    never reach the daemon as the ``restart`` of everything.
    """
    return word if is_text(word) else failed(word, InvalidJobName())


def is_text(word: str) -> bool:
    """Whether ``word`` can be sent: not empty, and UTF-8 (an argument may be any bytes)."""
    try:
        return bool(word.encode())
    except UnicodeEncodeError:
        return False
