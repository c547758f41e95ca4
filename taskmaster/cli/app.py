"""The command line: options, arguments and help of the commands, as click has them.

No logic: every command reads its arguments, and commands.py does the rest. What is imported here is
paid for by every ``taskmasterctl status`` of every health check, so the rest is imported where used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from taskmaster import __version__
from taskmaster.cli import address, commands, files, options, outcomes, screen
from taskmaster.cli.audit.group import audit
from taskmaster.cli.client import Client
from taskmaster.cli.main import EXIT_INTERRUPTED
from taskmaster.cli.options import Function
from taskmaster.errors import TaskmasterError

#: A daemon that answers at the very end of --timeout is still to be heard.
GRACE_S = 5.0
#: Those that only look: an interrupted one leaves nothing going on in the daemon.
_LOOKING = {"status", "list", "pull", "history", "audit"}


@click.group(
    cls=options.Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@options.everywhere
@options.no_wait
@click.option("-s", "--shell", is_flag=True, help="Read commands from standard input.")
@click.version_option(__version__, prog_name=screen.PROGRAM)
@click.pass_context
def cli(
    ctx: click.Context,
    server: str | None,
    as_json: bool,
    timeout_s: float | None,
    no_wait: bool,
    shell: bool,
) -> int:
    """Control taskmasterd: start, stop and look at jobs, send and fetch their files.

    JOB is a name or a shell-style pattern ('web-*', quoted). Exit status: 0 done, 1 failed,
    2 usage, 3 status: not running, 4 no such job, 69 no daemon, 75 timed out, 77 not permitted,
    78 bad file.
    """
    outer: options.Settings = ctx.obj or options.Settings()
    ctx.obj = settings = outer.with_options(server, as_json, timeout_s, no_wait)
    if ctx.invoked_subcommand is not None:
        if shell:
            raise click.UsageError("--shell takes no command: it reads them.", ctx)
        return 0
    if not shell:
        raise click.UsageError("Name a command: " + ", ".join(cli.commands) + ".", ctx)
    if settings.in_shell:
        raise click.UsageError("This is the shell already.", ctx)
    return _shell(settings)


def _shell(settings: options.Settings) -> int:
    from taskmaster.cli.shell import Shell

    server(settings)  # a server that cannot be is said now, not at every line
    settings.in_shell = True

    def job_names() -> list[str]:
        # A Tab key that hangs is worse than one that offers nothing.
        client = Client(server(settings), reply_timeout_s=2.0)
        try:
            return outcomes.job_names(client)
        finally:
            client.close()

    def run_line(arguments: list[str]) -> int:
        return run(arguments, settings)

    offered = [name for name, one in cli.commands.items() if not one.hidden]
    return Shell(run_line, job_names, offered).loop()


def server(settings: options.Settings) -> address.Address:
    """The server that is asked. Raises UsageError."""
    try:
        found = address.choose(settings.server, os.environ, os.geteuid())
        found = address.secured(found, settings.tls, os.environ)
    except address.BadAddress as error:
        raise click.UsageError(str(error)) from None
    if found.is_fallback and os.geteuid() == 0 and not settings.in_shell:
        # Root is used to the socket, which nobody else could have made. It is told of the port.
        screen.complain(f"asking {found}, {found.origin}")
    return found


def command(*parameters: Function) -> Callable[[Function], click.Command]:
    """Make a function a command: it gets the settings, a client and its own arguments by name."""

    def wrap(function: Function) -> click.Command:
        @functools.wraps(function)
        def call(
            server: str | None,
            as_json: bool,
            timeout_s: float | None,
            no_wait: bool = False,
            reason: str | None = None,
            **arguments: Any,
        ) -> int:
            ctx = click.get_current_context()
            settings = ctx.obj.with_options(server, as_json, timeout_s, no_wait)
            return _perform(function, settings, arguments, reason or "")

        for parameter in reversed(parameters):
            call = parameter(call)
        return cli.command(function.__name__.rstrip("_"))(options.everywhere(call))

    return wrap


def _perform(
    function: Function, settings: options.Settings, arguments: dict[str, Any], reason: str
) -> int:
    client = Client(server(settings), settings.timeout_s + GRACE_S)
    client.reason = reason
    try:
        return int(function(settings, client, **arguments))
    except TaskmasterError as error:
        screen.complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        begun = client.asked - _LOOKING
        screen.complain(
            "interrupted; taskmasterd goes on with what was begun" if begun else "interrupted"
        )
        return EXIT_INTERRUPTED
    finally:
        client.close()


_jobs = click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
_maybe_jobs = click.argument("jobs", metavar="[JOB]...", nargs=-1)


def _act(
    settings: options.Settings, client: Client, name: str, jobs: Sequence[str], wait: bool
) -> int:
    targets = outcomes.expand(jobs, lambda: outcomes.job_names(client))
    wait_s = settings.timeout_s if wait else None
    return commands.act(client, name, jobs, targets, wait_s=wait_s, as_json=settings.as_json)


@command(_jobs, options.no_wait, options.reason)
def start(settings: options.Settings, client: Client, jobs: Sequence[str]) -> int:
    """Start every process of a job that is not running."""
    return _act(settings, client, "start", jobs, settings.wait)


@command(_jobs, options.no_wait, options.reason)
def stop(settings: options.Settings, client: Client, jobs: Sequence[str]) -> int:
    """Stop a job: its stop signal, then SIGKILL."""
    return _act(settings, client, "stop", jobs, settings.wait)


@command(_jobs, options.reason)
def kill(settings: options.Settings, client: Client, jobs: Sequence[str]) -> int:
    """Send SIGKILL to all of a job at once; it stays stopped."""
    return _act(settings, client, "kill", jobs, False)


@command(_jobs, options.reason)
def repair(settings: options.Settings, client: Client, jobs: Sequence[str]) -> int:
    """Bring a job back to its default state; healthy processes stay."""
    return _act(settings, client, "repair", jobs, False)


@command(_maybe_jobs, click.option("-v", "--verbose", is_flag=True, help="A line per process."))
def status(settings: options.Settings, client: Client, jobs: Sequence[str], verbose: bool) -> int:
    """Show jobs, all without JOB; exit 3 if one is not RUNNING."""
    return commands.status(client, jobs, verbose=verbose, as_json=settings.as_json)


def _version(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from taskmaster.cli import versions

        try:
            versions.which(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, parameter) from None
    return value


@command(
    click.argument("job"),
    click.option("--version", metavar="N", callback=_version, help="An older one: see 'history'."),
)
def pull(settings: options.Settings, client: Client, job: str, version: str | None) -> int:
    """Write a job's file to standard output."""
    if version is None:
        return commands.pull(client, job, settings.as_json)
    from taskmaster.cli import versions

    return commands.pull(client, job, settings.as_json, {"version": versions.which(version)})


