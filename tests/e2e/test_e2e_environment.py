"""What a job's process finds: environment, user, mask, directory, descriptors, signals, limits."""

from __future__ import annotations

import json
import os
import pwd
import resource
import sys
from pathlib import Path

import pytest
from running import C_LIBRARY_SIGNALS, wait_for

REPORT = """
import json, os, resource, signal, sys
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[fd] = os.readlink("/proc/self/fd/" + fd)
    except OSError:
        pass
mask = os.umask(0)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
content = {
    "env": dict(os.environ), "fds": fds, "umask": mask, "cwd": os.getcwd(), "argv": sys.argv[1:],
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "blocked": int(status["SigBlk"], 16), "ignored": int(status["SigIgn"], 16),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "stdin": os.read(0, 1).decode(),
}
os.write(1, json.dumps(content).encode() + b"\\n")
"""


@pytest.fixture
def report(make_daemon, tmp_path):
    """Start a job that tells what it finds, with these keys; what each process told, by number."""
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    script.chmod(0o644)
    python = os.path.realpath(sys.executable)
    daemon = make_daemon()
    os.environ["SECRET_OF_THE_DAEMON"] = "x"
    try:
        daemon.start()
    finally:
        del os.environ["SECRET_OF_THE_DAEMON"]

    def run(name, *, words=(), **keys):
        daemon.job(name, [python, "-I", str(script), *words], restart="never", **keys)
        reply = daemon.ask("reload", name, wait=60)
        assert reply["response"] == "success", reply
        daemon.wait_state(name, "EXITED")
        found = []
        for number in range(keys.get("procNr", 1)):
            log = daemon.logs / f"jobs/{name}/{number}_stdout.log"
            wait_for(lambda log=log: log.exists() and log.read_text().endswith("\n"))
            found.append(json.loads(log.read_text()))
        return found

    run.daemon = daemon
    return run


