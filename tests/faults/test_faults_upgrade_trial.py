"""A new program that could not start, or that would stand elsewhere: refused before anything is let go of."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults_programs import Program
from running import Daemon, process_start, wait_for


class Site(NamedTuple):
    """A daemon that is upgraded again and again, its program, and the process of its job."""

    daemon: Daemon
    program: Program
    pid: int
    start: int | None

    def goes_on(self) -> None:
        """Same daemon, same process, and served."""
        assert self.daemon.running
        assert self.daemon.pids("web") == [self.pid]
        assert process_start(self.pid) == self.start


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("upgrade")
    folder.chmod(0o755)
    (folder / "host").mkdir()
    daemon = Daemon(folder / "host")
    program = Program(folder / "program")
    daemon.job("web", ["sleep", "1000"])
    program.start(daemon)
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    yield Site(daemon, program, pid, process_start(pid))
    assert daemon.close() == []


def configured(**keys: Any) -> Callable[[Site], Any]:
    return lambda site: site.daemon.configure(**keys)


def replaced(file: str, old: str, new: str) -> Callable[[Site], Any]:
    return lambda site: site.program.change(file, old, new)


@contextlib.contextmanager
def mode(path: Path, wrong: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(wrong)
    yield
    path.chmod(before)


@contextlib.contextmanager
def away(path: Path) -> Iterator[None]:
    kept = path.with_name(f"{path.name}.away")
    path.rename(kept)
    yield
    kept.rename(path)


@contextlib.contextmanager
def there(path: Path, *, folder: bool = False, mode: int = 0o600) -> Iterator[None]:
    if folder:
        path.mkdir()
    else:
        path.write_text("x")
        path.chmod(mode)
    yield
    path.rmdir() if folder else path.unlink()


def with_there(name: str, *, folder: bool = False, **keys: Any) -> Callable[[Site], Any]:
    """Something is at ``name`` in the daemon's folder, and the configuration leads to it."""

    def prepared(site: Site) -> Any:
        site.daemon.configure(**keys)
        return there(site.daemon.folder / name, folder=folder)

    return prepared


@contextlib.contextmanager
def port_taken(site: Site) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        site.daemon.configure(port=other.getsockname()[1])
        yield


@contextlib.contextmanager
def copied_jobs(site: Site) -> Iterator[None]:
    """Another folder, even one with the same files, is not the one in use."""
    other = site.daemon.folder / "copy"
    other.mkdir(mode=0o700)
    (other / "web.tm.json").write_bytes((site.daemon.jobs / "web.tm.json").read_bytes())
    site.daemon.configure(configDirectory="copy")
    yield