@command(
    click.argument("paths", metavar="FILE.tm.json...", nargs=-1, required=True),
    click.option(
        "--if-hash",
        metavar="SHA256",
        callback=options.sha256,
        help="Only if the file there is this one ('': none).",
    ),
    options.reason,
)
def push(
    settings: options.Settings, client: Client, paths: Sequence[str], if_hash: str | None
) -> int:
    """Send job files; NAME.tm.json becomes the job NAME."""
    seen: dict[str, str] = {}
    for path in paths:
        name = files.job_of(path)
        if not name:
            raise click.UsageError(
                f"{path!r} names no job; accepted: NAME{files.SUFFIX}, where NAME is the job's name"
            )
        if name in seen:
            raise click.UsageError(f"{seen[name]!r} and {path!r} are both the job {name!r}")
        seen[name] = path
    if if_hash is not None and len(paths) > 1:
        raise click.UsageError("--if-hash is the sha256 of one file: push them one by one")
    return commands.push(client, paths, settings.as_json, if_hash)


@command(_jobs, click.option("-y", "--yes", is_flag=True, help="Do not ask."), options.reason)
def delete(settings: options.Settings, client: Client, jobs: Sequence[str], yes: bool) -> int:
    """Stop a job, then remove its file (kept in the job's history)."""
    targets = outcomes.expand(jobs, lambda: outcomes.job_names(client))
    named = [target for target in targets if isinstance(target, str)]
    if named and not yes and not screen.agreed(f"Delete {', '.join(named)}?"):
        screen.complain("nothing was deleted")
        return TaskmasterError.exit_status
    return commands.act(client, "delete", jobs, targets, wait_s=None, as_json=settings.as_json)


@command()
def list_(settings: options.Settings, client: Client) -> int:
    """List the names of all jobs."""
    return commands.show_list(client, settings.as_json)


_force = click.option(
    "--force", is_flag=True, help="Without JOB: even if that removes every job there is."
)


@command(
    _maybe_jobs,
    click.option("--all", "everything", is_flag=True, help="The whole configuration directory."),
    _force,
    options.reason,
)
def reload(
    settings: options.Settings, client: Client, jobs: Sequence[str], everything: bool, force: bool
) -> int:
    """Read a job's file again and apply what changed."""
    if everything == bool(jobs):
        raise click.UsageError("Name a JOB, or --all for the whole configuration directory.")
    if everything:
        return commands.read_directory(client, settings.as_json, force)
    _refuse_force(force)
    return _act(settings, client, "reload", jobs, False)


@command(_maybe_jobs, _force, options.no_wait, options.reason)
def restart(settings: options.Settings, client: Client, jobs: Sequence[str], force: bool) -> int:
    """Stop and start a job; without JOB, the same as reload --all."""
    if not jobs:
        return commands.read_directory(client, settings.as_json, force)
    _refuse_force(force)
    return _act(settings, client, "restart", jobs, settings.wait)


