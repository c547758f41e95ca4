"""The protocol's manual: commands, replies, keys, codes and limits are the program's, and its example is true."""

from __future__ import annotations

import ast
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

from docs_pages import ROOT, entries, flat, page, section

from taskmaster import errors, stream
from taskmaster.audit import pages
from taskmaster.cli import files
from taskmaster.config import history, keys
from taskmaster.control import review, server, session, shares, status, versions
from taskmaster.control.job import Job, Watchdog
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired, State
from taskmaster.wire import queries, replies
from taskmaster.wire.link import ProcessStatus, Published
from taskmaster.wire.queries import NEEDS, Command, Needs

PROTOCOL = page("docs/protocol.rst")


def table(title: str) -> dict[str, list[str]]:
    """The first word of each row of a section's table, and its further columns up to the last one."""
    rows = re.findall(r"^``(\w+)``  +(.*?)(?:   *|$)", section(PROTOCOL, title), re.MULTILINE)
    return {word: re.findall(r"``(\w+)``|(maybe job|job|\\-)", further) for word, further in rows}


def test_commands() -> None:
    """The table has exactly the commands there are, and says which take a job."""
    words = {Needs.JOB: "job", Needs.MAYBE_JOB: "maybe job", Needs.NOTHING: "\\-"}
    found = {word: further[0][1] for word, further in table("Commands").items()}
    assert found == {command.value: words[NEEDS[command]] for command in Command}


def test_replies() -> None:
    """The table has exactly the replies there are, with their further keys."""
    every = [
        replies.success(),
        replies.redundant(),
        replies.fail("x"),
        replies.invalid("x"),
        replies.status("x", b"{}"),
        replies.file("x", b""),
        replies.history("x", b"{}"),
        replies.audit(b"", "x", b"/x", more=False),
        replies.job_list([], old_dialect=False),
    ]
    found = {word: [key for key, _ in further] for word, further in table("Replies").items()}
    assert found == {one.response: [key for key, _ in one.fields] for one in every}
    # No reply is missing above: each word is a constant of the module.
    words = {
        value for name, value in vars(replies).items() if name.isupper() and isinstance(value, str)
    }
    assert words == set(found)


def test_query_keys() -> None:
    """No key of a query is missing or made up."""
    assert set(entries(section(PROTOCOL, "Queries"))) == set(queries._Wire.__struct_encode_fields__)
    assert f"Seconds, 0 to {queries.MAX_WAIT_S:.0f}:" in PROTOCOL


#: Codes that no ``fail`` on the wire can have, and why.
NOT_SENT = {
    "kernel-refuses": "there is no daemon then",
    "invalid-query": "invalid has no code",
    "too-many-clients": "said to a client that has asked nothing yet",
    "cannot-listen": "there is no daemon then",
    "held": "there is no daemon then",
    "unavailable": "there is no daemon then",
}


def codes_in_sources() -> set[str]:
    """Every code: those of the errors, and those that are given to ``fail`` as words."""
    found = {one.code for one in [errors.TaskmasterError, *errors.TaskmasterError.__subclasses__()]}
    for file in (ROOT / "taskmaster/control").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_fail = node.func.attr in ("fail", "refuse") and len(node.args) > 1
                code = node.args[1] if is_fail else None
                if isinstance(code, ast.Constant):
                    found.add(str(code.value))
    return found


def test_codes() -> None:
    """Each code that a reply can have is explained, and no other."""
    _, _, codes = section(PROTOCOL, "Replies").partition("match on the code:")
    described = set(entries(codes))
    assert described == codes_in_sources() - set(NOT_SENT)


def test_status_document() -> None:
    """Every key of the status document is there, of the job, its watchdog and definition, and its processes."""
    job = Job("web")
    job.spec = JobSpec(job="web", argv=("true",))
    job.watchdog = Watchdog(1, None, -1)
    job.publish(Published(True, (ProcessStatus(0, State.RUNNING, Desired.UP, pid=2, start=3),)))
    document = json.loads(status.document(job, False, 0.0))
    of_job, of_process = section(PROTOCOL, "The status document").split("Of each process:")
    described = entries(of_job)
    assert set(described) == set(document)
    for key in ("watchdog", "definition"):
        (text,) = described[key]
        assert set(re.findall(r"``(\w+)``", text)) - {"ATTACHED", "LOST", "UNRESPONSIVE"} == set(
            document[key]
        )
    terms = re.findall(r"^(``.*``)$", of_process, re.MULTILINE)
    assert set(re.findall(r"``(\w+)``", " ".join(terms))) == set(document["processes"][0])


def test_limits() -> None:
    """Sizes and times stand there as they are."""
    assert files.MAX_BYTES == keys.MAX_BYTES
    for sentence in (
        f"A job file: {keys.MAX_BYTES >> 20} MiB.",
        f"one other host: {shares.UNFINISHED_BYTES >> 20} MiB, or ``maxFrameBytes``",
        f"All together: {shares.ALL_UNFINISHED_BYTES >> 20} MiB",
        f"may not push anything, at most {server._NO_FILE_BYTES >> 10} KiB.",
        f"{shares.MAX_UNANSWERED}, or {shares.MAX_UNANSWERED_BYTES >> 20} MiB. While",
        f"of at most {queries.MAX_ID} bytes",
        f"at most {pages.PAGE_BYTES >> 10} KiB (of a longer line",
        f"of one user at most {review.MAX_WAITING} wait, others are answered at once",
        f"up to {versions._PAGE} of them, newest first. At most {history.KEPT} are kept",
        f"up to {queries.MAX_REASON} printable characters",
        f"of one client: {session.MAX_UNANSWERED}, or {session.MAX_UNANSWERED_BYTES >> 20} MiB;",
        f"while {session.ENOUGH_OF_A_SHARE >> 10} KiB waits for it (of root and the daemon's own user "
        f"{session.ENOUGH_OUTBOUND >> 20} MiB), or {shares.ENOUGH_OUTBOUND >> 20} MiB",
        f"takes nothing for {session.STALL_S:g} seconds",
        f"gets its replies, for up to {session.HALF_CLOSED_S:g} seconds",
        f"has {stream.LINGER_S:g} seconds to close",
    ):
        assert sentence in flat(PROTOCOL), sentence


def test_example(daemon) -> None:
    """Sent to a daemon as it stands, the example is answered as it stands."""
    lines = re.findall(r"^   ([<>]) (\{.*\};;)$", PROTOCOL, re.MULTILINE)
    assert len(lines) > 15
    client = daemon.client()
    for (mark, query), (answer_mark, answer) in zip(lines[::2], lines[1::2], strict=True):
        assert (mark, answer_mark) == (">", "<")
        client.send(query.encode())
        got = client.frame().decode() + ";;"
        expected = answer.replace("[", "[[]").replace("…", "*")
        assert fnmatchcase(got, expected), (query, got)


def test_files_named_exist() -> None:
    """Every document, sample and script that a document names is there."""
    for document in [*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst")]:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(r"``((?:docs|conf|scripts|tests)/[\w./-]*)``", text):
            assert Path(ROOT, name).exists(), f"{document.name}: {name}"
