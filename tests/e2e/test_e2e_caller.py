"""What taskmasterd keeps of who started it: nothing, whatever that was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
from running import alive, wait_for

from taskmaster.control import caller

#: Does odd things to itself, then becomes what its arguments say.
ODD = """
import os, resource, signal, sys
for fd in (7, 9, 700):
    os.dup2(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fd)
    os.set_inheritable(fd, True)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
signal.alarm(1)
os.umask(0o777)
os.chdir(os.path.dirname(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""
NAME = "протокол €.log"


def started(daemon, *words, wait=True):
    """Start the daemon behind other words than usual."""
    program = [sys.executable, "-m", "taskmaster.control", "-c", str(daemon.config)]
    daemon.pid = daemon.host.start([*words, *program], daemon.messages)
    if wait:
        wait_for(daemon.serves)


def descriptors(pid):
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            pass
    return found


def status(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.splitlines()}


@pytest.fixture
def odd(make_daemon, tmp_path):
    """A daemon with a job, started by ``ODD``; the file that its caller had open."""
    script, lock = tmp_path / "odd.py", tmp_path / "lock"
    script.write_text(ODD)
    daemon = make_daemon()
    daemon.job(
        "app",
        ["/bin/sh", "-c", "ulimit -S -n > limits; ulimit -S -f >> limits; exec sleep 1000"],
        dir=str(tmp_path),
    )
    started(daemon, sys.executable, str(script), str(lock))
    daemon.wait_state("app", "RUNNING")
    return daemon, lock


def test_nothing_of_the_caller_is_kept(odd, tmp_path):
    """Neither daemon nor watchdog has its descriptors, directory, mask or signals; jobs have its limits."""
    daemon, lock = odd
    watchdog = daemon.status("app")["watchdog"]["pid"]
    for pid in (daemon.pid, watchdog):
        assert str(lock) not in descriptors(pid).values()
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        found = status(pid)
        assert int(found["SigBlk"], 16) == 0
        ignored = int(found["SigIgn"], 16)
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
            assert not ignored >> number - 1 & 1, number
    assert status(daemon.pid)["Umask"] == "0022"
    files = Path(f"/proc/{daemon.pid}/limits").read_text()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert f"{hard}" in next(line for line in files.splitlines() if "open files" in line).split()[3]
    wait_for(lambda: (tmp_path / "limits").read_text().count("\n") == 2)
    assert (tmp_path / "limits").read_text().split()[0] == "64"


def test_what_the_caller_blocked_or_ignored_still_works(odd):
    """A crash is noticed, SIGHUP reads the directory, SIGTERM ends it, though they were ignored and blocked."""
    daemon, _ = odd
    (pid,) = daemon.pids("app")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.pids("app") not in ([], [pid]))
    daemon.job("later", "sleep 1000")
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: b"later" in daemon.ask("list")["data"])
    assert daemon.stop() == 0


def test_no_signal_without_a_use_ends_daemon_or_watchdog(daemon):
    """All of them, real-time ones too; SIGQUIT of a terminal and an alarm included."""
    daemon.job("app", "sleep 1000")
    daemon.ask("restart")
    watchdog = daemon.wait_state("app", "RUNNING")["watchdog"]["pid"]
    for number in sorted(caller.UNUSED):
        os.kill(daemon.pid, number)
        os.kill(watchdog, number)
        assert daemon.ask("status", "app")["response"] == "status"
    assert daemon.status("app")["watchdog"] == {
        "pid": watchdog,
        "state": "ATTACHED",
        "relaunches": 0,
    }
    assert daemon.running


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-"])
def test_a_missing_descriptor_is_nothing_else(make_daemon, closed):
    """Also where only some are missing, and over an upgrade; the audit log has no message in it."""
    daemon = make_daemon(verbosity=3)
    started(daemon, "/bin/sh", "-c", f'exec "$0" "$@" {closed}')
    missing = {"<": 0, ">": 1, "2": 2}
    wanted = {missing[word[0]] for word in closed.split()}
    assert daemon.ask("start", "nosuch")["response"] == "fail"
    assert daemon.ask("upgrade")["response"] == "success"
    found = descriptors(daemon.pid)
    assert {fd: found[fd] for fd in wanted} == dict.fromkeys(wanted, "/dev/null")
    assert all(isinstance(record, dict) for record in daemon.audit())


def test_a_relative_configuration_outlives_its_directory(make_daemon, tmp_path):
    """Started from a folder that is removed: an upgrade, a restart and the words of ps need it no more."""
    daemon = make_daemon()
    here = tmp_path / "deployment"
    here.mkdir()
    relative = os.path.relpath(daemon.config, here)
    program = ["-m", "taskmaster.control", "-c", relative]
    shell = f'cd {here} && exec "$0" "$@"'
    daemon.pid = daemon.host.start(
        ["/bin/sh", "-c", shell, sys.executable, *program], daemon.messages
    )
    wait_for(daemon.serves)
    shutil.rmtree(here)
    assert daemon.ask("upgrade")["response"] == "success"
    assert str(daemon.config) in Path(f"/proc/{daemon.pid}/cmdline").read_text().split("\0")
    assert daemon.ask("restart", force=True)["response"] == "success"


def test_a_relative_configuration_in_a_folder_that_is_gone(make_daemon, tmp_path):
    """One line says so, and nothing is started."""
    daemon = make_daemon()
    here = tmp_path / "gone"
    here.mkdir()
    shell = f'cd {here} && rmdir {here} && exec "$0" -m taskmaster.control -c config.json'
    pid = daemon.host.start(["/bin/sh", "-c", shell, sys.executable], daemon.messages)
    assert os.waitstatus_to_exitcode(daemon.host.wait(pid)) == 78
    said = daemon.messages.read_text().splitlines()
    assert "is gone" in said[-1]


@pytest.mark.parametrize(
    "variables",
    [
        ["LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"],
        ["LC_ALL=POSIX", "PYTHONIOENCODING=latin-1", "PYTHONUTF8=0"],
    ],
)
def test_names_are_utf8_in_any_locale(make_daemon, tmp_path, variables):
    """Arguments, environment and file names are the bytes of the job file, also after an upgrade."""
    daemon = make_daemon()
    words = "naïve € 日本"
    daemon.job(
        "app",
        ["/bin/sh", "-c", 'printf "%s|%s\\n" "$1" "$WORDS"; exec sleep 1000', "sh", words],
        env={"WORDS": words},
        stdout=NAME,
    )
    started(daemon, "/usr/bin/env", *variables)
    daemon.wait_state("app", "RUNNING")
    log = os.fsencode(daemon.logs) + b"/jobs/app/" + NAME.encode()
    wait_for(lambda: os.path.exists(log))
    wait_for(lambda: Path(os.fsdecode(log)).read_bytes() == f"{words}|{words}\n".encode())
    assert daemon.ask("upgrade")["response"] == "success"
    (pid,) = daemon.pids("app")
    reply = daemon.ask("push", "euro", data=json.dumps({"cmd": ["sleep", "1000"], "stdout": NAME}))
    assert reply["response"] == "success", reply
    assert alive(pid)