def test_a_clean_house(report):
    """Clean environment, own session and group, nothing open but 0, 1, 2, no signal blocked or ignored, cwd /."""
    (found,) = report("plain")
    env = found["env"]
    me = pwd.getpwuid(os.geteuid())
    assert (env.pop("TASKMASTER_JOB"), env.pop("TASKMASTER_PROCESS")) == ("plain", "0")
    env.pop("TASKMASTER_INSTANCE")
    env.pop("LC_CTYPE", None)  # Python's own, where LANG is C
    assert set(env) == {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG"}
    assert (env["USER"], env["LOGNAME"], env["HOME"]) == (me.pw_name, me.pw_name, me.pw_dir)
    fds = {fd: target for fd, target in found["fds"].items() if target != f"/proc/{0}/fd"}
    open_ = {fd for fd, target in fds.items() if not target.endswith("/fd")}
    assert open_ == {"0", "1", "2"}
    assert fds["0"] == "/dev/null"
    assert found["stdin"] == ""
    assert (found["session"], found["group"]) == (True, True)
    assert (found["blocked"], found["cwd"], found["umask"]) == (0, "/", 0o022)
    # Python itself ignores SIGPIPE and SIGXFSZ.
    assert found["ignored"] & ~(1 << 12 | 1 << 24 | C_LIBRARY_SIGNALS) == 0
    assert found["files"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_each_process_has_its_number(report):
    """%n, and %% for a percent sign, in cmd and env; TASKMASTER_PROCESS counts from 0."""
    found = report(
        "many",
        procNr=3,
        words=["--port=800%n", "%%n", "100%", "%x"],
        env={"N": "p%n", "P": "%%", "E": "a=b"},
    )
    for number, one in enumerate(found):
        assert one["argv"] == [f"--port=800{number}", "%n", "100%", "%x"]
        env = one["env"]
        assert (env["N"], env["P"], env["E"]) == (f"p{number}", "%", "a=b")
        assert (env["TASKMASTER_JOB"], env["TASKMASTER_PROCESS"]) == ("many", str(number))


def test_keys_of_the_environment(report):
    """inheritEnv, env in both forms, umask and dir do what they say; a job cannot pose as another."""
    folder = report.daemon.folder
    (folder / "work").mkdir()
    (found,) = report("own", env=[{"name": "HOME", "value": "/x"}, {"name": "Ä", "value": "ö"}])
    assert (found["env"]["HOME"], found["env"]["Ä"]) == ("/x", "ö")
    (found,) = report("inherits", inheritEnv=True, umask="077", dir="work")
    assert found["env"]["PATH"] == os.environ["PATH"]
    assert found["env"].get("PYTHONPATH") is not None
    assert (found["umask"], found["cwd"]) == (0o077, str(folder / "work"))
    (found,) = report("absolute", dir=str(folder / "work/../work/"), umask="0")
    assert (found["umask"], found["cwd"]) == (0, str(folder / "work"))
    (found,) = report("poser", env={"TASKMASTER_JOB": "other", "TASKMASTER_PROCESS": "9"})
    assert (found["env"]["TASKMASTER_JOB"], found["env"]["TASKMASTER_PROCESS"]) == ("poser", "0")


@pytest.mark.skipif(os.geteuid() != 0, reason="runas needs root")
def test_runas(report):
    """The user's ids, groups and variables, root's nowhere; user:group takes the group; its output arrives."""
    nobody, daemon = pwd.getpwnam("nobody"), report.daemon
    # A shell, since the interpreter of these tests may be where only root can read.
    cmd = [
        "/bin/sh",
        "-c",
        "grep -E '^(Uid|Gid|Groups)' /proc/self/status; echo; env; echo x >> /dev/stdout; echo end",
    ]
    for name, runas, gid, keys in (
        ("user", "nobody", nobody.pw_gid, {}), ("group", "nobody:daemon", 1, {}),
        ("inherit", "nobody", nobody.pw_gid, {"inheritEnv": True}),
        ("direct", "nobody", nobody.pw_gid, {"logMaxBytes": 0}),
    ):  # fmt: skip
        daemon.job(name, cmd, restart="never", runas=runas, **keys)
        assert daemon.ask("reload", name, wait=60) == {"response": "success"}
        daemon.wait_state(name, "EXITED")
        log = daemon.logs / f"jobs/{name}/0_stdout.log"
        wait_for(lambda log=log: log.exists() and log.read_text().endswith("\nend\n"))
        head, _, rest = log.read_text().partition("\n\n")
        ids = dict(line.split(":\t") for line in head.splitlines())
        assert ids["Uid"].split() == [str(nobody.pw_uid)] * 4
        assert ids["Gid"].split() == [str(gid)] * 4
        assert "0" not in ids["Groups"].split()
        env = dict(line.split("=", 1) for line in rest.splitlines() if "=" in line)
        assert (env["USER"], env["LOGNAME"], env["HOME"]) == ("nobody", "nobody", nobody.pw_dir)
        assert rest.endswith("\nx\nend\n"), name


@pytest.mark.skipif(os.geteuid() != 0, reason="runas needs root")
def test_a_user_cannot_enter_where_only_root_may(report):
    """The directory is entered as the job's user, so root's rights do not open what is closed to it."""
    closed = report.daemon.folder / "closed"
    closed.mkdir(mode=0o700)
    daemon = report.daemon
    daemon.job("nosy", ["id"], runas="nobody", dir=str(closed), restart="never", autoStart=False)
    assert daemon.ask("reload", "nosy")["response"] == "success"
    error = daemon.ask("start", "nosy")["error"]
    assert error == f"process 0: directory {closed}: Permission denied"


def test_shell_and_words(report, tmp_path):
    """``shell`` runs a string by /bin/sh with exec; without it nothing is expanded, words are split."""
    daemon = report.daemon
    cases = {
        "split": ("/bin/echo 'a  b' \"c $HOME\" d\\ e *", False, "a  b c $HOME d e *\n"),
        "shell": ("echo $TASKMASTER_JOB 'a  b'; exit 3", True, None),
    }
    for name, (cmd, shell, _) in cases.items():
        daemon.job(name, cmd, shell=shell, restart="never")
        assert daemon.ask("reload", name, wait=60)["response"] == "success"
        daemon.wait_state(name, "EXITED")
    log = Path(daemon.logs / "jobs/split/0_stdout.log")
    wait_for(lambda: log.exists() and log.read_text() == cases["split"][2])
    daemon.job("pipe", "sleep 1000 > /dev/null", shell=True)
    assert daemon.ask("reload", "pipe", wait=60)["response"] == "success"
    (pid,) = daemon.pids("pipe")
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\0"
