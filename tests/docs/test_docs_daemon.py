"""The daemon's manual: options, exit statuses and files are those of the program."""

from __future__ import annotations

import re

import click
from docs_pages import entries, page, section
from running import Daemon, wait_for

from taskmaster.control.main import taskmasterd
from taskmaster.errors import FileError, Held, KernelRefuses, TaskmasterError

MANUAL = page("docs/taskmasterd.rst")


def test_options() -> None:
    """Every option is there in each of its spellings, and no other."""
    head = MANUAL.partition("\nConfiguration\n---")[0]
    spelt = {
        word
        for line in re.findall(r"^(``-.*``)$", head, re.MULTILINE)
        for word in re.findall(r"--?\w+", line)
    }
    context = click.Context(taskmasterd, **taskmasterd.context_settings)
    options = [one for one in taskmasterd.get_params(context) if isinstance(one, click.Option)]
    assert spelt == {word for one in options for word in one.opts}


def test_exit_statuses() -> None:
    """The table has exactly the exit statuses there are."""
    listed = {
        int(number)
        for number in re.findall(r"^(\d+)  ", section(MANUAL, "Exit status"), re.MULTILINE)
    }
    # 2 is click's; 70 is what a daemon that died before it could say anything leaves to --detach.
    assert listed == {0, 2, 70} | {
        kind.exit_status for kind in (TaskmasterError, KernelRefuses, Held, FileError)
    }


def patterns(first: str, last: str) -> list[re.Pattern[str]]:
    """The files that the manual names between two sentences, NAME, SHA256 and numbers as what they stand for."""
    text = section(MANUAL, "Files")
    part = text[text.index(first) : text.index(last) if last else None]
    found = []
    for term in re.findall(r"^(``.*``)$", part, re.MULTILINE):
        for path in re.findall(r"``(.*?)``", term):
            pattern = re.escape(path).replace("NAME", r"[\w-]+")
            pattern = re.sub(r"\b0(?=\\\.std)", r"\\d+", pattern)
            found.append(re.compile(pattern + (".*" if path.endswith("/") else "")))
    assert len(found) >= 3
    return found


def test_files(make_daemon) -> None:
    """What a daemon makes in its three folders is what the manual says it does."""
    daemon: Daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"], procNr=2)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    assert daemon.ask("push", "other", data='{"cmd": "sleep 1000"}')["response"] == "success"
    assert daemon.ask("stop", "other", wait=60)["response"] == "success"
    wait_for(lambda: (daemon.logs / "jobs/web/1_stdout.log").exists())
    for folder, first, last in (
        (daemon.jobs, "In the job directory:", "In the log directory:"),
        (daemon.logs, "In the log directory:", "In the state directory"),
        (daemon.state, "In the state directory", ""),
    ):
        named = patterns(first, last)
        there = [
            one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir()
        ]
        unnamed = [path for path in there if not any(one.fullmatch(path) for one in named)]
        assert there
        assert unnamed == []
    # Named and made whenever it serves, not only sometimes:
    assert {path.name for path in daemon.state.iterdir()} == {"lock", "control.sock", "jobs"}
    assert (daemon.jobs / ".stopped/other").exists()


def test_signals() -> None:
    """The signals that are explained are those that the daemon handles, and the one that nobody can."""
    terms = re.findall(r"^(``SIG.*``)$", section(MANUAL, "Signals"), re.MULTILINE)
    described = set(re.findall(r"SIG\w+", " ".join(terms)))
    source = page("taskmaster/control/daemon.py")
    handled = set(re.findall(r"signal\.(SIG[A-Z][A-Z0-9]+)", source)) - {"SIGCHLD", "SIGPIPE"}
    assert described == handled | {"SIGKILL"}
    assert set(entries(section(MANUAL, "Signals"))) <= described
