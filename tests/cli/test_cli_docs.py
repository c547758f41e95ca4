"""The manual names what the program has, with its numbers."""

import re

import click
from cli_servers import ROOT

from taskmaster.cli import app, files, options
from taskmaster.cli.commands import EXIT_NOT_RUNNING
from taskmaster.cli.main import EXIT_INTERRUPTED
from taskmaster.cli.outcomes import _EXIT_BY_CODE
from taskmaster.errors import KernelRefuses

MANUAL = (ROOT / "docs/taskmasterctl.rst").read_text(encoding="utf-8")


def test_every_command_and_option():
    """No command and no option is missing in the manual."""
    for name, command in app.cli.commands.items():
        assert re.search(rf"^``{name}[ `]", MANUAL, re.MULTILINE), name
        for parameter in [*command.params, *app.cli.params]:
            if isinstance(parameter, click.Option):
                spellings = "|".join(parameter.opts)
                assert re.search(rf"(?<![\w-])({spellings})(?![\w-])", MANUAL), spellings


def test_help_fits():
    """On a terminal of 80 columns no command's line in the help is cut."""
    limit = 78 - 6 - max(len(name) for name in app.cli.commands)
    for name, command in app.cli.commands.items():
        assert not command.get_short_help_str(limit).endswith("..."), name


def test_every_exit_status():
    """The table has exactly the exit statuses there are."""
    section = MANUAL.split("Exit status\n---", 1)[1].split("Messages", 1)[0]
    listed = {int(number) for number in re.findall(r"^(\d+)  ", section, re.MULTILINE)}
    # There is no daemon then that could reply.
    by_code = {*_EXIT_BY_CODE.values()} - {KernelRefuses.exit_status}
    assert listed == {0, 1, EXIT_NOT_RUNNING, EXIT_INTERRUPTED, *by_code}


def test_numbers():
    """Timeouts and sizes stand there as they are."""
    timeout = f"{options.DEFAULT_TIMEOUT_S:g} if not given, up to {options.MAX_TIMEOUT_S:g}"
    assert timeout in MANUAL
    assert f"gives up {app.GRACE_S:g} seconds after" in MANUAL
    assert f"none within {options.DEFAULT_TIMEOUT_S + app.GRACE_S:g} s" in MANUAL
    assert files.MAX_BYTES == 1024 * 1024
