"""What the commands on jobs do once the command line is understood: ask, show, exit status.

Knows nothing of click; every function here returns the exit status or raises TaskmasterError.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from taskmaster.cli import files, outcomes, present, screen
from taskmaster.cli.client import Client
from taskmaster.cli.outcomes import Outcome, Target, ask
from taskmaster.errors import NoSuchJob, TaskmasterError

EXIT_NOT_RUNNING = 3
#: A status document of 1000 processes is 200 KB: so many unanswered at a time, not all jobs'.
_STATUS_WINDOW = 32
_NO_JOBS = "there are no jobs; push FILE.tm.json makes one"


def act(
    client: Client,
    command: str,
    words: Sequence[str],
    targets: Sequence[Target],
    *,
    wait_s: float | None,
    as_json: bool,
) -> int:
    """Have ``command`` done to each target, a line (or object) for each.

    ``words`` are what the targets were expanded from; ``wait_s`` is for how long the daemon shall
    wait for the outcome, None where it shall not.
    """
    fields = {} if wait_s is None else {"wait": int(wait_s) if wait_s.is_integer() else wait_s}
    found = ask(client, command, targets, fields)
    return _report(command, found, _is_one(words), as_json, waited=wait_s is not None)


def read_directory(client: Client, as_json: bool, force: bool) -> int:
    """Have the whole configuration directory read again: ``restart`` without a job.

    ``force``: even if every job there is would be removed by that.
    """
    fields = {"force": True} if force else {}
    return _report("restart", ask(client, "restart", [None], fields), True, as_json)


def push(client: Client, paths: Sequence[str], as_json: bool, if_hash: str | None = None) -> int:
    """Send job files, each named for its job: see ``files.job_of``; ``if_hash``: over that file only."""
    return _report("push", _pushed(client, paths, if_hash), len(paths) == 1, as_json)


def _pushed(client: Client, paths: Sequence[str], if_hash: str | None) -> Iterator[Outcome]:
    # One after the other: a megabyte each need not be in memory together.
    for path in paths:
        job = files.job_of(path) or ""
        try:
            data = files.read(path)
        except files.Unreadable as error:
            yield outcomes.failed(job, error)
        else:
            condition = {} if if_hash is None else {"ifHash": if_hash}
            fields = {"data": outcomes.encode(data)} | condition
            yield from ask(client, "push", [outcomes.exactly(job)], fields)


def pull(client: Client, job: str, as_json: bool, fields: dict[str, Any] | None = None) -> int:
    """Write the job's file to standard output, byte for byte; ``fields`` may name a version."""
    found = next(ask(client, "pull", [outcomes.exactly(job)], fields, expected="file"))
    if as_json:
        data = {} if found.status else {"data": outcomes.encode(found.data)}
        screen.out_json(found.document() | data)
    elif found.status:
        _complain(found)
    else:
        screen.out_bytes(found.data)
    return found.status


def show_list(client: Client, as_json: bool) -> int:
    """Show the names of all jobs, one a line."""
    if as_json:
        screen.out_json(outcomes.list_document(client))
        return 0
    names = outcomes.job_names(client)
    if names:
        screen.out("\n".join(screen.escape(name) for name in names))
    elif screen.is_terminal():
        screen.complain(_NO_JOBS)
    return 0


def status(client: Client, words: Sequence[str], *, verbose: bool, as_json: bool) -> int:
    """Show the status of jobs, of all without ``words``.

    Returns that of the first failure, else 3 where a job shown is not RUNNING: that no answer came
    is worse news than any answer.
    """
    targets = outcomes.expand(words, lambda: outcomes.job_names(client))
    if not words:
        targets.extend(outcomes.job_names(client))
    shown: list[tuple[str, dict[str, Any]]] = []
    failures: list[Outcome] = []
    documents: list[dict[str, Any]] = []
    for found in ask(client, "status", targets, expected="status", window=_STATUS_WINDOW):
        failure = found
        if not words and found.code == NoSuchJob.code:
            continue  # deleted since it was listed: nobody asked about it by name
        if not found.status:
            try:
                document = outcomes.document(found)
            except TaskmasterError as error:
                failure = outcomes.failed(found.job, error, "none")
            else:
                shown.append((str(found.job), document))
                documents.append(document)
                continue
        failures.append(failure)
        documents.append(failure.document())
    if as_json:
        screen.out_json(documents[0] if _is_one(words) else documents)
    else:
        _show_table(shown, verbose)
        for failure in failures:
            _complain(failure)
        if not targets and screen.is_terminal():
            screen.complain(_NO_JOBS)
    if failures:
        return failures[0].status
    running = all(document.get("state") == "RUNNING" for _, document in shown)
    return 0 if running else EXIT_NOT_RUNNING


def _show_table(shown: list[tuple[str, dict[str, Any]]], verbose: bool) -> None:
    if not shown:
        return
    if verbose:
        header = present.PROCESS_HEADER
        rows = [row for name, document in shown for row in present.process_rows(name, document)]
    else:
        header = present.JOB_HEADER
        rows = [present.job_row(name, document) for name, document in shown]
    screen.out(present.table(header, rows, screen.has_colour(os.environ)))


def _is_one(words: Sequence[str]) -> bool:
    """Whether --json gives an object, not a list: decided by what was asked, not by what matched."""
    return len(words) == 1 and not outcomes.is_glob(words[0])


def _report(
    command: str,
    found: Iterator[Outcome],
    single: bool,
    as_json: bool,
    *,
    waited: bool = True,
) -> int:
    """Show outcomes as they come; the exit status is that of the first failure."""
    worst, documents = 0, []
    for one in found:
        worst = worst or one.status
        if as_json:
            documents.append(one.document())
        elif one.status:
            _complain(one)
        elif one.job is None:
            screen.out(present.DIRECTORY_READ)
        else:
            screen.out(f"{screen.escape(one.job)}: {present.done(command, one.response, waited)}")
    if as_json:
        screen.out_json(documents[0] if single else documents)
    return worst


def _complain(found: Outcome) -> None:
    about = "configuration directory" if found.job is None else found.job or '""'
    screen.complain(f"{about}: {found.error}")
