"""The exit statuses of taskmasterctl, each seen from a real process."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from cli_servers import (
    DEADLINE_S,
    Jobs,
    command_line,
    environment,
    fail,
    frames,
    interrupt_when_asleep,
)

from taskmaster.errors import TaskmasterError


def test_0_done_and_redundant(make_server, ctl):
    """What is done, and what was so already, both exit 0."""
    server = make_server(lambda query: {"response": "success"})
    assert ctl("-c", server.address, "start", "web") == (0, "web: started\n", "")
    server = make_server(lambda query: {"response": "redundant"})
    assert ctl("-c", server.address, "start", "web") == (0, "web: already running\n", "")


def test_unix_socket(make_server, ctl, tmp_path):
    """A server named with a slash is a Unix socket."""
    server = make_server(Jobs(web="RUNNING"), path=str(tmp_path / "control.sock"))
    assert ctl("-c", server.address, "status").status == 0


@pytest.mark.parametrize("code", [None, *[e.code for e in TaskmasterError.__subclasses__()]])
def test_status_follows_the_code(make_server, here, code):
    """Every code of taskmaster/errors.py gives the exit status of its class; without one, 1."""
    known = {error.code: error.exit_status for error in TaskmasterError.__subclasses__()}
    server = make_server(lambda query: fail("it would not", code))
    result = here(server, "kill", "web")
    assert result == (known.get(code, 1), "", "taskmasterctl: web: it would not\n")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Invalid job name.", 4),
        ('Job "web" does not exist.', 4),
        ("Permission denied: your uid is 1000.", 77),
        ("process 0: exec /usr/bin/ngix: No such file or directory", 1),
    ],
)
def test_status_follows_the_text_without_a_code(make_server, ctl, text, status):
    """A daemon that gives no code is understood by the texts of the contract."""
    server = make_server(lambda query: fail(text))
    result = ctl("-c", server.address, "start", "web")
    assert result == (status, "", f"taskmasterctl: web: {text}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("strat", "web"),
        ("start",),
        ("reload",),
        ("reload", "--all", "web"),
        ("push", "web.json"),
        ("push", "-"),
        ("push", ".tm.json"),
        ("push", "a/web.tm.json", "b/web.tm.json"),
        ("pull", "web", "db"),
        ("--timeout", "0", "status"),
        ("--timeout", "nan", "status"),
        ("--timeout", "soon", "status"),
        ("-c", "host:70000", "status"),
        ("-c", "::1", "status"),
        ("-s", "status"),
        ("shutdown", "web"),
        ("upgrade", "--leave-jobs"),
        ("doctor", "-c", "127.0.0.1:1"),
    ],
)
def test_2_usage(ctl, arguments):
    """A command line that cannot be meant exits 2, prints to standard error only, sends nothing."""
    result = ctl(*arguments, TASKMASTER_SERVER="127.0.0.1:1")
    assert (result.status, result.out) == (2, "")
    assert "Error: " in result.err


def test_mistyped_command(ctl):
    """The nearest command is named; of one that was only begun, all that begin so."""
    assert "Did you mean 'start'?" in ctl("strat", "web").err
    assert "Did you mean 'status'?" in ctl("stat").err
    assert "Did you mean 'start' or 'stop' or 'status'?" in ctl("st").err
    assert "There are: start, stop, " in ctl("xyzzy").err


@pytest.mark.parametrize("state", ["EXITED", "STOPPED", "FATAL", "UNKNOWN", "STARTING"])
def test_3_not_running(make_server, ctl, state):
    """status exits 3 as soon as one of the jobs is not RUNNING."""
    server = make_server(Jobs(db="RUNNING", web=state))
    result = ctl("-c", server.address, "status")
    assert result.status == 3
    assert state in result.out
    assert result.err == ""


def test_4_no_such_job_wins_over_3(make_server, ctl):
    """A job that could not be shown is worse than one that does not run."""
    server = make_server(Jobs(web="STOPPED"))
    result = ctl("-c", server.address, "status", "web", "nope")
    assert result.status == 4
    assert "web  STOPPED" in result.out
    assert result.err == 'taskmasterctl: nope: Job "nope" does not exist.\n'


def test_69_nobody_listens(ctl, tmp_path):
    """Without a daemon: which server, why, and what to look at."""
    path = str(tmp_path / "control.sock")
    result = ctl("-c", path, "status")
    assert result.status == 69
    assert result.err.startswith(
        f"taskmasterctl: cannot reach taskmasterd at {path}: No such file or directory. "
        "Is taskmasterd running?"
    )
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert "Connection refused" in ctl("-c", path, "status").err


def test_69_names_the_default_it_tried(ctl, tmp_path):
    """Whoever named no server is told which was tried and where it came from."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"127.0.0.1:{listener.getsockname()[1]}"
    result = ctl("status", TASKMASTER_SERVER=closed)
    assert result.status == 69
    assert f"at {closed} (from TASKMASTER_SERVER): Connection refused" in result.err


def test_75_the_daemon_says_timed_out(make_server, ctl):
    """The wait is sent, and its end without an outcome exits 75."""
    server = make_server(lambda query: fail("web is STARTING after 2 s", "timed-out"))
    result = ctl("-c", server.address, "start", "web", "--timeout", "2")
    assert result == (75, "", "taskmasterctl: web: web is STARTING after 2 s\n")
    assert server.queries[0]["wait"] == 2


