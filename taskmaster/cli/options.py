"""The global options, which every command takes as well, and the group that knows mistyped commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 86400.0
MAX_REASON = 1024

Function = Callable[..., Any]


#: Where a command line's --tls-… are kept, from the group's to those of the command.
_TLS_META = "taskmaster.tls"


class Settings:
    """The global options: which server, which form of output, how patient."""

    __slots__ = ("as_json", "in_shell", "server", "timeout_s", "tls", "wait")

    def __init__(self) -> None:
        self.server: str | None = None
        self.as_json = False
        self.timeout_s = DEFAULT_TIMEOUT_S
        self.wait = True
        self.in_shell = False
        #: --tls-ca, --tls-cert, --tls-key, as far as given.
        self.tls: dict[str, str] = {}

    def with_options(
        self, server: str | None, as_json: bool, timeout_s: float | None, no_wait: bool
    ) -> Settings:
        """These settings, but for what the options say; they are given before or after COMMAND."""
        new = Settings()
        new.server = self.server if server is None else server
        new.as_json = self.as_json or as_json
        new.timeout_s = self.timeout_s if timeout_s is None else timeout_s
        new.wait = self.wait and not no_wait
        new.in_shell = self.in_shell
        new.tls = self.tls | _tls(click.get_current_context())
        return new


class Commands(click.Group):
    """The commands, with the nearest one named where one is mistyped (click itself: from 8.4)."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look the command up; raises UsageError."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            from difflib import get_close_matches

            begun = [name for name in self.commands if name.startswith(args[0])]
            near = begun or get_close_matches(args[0], self.commands, n=1)
            meant = " or ".join(repr(name) for name in near)
            hint = f"Did you mean {meant}?" if near else f"There are: {', '.join(self.commands)}."
            raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


def _tls(ctx: click.Context) -> dict[str, str]:
    found: dict[str, str] = ctx.meta.setdefault(_TLS_META, {})
    return found


def _keep_tls(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name is not None:
        _tls(ctx)[parameter.name.removeprefix("tls_")] = value


def _tls_option(name: str, meaning: str) -> Function:
    # Not passed on to each command: few have anything to do with it.
    return click.option(name, metavar="FILE", expose_value=False, callback=_keep_tls, help=meaning)


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Over 0 and up to a day; written so that nan, which click's FloatRange lets through, fails."""
    if value is None or 0 < value <= MAX_TIMEOUT_S:
        return value
    accepted = f"{value:g}; accepted: seconds, over 0, up to {MAX_TIMEOUT_S:g}"
    raise click.BadParameter(accepted, ctx, parameter)


no_wait = click.option(
    "--no-wait", is_flag=True, help="Do not wait for the outcome, only for the reply."
)


def _one_line(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What the daemon takes, said before anything is sent."""
    if value is None or (len(value) <= MAX_REASON and value.isprintable()):
        return value
    accepted = f"accepted: one line of up to {MAX_REASON} printable characters"
    raise click.BadParameter(accepted, ctx, parameter)


def sha256(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What ``sha256sum`` prints of a file, or nothing for no file."""
    if not value or (len(value) == 64 and set(value) <= set("0123456789abcdef")):
        return value
    accepted = f"{value!r}; accepted: the 64 digits that sha256sum prints, or '' for no file"
    raise click.BadParameter(accepted, ctx, parameter)


reason = click.option(
    "--reason", metavar="TEXT", callback=_one_line, help="Why; goes into the audit log."
)
_EVERYWHERE = (
    click.option(
        "-c",
        "--server",
        metavar="SERVER",
        help="HOST[:PORT], [IPV6]:PORT, the path of a socket (with a /), tls://HOST[:PORT], "
        "or ssh://[USER@]HOST[:PORT][/SOCKETPATH].",
    ),
    _tls_option("--tls-ca", "tls://: who signs servers' certificates (the system's)."),
    _tls_option("--tls-cert", "tls://: our certificate."),
    _tls_option("--tls-key", "tls://: its key (in the same file)."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON documents."),
    click.option(
        "--timeout",
        "timeout_s",
        metavar="S",
        type=float,
        callback=_seconds,
        help=f"Seconds to wait for an outcome ({DEFAULT_TIMEOUT_S:g}).",
    ),
)


def everywhere(function: Function) -> Function:
    """Add the options that are accepted before and after COMMAND."""
    for option in reversed(_EVERYWHERE):  # click lists the one that was added last first
        function = option(function)
    return function
