"""A new program that passes its trial, is executed, and fails then: the old one goes on, from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from faults_programs import Program, is_held
from running import Client, Daemon, process_start, query, wait_for

START = "        loop = self._loop\n"
#: What fails after the exec: file, text there, what takes its place, and a word of the answer.
STEPS = {
    "it does not understand what it is handed": (
        *("control/lifetime/fallback.py", "self._data, type=HandOver", "self._data, type=int"),
        "Expected `int`",
    ),
    "it cannot read the configuration": (
        "control/main.py",
        "        return configuration.loaded(file,",
        "        return configuration.loaded(file if handed is None else Path('/nowhere/x'),",
        "/nowhere",
    ),
    "a constructor raises": (
        "control/lifetime/premises.py",
        '    """All of it, taken. Raises TaskmasterError."""\n',
        "    1 // 0\n",
        "ZeroDivisionError",
    ),
    "a constructor has no memory": (
        "control/lifetime/premises.py",
        '    """All of it, taken. Raises TaskmasterError."""\n',
        "    raise MemoryError\n",
        "MemoryError",
    ),
    "a constructor refuses": (
        "control/lifetime/premises.py",
        '    """All of it, taken. Raises TaskmasterError."""\n',
        '    raise FileError("x", "y", "nothing", "something")\n',
        "accepted: something",
    ),
    "the start raises": ("control/daemon.py", START, '        raise RuntimeError("no")\n', "no"),
    "the start raises when watchdogs have been met": (
        *("control/daemon.py", "        self._proofs.begin()\n", "        {}['proofs']\n"),
        "KeyError",
    ),
    "it ends by itself": (
        "control/daemon.py",
        START,
        "        sys.exit(0)\n",
        "ended in the middle",
    ),
    "it hangs": ("control/daemon.py", START, "        while True: pass\n", "not over"),
}


class Site:
    """A daemon that is upgraded again and again, to a program that fails each time."""

    def __init__(self, folder) -> None:
        (folder / "host").mkdir()
        self.daemon = Daemon(folder / "host")
        self.program = Program(folder / "program")
        self.daemon.job("web", ["sleep", "1000"])
        self.program.start(self.daemon)
        (self.pid,) = [one["pid"] for one in self.daemon.wait_state("web", "RUNNING")["processes"]]
        self.begun = process_start(self.pid)

    def goes_on(self) -> None:
        """Same daemon, same process, watched."""
        assert self.daemon.running
        assert self.daemon.wait_state("web", "RUNNING")["processes"][0]["pid"] == self.pid
        assert process_start(self.pid) == self.begun
        assert len(self.daemon.events("process.started", job="web")) == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fallback")
    folder.chmod(0o755)
    site = Site(folder)
    yield site
    assert site.daemon.close() == []


@pytest.mark.parametrize("what", STEPS)
def test_the_old_program_goes_on(site: Site, what: str) -> None:
    """Whatever fails: clients keep their connections and get their replies; nothing was started or stopped."""
    *change, word = STEPS[what]
    failed, upgraded = (
        len(site.daemon.events(f"daemon.{event}")) for event in ("upgrade_failed", "upgraded")
    )
    site.program.change("control/lifetime/fallback.py", "START_S: Final = 60.0", "START_S = 3.0")
    site.program.change(*change)
    try:
        with Client(site.daemon.socket) as client, Client(site.daemon.socket) as other:
            other.send(query("status", "web")[:9])
            client.send(query("upgrade") + query("status", "web"))
            reply = client.reply()
            assert reply["response"] == "fail", reply
            assert word in reply["error"]
            assert "goes on" in reply["error"]
            assert client.reply()["response"] == "status"
            other.send(query("status", "web")[9:])
            assert other.reply()["response"] == "status"
    finally:
        site.program.restore()
    site.goes_on()
    (record,) = site.daemon.events("daemon.upgrade_failed")[failed:]
    assert word in record["error"]
    assert len(site.daemon.events("daemon.upgraded")) == upgraded
    (asked,) = site.daemon.events("command.requested", command="upgrade")[-1:]
    (done,) = site.daemon.events("command.completed", id=asked["id"])
    assert done["outcome"] == "fail"
    assert word in done["error"]


def test_then_the_installed_program(site: Site) -> None:
    """A program that was executed from memory tries the one on the disk next, and becomes it."""
    upgraded = len(site.daemon.events("daemon.upgraded"))
    assert site.daemon.ask("upgrade") == {"response": "success"}
    wait_for(lambda: len(site.daemon.events("daemon.upgraded")) == upgraded + 1)
    site.goes_on()


def test_a_configuration_that_changes_after_the_trial(
    make_daemon: Callable[..., Daemon], tmp_path
) -> None:
    """The old program goes on with the configuration that it had, whatever is in the file now."""
    daemon = make_daemon(maxClients=7)
    daemon.job("web", ["sleep", "1000"])
    daemon.job("slow", ["sleep", "1000"], startTime=1000)
    daemon.start()
    pids = _begin(daemon)
    with Client(daemon.socket) as waiting, Client(daemon.socket) as client:
        waiting.send(query("status", "slow", wait=600))
        client.send(query("upgrade"))
        # What changes something waits: the trial is over.
        wait_for(lambda: is_held(daemon))
        daemon.configure(stateDirectory="another")
        reply = client.reply()
        assert reply["response"] == "fail"
        assert "stateDirectory" in reply["error"]
        assert "status tells" in waiting.reply()["error"]
    assert daemon.running
    assert daemon.wait_state("web", "RUNNING")["processes"][0]["pid"] == pids[0]
    assert not (daemon.folder / "another").exists()
    daemon.configure()
    assert daemon.ask("upgrade") == {"response": "success"}


def _begin(daemon: Daemon) -> list[int]:
    daemon.wait_state("web", "RUNNING")
    daemon.wait_state("slow", "STARTING")
    return daemon.pids("web")


def test_neither_can_start(make_daemon: Callable[..., Daemon], tmp_path) -> None:
    """Then the daemon ends, says so, and everything runs on until the next one comes."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    program = Program(tmp_path / "program")
    program.start(daemon)
    (pid,) = [one["pid"] for one in daemon.wait_state("web", "RUNNING")["processes"]]
    program.change(
        "control/lifetime/premises.py",
        '    """All of it, taken. Raises TaskmasterError."""\n',
        '    os.unlink(config.state_directory / "lock")\n    raise MemoryError\n',
    )
    with Client(daemon.socket) as client:
        client.send(query("upgrade"))
        assert client.frame() == b""
    assert daemon.host.wait(daemon.pid) != 0
    assert process_start(pid) is not None
    said = daemon.messages.read_text().splitlines()[-1]
    assert "MemoryError" in said
    assert "run on" in said
    (record,) = daemon.events("daemon.upgrade_failed")
    assert "MemoryError" in record["error"]
    daemon.start()
    assert daemon.wait_state("web", "RUNNING")["processes"][0]["pid"] == pid
    assert len(daemon.events("process.started", job="web")) == 1


