"""taskmasterd itself: its command line, its exit statuses, its orderly end, and push over its death."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from running import Client, alive, wait_for

DAEMON = [sys.executable, "-m", "taskmaster.control"]


def run(*arguments, cwd="/", **env):
    return subprocess.run(
        [*DAEMON, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), **env},
    )


def test_one_daemon_to_a_state_directory(daemon):
    """A second daemon exits with 75 and names who holds the directory; the first notices nothing."""
    second = run("-c", daemon.config)
    assert second.returncode == 75
    assert str(daemon.pid) in second.stderr
    assert str(daemon.state) in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert daemon.serves()
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.state.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"port": "x"}', ["port", '"x"', "accepted"]), ('{"prt": 1}', ["prt", '"port"']), ("{", ["line 1"]),
        ("[]", ["list"]), ('{"port": 70000}', ["port", "70000"]), ('{"maxClients": 0}', ["maxClients"]),
        ('{"verbosity": 4}', ["verbosity"]), ('{"stateDirectory": ""}', ["stateDirectory"]),
        ('{"stateDirectory": "/dev/null/x"}', ["stateDirectory"]),
        ('{"logDirectory": "/dev/null/x"}', ["logDirectory"]),
        ('{"configDirectory": "/dev/null/x"}', ["/dev/null/x"]), ('{"auditFile": "/dev/null/x"}', ["/dev/null"]),
        ('{"socket": "/dev/null/x"}', ["/dev/null/x"]), ('{"auditFile": "/dev"}', ["/dev"]),
    ],
)  # fmt: skip
def test_bad_configuration(tmp_path, content, words):
    """Exit 78, or 1 where no address can be had, and one line with file, key and reason; nothing is left."""
    config = tmp_path / "config.json"
    settings = {"configDirectory": "j", "logDirectory": "l", "stateDirectory": "s", "port": 0}
    if content.startswith("{") and content != "{":
        content = json.dumps(settings | json.loads(content))
    config.write_text(content)
    ended = run("-c", config)
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.returncode == (1 if "socket" in content and "/dev/null/x" in content and words == ["/dev/null/x"]
                                and '"socket": "/dev' in content else 78), ended.stderr  # fmt: skip
    assert ended.stderr.startswith("taskmasterd: ")
    for word in words:
        assert word in ended.stderr


def test_configuration_that_is_not_there_or_not_ours(tmp_path):
    """A file that is missing or writable by all is refused; the current directory's is never read."""
    missing = run("-c", tmp_path / "none.json")
    assert missing.returncode == 78
    assert "none.json" in missing.stderr
    config = tmp_path / "config.json"
    config.write_text('{"port": "read"}')
    config.chmod(0o666)
    assert run("-c", config).returncode == 78
    config.chmod(0o600)
    assert '"read"' in run(TASKMASTER_CONFIG=str(config)).stderr
    if not Path("/etc/taskmaster/config.json").exists():
        state = {
            "XDG_STATE_HOME": str(tmp_path / "s"),
            "XDG_CONFIG_HOME": str(tmp_path / "c"),
            "HOME": str(tmp_path),
        }
        assert '"read"' not in run("--check", cwd=tmp_path, **state).stderr


def test_port_in_use(daemon):
    """A taken port and no socket: one line and exit 1, and the state directory is free again."""
    other = daemon.folder / "other.json"
    settings = {
        "socket": None,
        "configDirectory": "j2",
        "logDirectory": "l2",
        "stateDirectory": "s2",
        "port": daemon.port,
    }
    other.write_text(json.dumps(settings))
    for _ in range(2):
        ended = run("-c", other)
        assert ended.returncode == 1
        assert str(daemon.port) in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_orderly_end(make_daemon, number):
    """SIGTERM and SIGINT stop every job, leave no process, socket or half-written file, and exit with 0."""
    daemon = make_daemon()
    for name in ("a", "b", "c"):
        daemon.job(name, ["sleep", "1000"], procNr=3)
    daemon.job(
        "stubborn", ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"], stopTime=0.3
    )
    daemon.start()
    for name in ("a", "b", "c", "stubborn"):
        daemon.wait_state(name, "RUNNING")
    pids = [pid for name in ("a", "b", "c", "stubborn") for pid in daemon.pids(name)]
    pids += [daemon.status(name)["watchdog"]["pid"] for name in ("a", "b", "c")]
    assert len(pids) == 13
    idle = daemon.client(tcp=True)
    os.kill(daemon.pid, number)
    assert os.waitstatus_to_exitcode(daemon.host.wait(daemon.pid)) == 0
    assert not any(alive(pid) for pid in pids)
    assert idle.frame() == b""
    assert not daemon.socket.exists()
    assert list((daemon.state / "jobs").glob("*")) == []
    daemon.start()
    for name in ("a", "b", "c", "stubborn"):
        daemon.wait_state(name, "RUNNING")


