"""``taskmasterd``: its command line and exit statuses; everything else is in ``daemon``.

0: ended as told; 1: could not start, or not everything could be stopped; 2: usage; 71: the kernel refuses
what it cannot work without; 75: another daemon has the state directory; 78: bad configuration.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from taskmaster import __version__, stdio
from taskmaster.config import daemon as configuration
from taskmaster.config.daemon import DaemonConfig
from taskmaster.control import caller, handover
from taskmaster.control.handover import HandOver, OldProgram
from taskmaster.control.lifetime import fallback
from taskmaster.control.lifetime.fallback import WayBack
from taskmaster.errors import TaskmasterError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    "config_file",
    metavar="CONFIG",
    type=click.Path(path_type=Path),
    help="Configuration file; else $TASKMASTER_CONFIG, else /etc/taskmaster/config.json if there is one.",
)
@click.option("--detach", is_flag=True, help="Go into the background once everything is served.")
@click.option(
    "--check", is_flag=True, help="Read the configuration, say whether it is good, and end."
)
@click.version_option(__version__, prog_name="taskmasterd")
def taskmasterd(config_file: Path | None, detach: bool, check: bool) -> None:
    """Supervise jobs: start, watch and restart their processes, and serve taskmasterctl."""
    _begin_anew(config_file)
    way_back = handed = None
    if not check:
        way_back = fallback.received()
        if way_back is not None:
            handed = way_back.handed()
        caller.forget(() if way_back is None else way_back.descriptors)
        if way_back is not None:
            way_back.limit()
    try:
        config, text = _configuration(config_file, handed)
    except TaskmasterError as error:
        fallback.give_up(error.exit_status, str(error), way_back)
    if check:
        _rehearsed(config)
        click.echo(f"{config.file or 'defaults'}: good")
        return
    detached = detach and handed is None
    if way_back is not None:
        way_back.config = config
    writer = _detached(config) if detached else None
    before = handed.old if handed is not None and handed.failed else None
    old = fallback.keep(config, text, before)
    _serve(config, handed, old, way_back, writer)


def _configuration(file: Path | None, handed: HandOver | None) -> tuple[DaemonConfig, bytes]:
    """What is in the file now, and its bytes; of a program that is executed again, what it had.

    Raises TaskmasterError.
    """
    old = None if handed is None else handed.old
    if handed is None or not handed.failed or old is None:
        return configuration.loaded(file, os.environ, os.geteuid())
    named = None if old.config_file is None else Path(old.config_file)
    text = old.config.encode()
    return configuration.again(text, named, os.environ, os.geteuid()), text


def _begin_anew(config_file: Path | None) -> None:
    """Where the program depends on its caller's directory or character set, execute it without."""
    try:
        again = caller.anew(config_file)
    except OSError:
        _end(
            78, f"{config_file}: the directory that it is relative to is gone; -c takes a full path"
        )
    if again is None:
        return
    command, environment = again
    try:
        os.execve(command[0], command, environment)
    except OSError as error:
        _end(71, f"cannot execute {command[0]} again, with {command[1:]}: {error.strerror}")


def _rehearsed(config: DaemonConfig) -> None:
    """An upgrade asks before it lets go of anything: would the start succeed, too?"""
    from taskmaster.control import launch

    handed = handover.load(launch.TRIAL)
    if handed is None:
        return
    from taskmaster.control.lifetime.rehearsal import rehearse

    try:
        rehearse(config, handed)
    except TaskmasterError as error:
        _end(error.exit_status, str(error))


def _detached(config: DaemonConfig) -> int:
    from taskmaster.control import launch, messages

    try:
        os.makedirs(config.log_directory, 0o750, exist_ok=True)
        log = messages.open_file(messages.path_of(config))
    except OSError as error:
        _end(78, f"{error.filename}: {error.strerror}; with --detach, messages go there")
    return launch.detach(log)


def _serve(
    config: DaemonConfig,
    handed: HandOver | None,
    old: OldProgram | None,
    way_back: WayBack | None,
    writer: int | None,
) -> NoReturn:
    from taskmaster.control import messages, probes
    from taskmaster.control.daemon import Daemon
    from taskmaster.control.launch import report_ready
    from taskmaster.control.lifetime import identity, premises
    from taskmaster.control.say import Say

    limits = caller.raise_limits() if handed is None else handed.limits
    try:
        say = Say(config.verbosity, messages.of(config))
        if handed is not None:
            identity.check(config, handed.holdings)
        refused = probes.refusals()
        daemon = Daemon(config, limits, handed, premises.opened(config, handed, say), say, old)
        daemon.lacks(refused)
        daemon.start()
    except TaskmasterError as error:
        if writer is not None:
            report_ready(writer, error.exit_status, f"taskmasterd: {error}\n")
        fallback.give_up(error.exit_status, str(error), way_back)
    if way_back is not None:
        way_back.arrived()
    # The program before this one has blocked what could have come between the two.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if writer is not None:
        report_ready(writer, 0, "")
    # Not by sys.exit: multiprocessing would join the watchdogs, which are to live on.
    _leave(daemon.run())


def _end(status: int, text: str) -> NoReturn:
    click.echo(f"taskmasterd: {text}", err=True)
    _leave(status)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """The console script."""
    stdio.mend()
    taskmasterd(prog_name="taskmasterd")