def test_the_interpreter_goes_between_trial_and_exec(
    make_daemon: Callable[..., Daemon], tmp_path
) -> None:
    """Who asked gets a reply where the kernel refuses the exec after a good trial, and nothing was let go of."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.job("slow", ["sleep", "1000"], startTime=1000)
    program = Program(tmp_path / "program")
    program.start(daemon, own_interpreter=True)
    pids = _begin(daemon)
    with Client(daemon.socket) as waiting, Client(daemon.socket) as client:
        waiting.send(query("status", "slow", wait=600))
        client.send(query("upgrade"))
        wait_for(lambda: is_held(daemon))
        program.python.rename(tmp_path / "away")
        assert "cannot be executed" in client.reply()["error"]
    (tmp_path / "away").rename(program.python)
    assert daemon.pids("web") == pids
    assert daemon.ask("upgrade") == {"response": "success"}
    assert daemon.pids("web") == pids


def test_watchdogs_that_cannot_begin(make_daemon: Callable[..., Daemon], tmp_path) -> None:
    """The first new watchdog that fails keeps the others from leaving; with a mended program all is well again."""
    daemon = make_daemon()
    names = ("a", "b", "c")
    for name in names:
        daemon.job(name, ["sleep", "1000"])
    program = Program(tmp_path / "program")
    program.start(daemon)
    for name in names:
        daemon.wait_state(name, "RUNNING")
    before = {name: daemon.pids(name) for name in names}
    program.change("watchdog/entry.py", "    service.begin(launch.link)\n", "    1 // 0\n")
    assert daemon.ask("upgrade") == {"response": "success"}
    wait_for(lambda: daemon.events("watchdog.lost"))
    lost = {one["job"] for one in daemon.events("watchdog.lost")}
    assert len(lost) == 1
    for name in set(names) - lost:
        daemon.wait_state(name, "RUNNING")
        assert daemon.pids(name) == before[name]
    assert {one["job"] for one in daemon.events("watchdog.lost")} == lost
    assert all(process_start(pid) for pids in before.values() for pid in pids)
    program.restore()
    assert daemon.ask("upgrade") == {"response": "success"}
    for name in names:
        daemon.wait_state(name, "RUNNING")
        assert daemon.pids(name) == before[name]
    assert len(daemon.events("process.started")) == len(names)