def _refuse_force(force: bool) -> None:
    if force:
        raise click.UsageError("--force is for the whole configuration directory: name no JOB.")


_utc = click.option("--utc", is_flag=True, help="Times in UTC, not in local time.")


@command(
    click.argument("job"),
    _utc,
    click.option("-n", "last", metavar="N", type=click.IntRange(min=1), help="Only the last N."),
)
def history(
    settings: options.Settings, client: Client, job: str, utc: bool, last: int | None
) -> int:
    """Show each version of a job's file: who, when, why."""
    from taskmaster.cli import versions

    return versions.history(client, job, last=last, utc=utc, as_json=settings.as_json)


@command(
    click.argument("job"),
    click.argument("old", metavar="[A]", required=False, callback=_version),
    click.argument("new", metavar="[B]", required=False, callback=_version),
)
def diff(
    settings: options.Settings, client: Client, job: str, old: str | None, new: str | None
) -> int:
    """Compare two versions of a job's file.

    A and B are numbers of 'history JOB', or the first digits of a sha256. Without B: A and the
    present file; without both: the one before and the present file.
    """
    from taskmaster.cli import versions

    return versions.diff(client, job, old, new, as_json=settings.as_json)


@command(
    click.argument("job"),
    click.argument("version", metavar="[VERSION]", required=False, callback=_version),
    click.option("--dry-run", is_flag=True, help="Only show what would change."),
    options.reason,
)
def rollback(
    settings: options.Settings, client: Client, job: str, version: str | None, dry_run: bool
) -> int:
    """Put an older version of a job's file in force.

    VERSION is a number of 'history JOB', or the first digits of a sha256; without it, the one
    before. A job that was deleted comes back.
    """
    from taskmaster.cli import versions

    return versions.rollback(client, job, version, dry_run=dry_run, as_json=settings.as_json)


@command(
    options.no_wait,
    click.option("--leave-jobs", is_flag=True, help="End taskmasterd alone: its jobs run on."),
    click.option("-y", "--yes", is_flag=True, help="Do not ask."),
    options.reason,
)
def shutdown(settings: options.Settings, client: Client, leave_jobs: bool, yes: bool) -> int:
    """Stop all jobs, then end taskmasterd."""
    from taskmaster.cli import lifetime

    if not (leave_jobs or yes or lifetime.agreed(client)):
        screen.complain("nothing was stopped")
        return TaskmasterError.exit_status
    wait_s = settings.timeout_s if settings.wait else None
    found = lifetime.shutdown(client, leave_jobs=leave_jobs, wait_s=wait_s)
    if settings.wait:
        words = lifetime.LEFT if leave_jobs else lifetime.ENDED
    else:
        words = lifetime.LEAVING if leave_jobs else lifetime.ENDING
    return lifetime.report("shutdown", found, words, settings.as_json)


@command(options.reason)
def upgrade(settings: options.Settings, client: Client) -> int:
    """Have taskmasterd become the newly installed program."""
    from taskmaster.cli import lifetime

    return lifetime.report("upgrade", lifetime.upgrade(client), lifetime.UPGRADED, settings.as_json)


@command()
def proxy(settings: options.Settings, client: Client) -> int:
    """Connect standard input and output to taskmasterd (for ssh://)."""
    from taskmaster.cli.proxy import run as copy

    if settings.in_shell:
        raise click.UsageError("proxy needs the standard input that this shell reads.")
    return copy(client.address)


proxy.hidden = True  # for ssh.py, not for people


@command(click.option("--state", metavar="DIR", help="The state directory to look at."))
def doctor(settings: options.Settings, client: Client, state: str | None) -> int:
    """Say what is wrong and what mends it; needs no taskmasterd."""
    from taskmaster.cli.doctor import examination
    from taskmaster.cli.doctor.where import find

    where = find(settings.server, state, os.environ, os.geteuid())
    if where is None:
        raise click.UsageError(
            "doctor looks into the state directory, and the server that was named is in none: name it with "
            "--state DIR (stateDirectory of the configuration)."
        )
    return examination.show(examination.examine(where), where, settings.as_json)


cli.add_command(audit)


def run(arguments: Sequence[str], settings: options.Settings | None = None) -> int:
    """Run one command line, program name left out; returns the exit status.

    ``settings`` are those of the shell that the line was read in.
    """
    try:
        result = cli.main(
            list(arguments), prog_name=screen.PROGRAM, standalone_mode=False, obj=settings
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except OSError as error:  # ENOSPC, EIO of standard output: click prints help by itself
        screen.complain(str(screen.unwritable(error)))
        return TaskmasterError.exit_status
    return result if isinstance(result, int) else 0
