"""The commands below ``taskmasterctl audit``, as click has them: options and help, no logic.

Imported by every taskmasterctl, so all that they do is imported where it is done.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from taskmaster.cli import address, options, screen
from taskmaster.cli.client import Client
from taskmaster.cli.main import EXIT_INTERRUPTED
from taskmaster.cli.options import Function
from taskmaster.errors import TaskmasterError


def perform(function: Callable[[], int]) -> int:
    """What one of these commands does, with its errors told; returns the exit status."""
    try:
        return function()
    except TaskmasterError as error:
        screen.complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        screen.complain("interrupted")
        return EXIT_INTERRUPTED


class Audit(options.Commands):
    """The commands below ``audit``. Without the name of one, what follows is for the review of the log."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name of the review in front, unless a command is named."""
        word = self._first_word(ctx, args)
        if word not in self.commands:
            self._look_for_slip(ctx, word)
            args = ["review", *args]
        return super().parse_args(ctx, args)

    def _look_for_slip(self, ctx: click.Context, word: str | None) -> None:
        """Raises UsageError for what is no file and nearly a command."""
        if word is None or "/" in word or os.path.lexists(word):
            return
        from difflib import get_close_matches

        near = get_close_matches(word, [name for name in self.commands if name != "review"], n=1)
        if near:
            raise click.UsageError(
                f"There is no command and no file {word!r}. Did you mean {near[0]!r}?", ctx
            )

    def _first_word(self, ctx: click.Context, args: list[str]) -> str | None:
        """What is neither an option nor an option's value."""
        taking = {
            name
            for parameter in [*self.params, *self.commands["review"].params]
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        }
        words = iter(args)
        for word in words:
            if word == "--":
                return None
            if not word.startswith("-") or word == "-":
                return word
            if word in taking:
                next(words, None)
        return None


@click.group("audit", cls=Audit, subcommand_metavar="[show ID | verify | keygen]")
@options.everywhere
@click.pass_context
def audit(ctx: click.Context, /, server: str | None, as_json: bool, timeout_s: float | None) -> int:
    """Read the audit log; 'audit verify' proves it."""
    ctx.obj = ctx.obj.with_options(server, as_json, timeout_s, False)
    return 0


def command(*parameters: Function) -> Callable[[Function], click.Command]:
    """Make a function a command below ``audit``: it gets the settings and its own arguments by name."""

    def wrap(function: Function) -> click.Command:
        @functools.wraps(function)
        def call(
            server: str | None, as_json: bool, timeout_s: float | None, **arguments: Any
        ) -> int:
            settings = click.get_current_context().obj
            settings = settings.with_options(server, as_json, timeout_s, False)
            return perform(lambda: int(function(settings, **arguments)))

        for parameter in reversed(parameters):
            call = parameter(call)
        return audit.command(function.__name__.rstrip("_"))(options.everywhere(call))

    return wrap


def _when(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """A time as records have it."""
    if value is None:
        return ""
    from datetime import datetime, timezone

    from taskmaster.cli.audit import times

    now = datetime.now(timezone.utc)
    try:
        return times.parse(value, now if ctx.params.get("utc") else now.astimezone())
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, parameter) from None


def _pattern(name: str, what: str, *more: str) -> Function:
    """An option that may be given several times."""
    return click.option(name, *more, metavar=what, multiple=True, help=_HELP[name])


_HELP = {
    "--user": "Of this user: name, number, or name in a certificate.",
    "--job": "Of this job: its commands and all that happened to it.",
    "--command": "These commands, also those that only read.",
    "--outcome": "success, redundant, fail, denied, invalid, none …",
    "--id": "The command of this id.",
    "--event": "These events, and no commands.",
}