def test_75_silence(make_server, ctl):
    """A server that never answers costs --timeout and the grace, not for ever."""
    server = make_server(raw=lambda connection: [None for _ in frames(connection)])
    result = ctl("-c", server.address, "--timeout", "0.1", "stop", "web")
    assert result.status == 75
    assert "none within 5.1 s; what was begun there goes on" in result.err


def test_77_socket_of_another_user(make_server, here, tmp_path):
    """A socket that this user may not open is named as such, not as a daemon that is down."""
    server = make_server(Jobs(), path=str(tmp_path / "control.sock"))
    os.chmod(server.address, 0)
    before = os.geteuid()
    if before == 0:  # root may connect to any socket
        os.seteuid(65534)
    try:
        result = here(server, "status")
    finally:
        os.seteuid(before)
    assert result.status == 77
    assert "Permission denied. Its socket is open to the user" in result.err


def test_78_bad_file(make_server, ctl, tmp_path):
    """A file the daemon refuses, and one that cannot be read, exit 78; the others are pushed."""
    text = "web.tm.json: cdm: found an unknown key; accepted: cmd"
    server = make_server(
        lambda query: fail(text, "bad-file") if query["data"] == "e30=" else {"response": "success"}
    )
    (tmp_path / "web.tm.json").write_text("{}")
    (tmp_path / "db.tm.json").write_text('{"cmd":"db"}')
    os.mkfifo(tmp_path / "pipe.tm.json")
    (tmp_path / "big.tm.json").write_bytes(b" " * (1024 * 1024 + 1))
    paths = [str(tmp_path / f"{name}.tm.json") for name in ("web", "gone", "pipe", "big", "db")]
    result = ctl("-c", server.address, "push", *paths)
    assert result.status == 78
    assert result.out == "db: stored and applied\n"
    assert result.err.splitlines() == [
        f"taskmasterctl: web: {text}",
        f"taskmasterctl: gone: cannot read {paths[1]}: No such file or directory; "
        "nothing of it was sent",
        f"taskmasterctl: pipe: cannot read {paths[2]}: it is not a regular file; "
        "nothing of it was sent",
        f"taskmasterctl: big: cannot read {paths[3]}: it is over 1048576 bytes; "
        "nothing of it was sent",
    ]


def test_nothing_heavy_is_imported(make_server):
    """A status, as health checks run it, pays for click and little else."""
    server = make_server(Jobs(web="RUNNING"))
    program = (
        "import sys; sys.argv = ['taskmasterctl', 'status']\n"
        # An editable installation's own finder brings some, and click is paid for in any case.
        "import click; before = set(sys.modules)\n"
        "from taskmaster.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(TASKMASTER_SERVER=server.address),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    modules = set(done.stdout.split())
    assert "taskmaster.cli.app" in modules
    heavy = "asyncio base64 difflib fnmatch logging msgspec psutil readline shlex ssl structlog"
    assert modules.isdisjoint([*heavy.split(), "subprocess", "tempfile", "taskmaster.cli.shell"])
    daemon = ("taskmaster.control", "taskmaster.watchdog", "taskmaster.config", "taskmaster.core")
    assert not [name for name in modules if name.startswith(daemon)]


def test_130_interrupted(make_server):
    """Ctrl-C ends the wait, and says that the daemon does not stop for that."""
    asked = threading.Event()

    def conversation(connection):
        for _ in frames(connection):
            asked.set()

    server = make_server(raw=conversation)
    process = subprocess.Popen(
        command_line("-c", server.address, "start", "web"),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asked.wait(DEADLINE_S)
    interrupt_when_asleep(process)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert (out, err) == (
        "",
        "taskmasterctl: interrupted; taskmasterd goes on with what was begun\n",
    )


def test_closed_pipe_is_quiet_and_keeps_the_status(make_server):
    """`| head` closes our output: no complaint, and the exit status still tells the outcome."""
    server = make_server(Jobs(web="STOPPED"))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command_line("-c", server.address, "status"),
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize("arguments", [("status",), ("pull", "web"), ("--help",)])
def test_full_disk_is_said(make_server, arguments):
    """Output that cannot be kept is a failure: a pull into a full disk must not look done."""
    server = make_server(Jobs(web="RUNNING"))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command_line("-c", server.address, *arguments),
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"taskmasterctl: cannot write the output: No space left on device\n"


def test_closed_streams(make_server):
    """Started with all three standard streams closed, it still acts and exits with the status."""
    server = make_server(Jobs(web="RUNNING"))
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    done = subprocess.run(
        [*shell, *command_line("-c", server.address, "kill", "web", "nope")],
        env=environment(),
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 4
    assert [query["command"] for query in server.queries] == ["kill", "kill"]


def test_json_of_what_was_not_answered(make_server, ctl):
    """With --json every job asked about has its object, also where the server went away."""

    def conversation(connection):
        for query in frames(connection):
            reply = {"response": "success", "id": query["id"]}
            connection.sendall(json.dumps(reply).encode() + b";;")
            return

    result = ctl("-c", make_server(raw=conversation).address, "--json", "stop", "a", "b")
    assert result.status == 69
    first, second = json.loads(result.out)
    assert first == {"job": "a", "response": "success"}
    assert (second["job"], second["response"], second["code"]) == ("b", "none", "unavailable")