#: What is wrong with the new program or what it would stand on, and a word of the answer.
STEPS: dict[str, tuple[Callable[[Site], Any], str]] = {
    "configuration: unknown key": (configured(prot=7), "prot"),
    "configuration: a rule for nobody": (
        configured(access=[{"role": "viewer", "users": ["nobody-of-that-name"]}]),
        "nobody-of-that-name",
    ),
    "configuration: TLS files": (
        configured(tls={"certificate": "c", "key": "k", "clientCA": "a"}),
        "tls.certificate",
    ),
    "state directory: another": (configured(stateDirectory="another"), "stateDirectory"),
    "state directory: a file": (with_there("x", stateDirectory="x"), "stateDirectory"),
    "job directory: another, empty": (
        with_there("empty", folder=True, configDirectory="empty"),
        "configDirectory",
    ),
    "job directory: another, with the same files": (copied_jobs, "configDirectory"),
    "job directory: emptied": (lambda site: away(site.daemon.jobs / "web.tm.json"), "no file"),
    "job directory: gone": (lambda site: away(site.daemon.jobs), "configDirectory"),
    "job directory: open to others": (lambda site: mode(site.daemon.jobs, 0o777), "mode 0777"),
    "log folder: a file": (with_there("x", logDirectory="x"), "logDirectory"),
    "log folder: below a file": (with_there("x", logDirectory="x/log"), "logDirectory"),
    "audit log: a folder": (with_there("x", folder=True, auditFile="x"), "a directory"),
    "audit log: in a folder that is a file": (with_there("x", auditFile="x/a"), "no folder"),
    "sealing key: others may read it": (
        lambda site: there(site.daemon.logs / "audit.seal", mode=0o644),
        "mode 0644",
    ),
    "sealing key: none": (lambda site: there(site.daemon.logs / "audit.seal"), "no sealing key"),
    "messages: a folder": (with_there("x", folder=True, logFile="x"), "logFile"),
    "messages: in a folder that is a file": (with_there("x", logFile="x/m"), "no folder"),
    "listener: a port that is taken": (port_taken, "port"),
    "listener: a socket in no folder": (configured(socket="nowhere/x.sock"), "socket"),
    "listener: a socket that is a file": (with_there("x", socket="x"), "no socket"),
    "program: no Python": (replaced("control/session.py", "class Session", "class ("), "Syntax"),
    "program: a module is missing": (
        replaced("watchdog/entry.py", "import os", "import os, not_there"),
        "not_there",
    ),
    "program: a constructor raises": (
        replaced("control/server.py", "self._idle = ", "self._idle = 1 // 0, "),
        "ZeroDivisionError",
    ),
    "program: the last constructor raises": (
        replaced("control/daemon.py", "self._compose_life(", "self._compose_death("),
        "_compose_death",
    ),
    "program: it does not understand what it is handed": (
        replaced("control/handover.py", "    version: str\n", "    version: int\n"),
        "version",
    ),
    "program: it cannot read any job file": (
        replaced("config/jobfile.py", "def parse_job(", "def parse_jobs("),
        "parse_job",
    ),
    "program: it ends without a word": (
        replaced("control/main.py", "    handed = handover.load(launch.TRIAL)", "    os._exit(3)"),
        "wait status 768",
    ),
    "program: it is killed": (
        replaced(
            "control/main.py",
            "    handed = handover.load(launch.TRIAL)",
            "    os.kill(os.getpid(), 9)",
        ),
        "wait status 9",
    ),
}


@pytest.mark.parametrize("what", STEPS)
def test_refused_before_anything_is_let_go(site: Site, what: str) -> None:
    """Each step of a start, made to fail: the reply says how, the log too, and nothing has changed."""
    prepare, word = STEPS[what]
    known = len(site.daemon.events("daemon.upgrade_failed"))
    listed = sorted(os.listdir(site.daemon.folder))
    prepared = prepare(site)
    try:
        with prepared if hasattr(prepared, "__enter__") else contextlib.nullcontext():
            made = sorted(os.listdir(site.daemon.folder))
            reply = site.daemon.ask("upgrade")
            assert sorted(os.listdir(site.daemon.folder)) == made
    finally:
        site.program.restore()
        site.daemon.configure()
    assert reply["response"] == "fail", reply
    assert word in reply["error"], reply
    assert "goes on" in reply["error"]
    site.goes_on()
    failed = site.daemon.events("daemon.upgrade_failed")[known:]
    assert [word in one["error"] for one in failed] == [True]
    assert site.daemon.events("daemon.upgraded") == []
    assert set(listed) <= set(os.listdir(site.daemon.folder))


def test_mended_it_succeeds(site: Site) -> None:
    """Whatever failed before: the next attempt, with all in order, is an upgrade."""
    assert site.daemon.ask("upgrade") == {"response": "success"}
    wait_for(lambda: site.daemon.events("daemon.upgraded"))
    site.goes_on()


def moved(name: str, key: str) -> Callable[[Daemon], None]:
    """A folder under another path is the same folder."""

    def move(daemon: Daemon) -> None:
        (daemon.folder / name).rename(daemon.folder / f"{name}-moved")
        daemon.configure(**{key: f"{name}-moved", "socket": "c.sock"})

    return move


CHANGES: dict[str, Callable[[Daemon], None]] = {
    "state directory moved": moved("state", "stateDirectory"),
    "job directory moved": moved("jobs", "configDirectory"),
    "another log folder": lambda daemon: daemon.configure(logDirectory="logs/new", socket="c.sock"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_can_change(make_daemon: Callable[..., Daemon], what: str) -> None:
    """What is the same by identity, or concerns nothing that runs, is no reason to refuse."""
    daemon = make_daemon(socket="c.sock")
    daemon.socket = daemon.folder / "c.sock"
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    CHANGES[what](daemon)
    assert daemon.ask("upgrade") == {"response": "success"}
    assert [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]] == [pid]
    assert daemon.stop() == 0
    assert process_start(pid) is None