@command(
    click.option("--utc", is_flag=True, is_eager=True, help="Times in UTC, not in local time."),
    click.option(
        "--since", metavar="TIME", callback=_when, help="From then: 2h, 09:00, 2026-11-24 …"
    ),
    click.option("--until", metavar="TIME", callback=_when, help="Before then."),
    _pattern("--user", "USER", "users"),
    _pattern("--job", "JOB", "jobs"),
    _pattern("--command", "COMMAND", "commands"),
    _pattern("--outcome", "OUTCOME", "outcomes"),
    _pattern("--id", "ID", "ids"),
    _pattern("--event", "EVENT", "event"),
    click.option("--events", is_flag=True, help="Also what was nobody's command."),
    click.option("--all", "everything", is_flag=True, help="Also commands that only read."),
    click.option("-f", "--follow", is_flag=True, help="Go on with what is being recorded."),
    click.option(
        "-n", "last", metavar="N", type=click.IntRange(0, 1_000_000), help="Only the last N."
    ),
    click.argument("files", metavar="[FILE]...", nargs=-1),
)
def review(
    settings: options.Settings,
    files: Sequence[str],
    utc: bool,
    follow: bool,
    last: int | None,
    **criteria: Any,
) -> int:
    """Who did what, when, from where, and what came of it.

    Reads the log of the taskmasterd that is asked, or FILE, each with its rotated files. TIME is
    2h (ago), yesterday, 09:00, 2026-11-24, or ISO 8601. USER, JOB and EVENT may be patterns
    ('web-*', quoted). Also: audit show ID, one command with all that it caused; audit verify,
    audit keygen.
    """
    from taskmaster.cli.audit import review
    from taskmaster.cli.audit.criteria import OUTCOMES, Criteria

    for outcome in criteria["outcomes"]:
        if outcome not in OUTCOMES:
            raise click.UsageError(f"{outcome!r} is no outcome; there are: {', '.join(OUTCOMES)}")
    asked = Criteria(**criteria)
    with _client(settings) as client:
        log = review.source(client, files, settings.timeout_s, named=settings.server is not None)
        return review.run(log, asked, follow=follow, last=last, utc=utc, as_json=settings.as_json)


@command(
    click.option("--utc", is_flag=True, help="Times in UTC, not in local time."),
    click.argument("wanted", metavar="ID"),
    click.argument("files", metavar="[FILE]...", nargs=-1),
)
def show(settings: options.Settings, utc: bool, wanted: str, files: Sequence[str]) -> int:
    """One command, and everything that it caused."""
    from taskmaster.cli.audit import review, show

    with _client(settings) as client:
        log = review.source(client, files, settings.timeout_s, named=settings.server is not None)
        return show.run(log, wanted, utc=utc, as_json=settings.as_json)


@contextlib.contextmanager
def _client(settings: options.Settings) -> Iterator[Client]:
    """A connection to the server that is asked, made when first used."""
    from taskmaster.cli import app

    client = Client(app.server(settings), settings.timeout_s + app.GRACE_S)
    try:
        yield client
    finally:
        client.close()


@command(
    click.option(
        "--key",
        "keys",
        metavar="K",
        multiple=True,
        help="The verification key that keygen printed.",
    ),
    click.option(
        "--key-file", "key_files", metavar="FILE", multiple=True, help="A file with that key in it."
    ),
    click.option(
        "--head",
        "heads",
        metavar="SEQ:HASH",
        multiple=True,
        help="A record that the log must still hold.",
    ),
    click.option(
        "--seal-seconds",
        "seal_s",
        type=click.FloatRange(0, min_open=True),
        metavar="S",
        help="How long an epoch may last (auditSealSeconds of the daemon).",
    ),
    click.argument("files", metavar="[FILE]...", nargs=-1),
)
def verify(
    settings: options.Settings,
    keys: tuple[str, ...],
    key_files: tuple[str, ...],
    heads: Sequence[str],
    seal_s: float | None,
    files: Sequence[str],
) -> int:
    """Prove that no record was changed, removed or added."""
    from taskmaster.cli.audit import verify

    if not files and address.is_named(settings.server, os.environ):
        from taskmaster.cli.audit import remote

        with _client(settings) as client:
            files = [remote.log_path(client)]
    return verify.run(
        files, keys=keys, key_files=key_files, heads=heads, as_json=settings.as_json, seal_s=seal_s
    )


@command(
    click.option("--file", "path", metavar="FILE", help="Where the sealing key goes."),
    click.option("--force", is_flag=True, help="Replace a sealing key that is there."),
)
def keygen(settings: options.Settings, path: str | None, force: bool) -> int:
    """Make a sealing key; the verification key is shown once."""
    from taskmaster.cli.audit import keygen

    if path is None and address.is_named(settings.server, os.environ):
        raise click.UsageError(
            "the key is a file of the daemon's host: name it with --file (auditSealFile of its configuration)."
        )
    return keygen.run(path, force=force, as_json=settings.as_json)
