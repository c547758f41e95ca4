"""The commands below ``taskmasterctl audit``, as click has them: options and help, no logic.

Imported by every taskmasterctl, so all that they do is imported where it is done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from taskmaster.cli import options, screen
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


@click.group("audit", cls=options.Commands, invoke_without_command=True)
@options.everywhere
def audit(server: str | None, as_json: bool, timeout_s: float | None, **_filters: Any) -> int:
    """Read the audit log; 'audit verify' proves it."""
    ctx = click.get_current_context()
    ctx.obj = ctx.obj.with_options(server, as_json, timeout_s, False)
    if ctx.invoked_subcommand is not None:
        return 0
    raise click.UsageError("Name a command: " + ", ".join(audit.commands) + ".", ctx)


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


@command(
    click.option("--key", metavar="K", help="The verification key that keygen printed."),
    click.option("--key-file", metavar="FILE", help="A file with that key in it."),
    click.option(
        "--head",
        "heads",
        metavar="SEQ:HASH",
        multiple=True,
        help="A record that the log must still hold.",
    ),
    click.argument("files", metavar="[FILE]...", nargs=-1),
)
def verify(
    settings: options.Settings,
    key: str | None,
    key_file: str | None,
    heads: Sequence[str],
    files: Sequence[str],
) -> int:
    """Prove that no record was changed, removed or added."""
    from taskmaster.cli.audit import verify

    return verify.run(files, key=key, key_file=key_file, heads=heads, as_json=settings.as_json)


@command(
    click.option("--file", "path", metavar="FILE", help="Where the sealing key goes."),
    click.option("--force", is_flag=True, help="Replace a sealing key that is there."),
)
def keygen(settings: options.Settings, path: str | None, force: bool) -> int:
    """Make a sealing key; the verification key is shown once."""
    from taskmaster.cli.audit import keygen

    return keygen.run(path, force=force, as_json=settings.as_json)