def test_an_orderly_end_does_not_forget_who_was_stopped(daemon):
    """A job that an administrator stopped stays stopped over an orderly restart; autoStart false stays down."""
    for name in ("stopped", "killed", "up", "again"):
        daemon.job(name, ["sleep", "1000"])
    daemon.job("manual", ["sleep", "1000"], autoStart=False)
    assert daemon.ask("restart")["response"] == "success"
    for name in ("stopped", "killed", "up", "again"):
        daemon.wait_state(name, "RUNNING")
    assert daemon.ask("start", "manual", wait=60)["response"] == "success"
    assert daemon.ask("stop", "stopped", wait=60)["response"] == "success"
    assert daemon.ask("kill", "killed", wait=60)["response"] == "success"
    assert daemon.ask("stop", "again", wait=60)["response"] == "success"
    assert daemon.ask("start", "again", wait=60)["response"] == "success"
    for end in (daemon.stop, daemon.kill):
        end()
        daemon.start()
        daemon.wait_state("up", "RUNNING")
        daemon.wait_state("again", "RUNNING")
        for name in ("stopped", "killed"):
            daemon.wait_state(name, "STOPPED")
        if end == daemon.stop:
            daemon.wait_state("manual", "STOPPED")
        assert daemon.events("process.started", job="stopped")[1:] == []


def test_detach(make_daemon):
    """With --detach the command returns once all is served, with the status of a start that failed otherwise."""
    daemon = make_daemon()
    daemon.job("a", ["sleep", "1000"])
    parent = daemon.host.start([*DAEMON, "--detach", "-c", str(daemon.config)], daemon.messages)
    assert os.waitstatus_to_exitcode(daemon.host.wait(parent)) == 0
    with Client(daemon.socket) as client:  # at once: it serves
        assert client.ask("list")["response"] == "list"
    pid = daemon.events("daemon.started")[-1]["pid"]
    assert os.getsid(pid) != os.getsid(0)
    daemon.wait_state("a", "RUNNING")
    again = daemon.host.start([*DAEMON, "--detach", "-c", str(daemon.config)], daemon.messages)
    assert os.waitstatus_to_exitcode(daemon.host.wait(again)) == 75
    assert str(pid) in daemon.messages.read_text()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid))


def test_push_survives_every_death(make_daemon):
    """SIGKILL at random moments of a storm of pushes: the file is whole, one that was pushed; a reply was kept."""
    daemon = make_daemon()
    content = [
        json.dumps({"cmd": ["sleep", "1000"], "autoStart": False}) + f" // {number} " + "x" * 20000
        for number in range(50)
    ]
    whole = {hashlib.sha256(one.encode()).hexdigest() for one in content}
    path = daemon.jobs / "a.tm.json"
    path.write_text(content[0])
    dice = random.Random(7)
    for _ in range(12):
        daemon.start()
        answered = []

        def storm(answered=answered):
            try:
                with Client(daemon.socket) as client:
                    while True:
                        one = dice.choice(content)
                        if client.ask("push", "a", data=one)["response"] == "success":
                            answered.append(one)
            except (AssertionError, ConnectionError):
                pass  # the daemon is gone

        threads = [threading.Thread(target=storm)]
        for thread in threads:
            thread.start()
        enough = dice.randrange(1, 15)
        wait_for(lambda answered=answered, enough=enough: len(answered) >= enough)
        daemon.kill()
        for thread in threads:
            thread.join()
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() in whole
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or data == content[0].encode()
    daemon.start()
    assert daemon.ask("pull", "a")["data"] == path.read_bytes()
    assert (
        daemon.status("a")["definition"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert [one.name for one in daemon.jobs.iterdir() if "put" in one.name] == []


def test_a_state_folder_that_is_removed(make_daemon):
    """A job's state folder is removed and its watchdog dies: it gets a working watchdog, and can be stopped."""
    daemon = make_daemon()
    daemon.job("a", ["sleep", "1000"])
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    (other,) = daemon.wait_state("other", "RUNNING") and daemon.pids("other")
    (pid,) = daemon.pids("a")
    shutil.rmtree(daemon.state / "jobs/a")
    watchdog = daemon.status("a")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGKILL)
    try:
        wait_for(lambda: _attached(daemon, watchdog), "a new watchdog is there", 10)
        assert daemon.ask("stop", "a", wait=30)["response"] == "success"
        assert not alive(pid)
        assert daemon.ask("start", "a", wait=30)["response"] == "success"
        assert daemon.pids("other") == [other]
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def _attached(daemon, but):
    watchdog = daemon.status("a")["watchdog"]
    return watchdog["state"] == "ATTACHED" and watchdog["pid"] != but


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGHUP])
def test_the_file_of_its_messages(make_daemon, number):
    """Renamed and told so, it is opened anew; a client that only reads leaves no line in it."""
    daemon = make_daemon(logFile="own.log", verbosity=2)
    daemon.start()
    own, aside = daemon.folder / "own.log", daemon.folder / "own.log.1"
    wait_for(lambda: "serving 0 jobs" in own.read_text())
    for _ in range(50):
        assert daemon.ask("list")["response"] == "list"
    assert "connected" not in own.read_text()
    own.rename(aside)
    os.kill(daemon.pid, number)
    wait_for(own.exists)
    assert daemon.ask("push", "web", data='{"cmd": "sleep 1000"}')["response"] == "success"
    wait_for(lambda: "connected" in own.read_text())
    assert "connected" not in aside.read_text()
    assert daemon.messages.read_text() == ""
