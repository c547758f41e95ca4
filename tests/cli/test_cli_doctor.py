"""doctor and a real taskmasterd: each thing that can be broken is found, and what it says mends it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cli_servers import DEADLINE_S, ROOT, command_line, environment
from running import Daemon, alive, process_start, wait_for

from taskmaster.cli.doctor import kernel, where
from taskmaster.cli.doctor.examination import examine
from taskmaster.cli.doctor.looking import OK, PROBLEM, WARNING, Finding

#: What is found about the machine that the tests run on, whatever that is.
HOST = ("kernel", "open files", "/proc")
START = ("-m", "taskmaster.control", "-c")


def ill(daemon: Daemon) -> list[Finding]:
    """What is not well of this daemon and its jobs."""
    found = where.find(str(daemon.socket), None, {}, os.geteuid())
    assert found is not None
    findings = examine(found, again_after_s=0)
    return [one for one in findings if one.level != OK and one.about not in HOST]


def shown(findings: list[Finding]) -> str:
    return "\n".join(f"{one.level}: {one.about}: {one.text}; {one.mend}" for one in findings)


def well(daemon: Daemon) -> None:
    """Wait until nothing is found."""
    last: list[str] = []

    def nothing() -> bool:
        last[:] = [shown(ill(daemon))]
        return last == [""]

    try:
        wait_for(nothing)
    except AssertionError:
        raise AssertionError(f"still found: {last}") from None


def find(
    daemon: Daemon, level: str, text: str, break_it: Callable[[], object] = lambda: None
) -> Finding:
    """The one finding, once there is no other, that has this in its text.

    It is broken again before each look: a watchdog may have written its record anew meanwhile.
    """
    last: list[Finding] = []

    def found() -> bool:
        break_it()
        last[:] = ill(daemon)
        return len(last) == 1 and text in last[0].text and last[0].level == level

    try:
        wait_for(found)
    except AssertionError:
        raise AssertionError(f"not {level} {text!r} alone, but\n{shown(last)}") from None
    return last[0]


def run(command: str) -> None:
    """Run what the doctor said, as it stands."""
    bin_folder = os.path.dirname(sys.executable)
    path = f"{bin_folder}:{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment(PATH=path, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"


def running(make_daemon: Callable[..., Daemon], **config: object) -> Daemon:
    """A daemon with two jobs that run."""
    daemon = make_daemon(**config)
    daemon.job("web", ["sleep", "1000"])
    daemon.job("db", ["sleep", "1000"], procNr=2)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    daemon.wait_state("db", "RUNNING")
    return daemon


def watchdog(daemon: Daemon, job: str = "web") -> int:
    return int(daemon.status(job)["watchdog"]["pid"])


def folder(daemon: Daemon, job: str = "web") -> Path:
    return daemon.state / "jobs" / job


def tree(daemon: Daemon) -> dict[str, tuple[int, int]]:
    """Every file of the state directory with its inode and mode, but for the records, which come and go."""
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mode)
        for path in daemon.state.rglob("*")
        if not path.name.startswith("state.json")
    }


def test_all_well(make_daemon, ctl):
    """A line for each thing that was looked at, exit status 0; the same with --json; nothing is changed."""
    daemon = running(make_daemon)
    before = tree(daemon)
    result = ctl("-c", str(daemon.socket), "doctor")
    assert (result.status, result.err) == (0, "")
    lines = [line for line in result.out.splitlines() if not re.search(r"  (kernel|/proc):", line)]
    (web,), (first, second) = daemon.pids("web"), daemon.pids("db")
    count = re.search(r"taskmasterd has (\d+) of (\d+) descriptors", lines.pop())
    assert count
    assert 10 < int(count[1]) < int(count[2])
    owner = re.search(r"of user (\S+)$", lines[0])
    assert owner
    assert lines == [
        f"ok       state directory: {daemon.state}, mode 0700, of user {owner[1]}",
        f"ok       taskmasterd: pid {daemon.pid} answers; it has 2 jobs",
        f"ok       audit log: {daemon.audit_file}",
        f"ok       job db: watchdog (pid {watchdog(daemon, 'db')}), 2 of 2 processes "
        f"(pid {first}, {second})",
        f"ok       job web: watchdog (pid {watchdog(daemon)}), 1 of 1 processes (pid {web})",
    ]
    document = json.loads(ctl("--json", "doctor", "--state", str(daemon.state)).out)
    assert document["stateDirectory"] == str(daemon.state)
    assert document["findings"][1] == {
        "level": "ok",
        "about": "taskmasterd",
        "text": f"pid {daemon.pid} answers; it has 2 jobs",
        "mend": None,
    }
    assert tree(daemon) == before


def test_broken_and_mended(make_daemon):
    """One thing after the other is broken, found, and mended by the command that the doctor names.

    No process of the jobs is touched by any of it.
    """
    daemon = running(make_daemon)
    before = {job: daemon.pids(job) for job in ("web", "db")}
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    web = folder(daemon)
    crash = daemon.logs / "jobs/web/watchdog.crash"
    breaks: list[tuple[Callable[[], object], str, str, str]] = [
        (
            lambda: os.kill(watchdog(daemon), signal.SIGSTOP),
            PROBLEM,
            "is stopped: commands for it fail",
            "kill -CONT",
        ),
        (lambda: daemon.state.chmod(0o755), PROBLEM, "has mode 0755: other users", "chmod 700"),
        (lambda: web.chmod(0o750), PROBLEM, "its folder has mode 0750", "chmod 700"),
        (lambda: daemon.socket.chmod(0o666), PROBLEM, "open to other users", "chmod 600"),
        (
            lambda: (web / "link.sock").unlink(missing_ok=True),
            PROBLEM,
            "link.sock is gone",
            "kill -KILL",
        ),
        (
            lambda: (web / "state.json").write_bytes(b'{"format":'),
            PROBLEM,
            "its state record cannot be used (not JSON: ",
            f"taskmasterctl -c {daemon.socket} upgrade",
        ),
        (
            lambda: (web / "state.json").unlink(missing_ok=True),
            PROBLEM,
            "its state record cannot be used (there is none)",
            f"taskmasterctl -c {daemon.socket} upgrade",
        ),
        (
            lambda: (web / "state.json.rejected").write_bytes(b"?"),
            WARNING,
            "was set aside as state.json.rejected",
            "rm ",
        ),
        (
            lambda: crash.write_text("Traceback …\nRuntimeError: no \x1b[2J\n"),
            WARNING,
            "RuntimeError: no \x1b[2J",
            "cat ",
        ),
        (
            lambda: os.kill(daemon.pids("web")[0], signal.SIGSTOP),
            WARNING,
            "is stopped by a signal or a debugger",
            "kill -CONT",
        ),
        (
            lambda: folder(daemon, "ghost").mkdir(0o700, exist_ok=True),
            WARNING,
            "left over: taskmasterd has no such job",
            "rm -r ",
        ),
    ]
    well(daemon)
    for break_it, level, text, mend in breaks:
        found = find(daemon, level, text, break_it)
        assert found.mend.startswith(mend), found.mend
        run(found.mend)
        well(daemon)
    assert {job: daemon.pids(job) for job in ("web", "db")} == before
    assert {pid: process_start(pid) for pid in starts} == starts


def test_stopped_daemon(make_daemon, ctl):
    """It is not waited for; found by the doctor as a program too, with exit status 1."""
    daemon = running(make_daemon)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        result = ctl("-c", str(daemon.socket), "doctor")
        assert result.status == 1
        line = (
            f"problem  taskmasterd: pid {daemon.pid} is stopped and answers nobody; its jobs run on"
        )
        assert f"{line}; mend: kill -CONT {daemon.pid}\n" in result.out
        run(find(daemon, PROBLEM, "is stopped and answers nobody").mend)
        well(daemon)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_mute(tmp_path):
    """A daemon that holds the lock and answers nothing usable is to be started anew."""
    state = tmp_path / "state"
    state.mkdir(0o700)
    program = (
        "import fcntl, os, socket, sys\n"
        "lock = open(sys.argv[2] + '/lock', 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "os.chdir(sys.argv[2]); listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind('control.sock'); os.chmod('control.sock', 0o600); listener.listen()\n"
        "print('held', flush=True)\n"
        "while True: listener.accept()[0].sendall(b'SSH-2.0-OpenSSH\\r\\n')"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, "taskmasterd", str(state)], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        found = where.find(None, str(state), {}, os.geteuid())
        assert found is not None
        (one,) = [one for one in examine(found) if one.level == PROBLEM]
        said = (
            f"no usable answer from taskmasterd at {state}/control.sock: what answers there is not"
        )
        assert one.text.startswith(f"pid {holder.pid} does not answer ({said} taskmasterd (it sent")
        assert one.text.endswith("Jobs run on when it is started anew")
        assert one.mend.startswith(f"kill -KILL {holder.pid}; cd {state} && ")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_no_socket(make_daemon):
    """The socket file was removed: the daemon started anew, as the doctor says, has one; the pids stay."""
    daemon = running(make_daemon)
    before = daemon.pids("web")
    # As often as it takes: the daemon makes it again within a moment.
    found = find(
        daemon,
        PROBLEM,
        "there is no control.sock here",
        lambda: daemon.socket.unlink(missing_ok=True),
    )
    elsewhere, _, anew = found.mend.partition(", if it is elsewhere; else ")
    assert elsewhere == f"taskmasterctl -c SOCKETPATH doctor --state {daemon.state}"
    kill, _, start = anew.partition("; ")
    assert kill == f"kill -KILL {daemon.pid}"
    run(kill)
    daemon.host.wait(daemon.pid)
    restart(daemon, start)
    well(daemon)
    assert daemon.pids("web") == before


def test_a_socket_elsewhere(make_daemon, tmp_path):
    """A folder that is no state directory is not taken for one, whatever its mode: nothing is to be done to it."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    daemon = make_daemon(socket=str(shared / "c.sock"))
    daemon.socket = shared / "c.sock"
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    for path in (shared / "c.sock", shared / "nothing.sock"):
        assert where.find(str(path), None, {}, os.geteuid()) is None
    found = where.find(str(shared / "c.sock"), str(daemon.state), {}, os.geteuid())
    assert found is not None
    assert [one for one in examine(found) if one.level != OK and one.about not in HOST] == []


def restart(daemon: Daemon, command: str) -> None:
    """Start the daemon by the doctor's command, on its own host, so that its orphans stay there."""
    assert "taskmaster.control" in command
    assert str(daemon.config) in command
    executed = f"exec {command}"
    daemon.pid = daemon.host.start(["/bin/sh", "-c", executed], daemon.messages)
    wait_for(daemon.serves)


def test_an_examination_leaves_nothing_failed(make_daemon):
    """It asks, and tries nothing: no command that failed is on record because of it."""
    daemon = running(make_daemon)
    before = len(daemon.audit())
    well(daemon)
    left = daemon.audit()[before:]
    assert {one["command"] for one in left} <= {"list", "status", "audit"}
    assert {one["outcome"] for one in left if "outcome" in one} <= {"list", "status", "audit"}


def test_audit_log_that_cannot_be_written(make_daemon):
    """The log cannot be written: said with the reason, and found well again once it can."""
    daemon = running(make_daemon)
    daemon.audit_file.rename(daemon.folder / "aside")
    daemon.audit_file.mkdir()
    assert daemon.ask("reload", "web")["response"] == "fail"
    found = [one for one in ill(daemon) if one.about == "audit log"]
    assert [one.level for one in found] == [PROBLEM]
    assert "The audit log cannot be written" in found[0].text
    assert "a directory" in found[0].text
    daemon.audit_file.rmdir()
    well(daemon)


def test_daemon_gone(make_daemon):
    """Without taskmasterd: every watchdog is found, and the command that starts taskmasterd as it was."""
    daemon = running(make_daemon)
    before = {job: daemon.pids(job) for job in ("web", "db")}
    daemon.kill()
    first, *rest = ill(daemon)
    assert first.level == PROBLEM
    assert first.text.startswith("none runs with this state directory: control.sock is left")
    assert [(one.level, one.about) for one in rest] == [(WARNING, "job db"), (WARNING, "job web")]
    assert {one.mend for one in rest} == {first.mend}
    assert "no taskmasterd commands it" in rest[0].text
    restart(daemon, first.mend)
    well(daemon)
    assert {job: daemon.pids(job) for job in ("web", "db")} == before


def test_orphans(make_daemon):
    """Daemon and watchdogs gone: the processes that nobody watches are named; the next daemon has them."""
    daemon = running(make_daemon)
    daemon.job("old", ["sleep", "1000"], autoStart=False)
    assert daemon.ask("restart")["response"] == "success"
    daemon.wait_state("old", "STOPPED")
    before = {job: daemon.pids(job) for job in ("web", "db")}
    watchdogs = [watchdog(daemon, job) for job in ("web", "db", "old")]
    daemon.kill()
    for pid in watchdogs:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(pid) for pid in watchdogs))
    none, db, old, web = ill(daemon)
    assert (
        none.mend
        == db.mend
        == old.mend
        == web.mend
        == "taskmasterd (with the -c CONFIG it always has)"
    )
    pids = ", ".join(map(str, before["db"]))
    assert db.text.startswith(f"its processes (pid {pids}) run without a watchdog")
    assert (old.level, db.level, web.level) == (WARNING, PROBLEM, PROBLEM)
    assert old.text.endswith("nothing of it runs")
    record = folder(daemon) / "state.json"
    record.write_bytes(record.read_bytes()[:-20])
    web = ill(daemon)[-1]
    assert "its state record cannot be used (not JSON: " in web.text
    daemon.start()
    assert find(daemon, WARNING, "set aside as state.json.rejected").about == "job web"
    assert {job: daemon.pids(job) for job in ("web", "db")} == before


def writer(pipe: Path, **env: str) -> subprocess.Popen[bytes]:
    """A session leader that writes where a process of a job writes."""
    fd = os.open(pipe, os.O_RDWR)
    try:
        return subprocess.Popen(
            ["sleep", "1000"], stdout=fd, start_new_session=True, env=os.environ | env
        )
    finally:
        os.close(fd)


def test_twice(make_daemon):
    """A second session leader on the output of a process is a duplicate, or else the program's own child."""
    daemon = running(make_daemon)
    pipe = folder(daemon, "db") / "1.stdout"
    second = daemon.pids("db")[1]
    doubled = writer(pipe)
    try:
        found = find(daemon, PROBLEM, "process 1 runs twice: ")
        assert found.about == "job db"
        assert f"pid {second}, and pid {doubled.pid}, which nobody watches" in found.text
        run(found.mend)
        assert doubled.wait(DEADLINE_S) == -signal.SIGTERM
    finally:
        doubled.kill()
        doubled.wait()
    well(daemon)
    instance = json.loads((folder(daemon, "db") / "state.json").read_bytes())["instance"]
    child = writer(pipe, TASKMASTER_INSTANCE=instance)
    try:
        found = find(daemon, WARNING, "put it into the background, or it runs twice")
        assert found.mend == f"taskmasterctl -c {daemon.socket} restart db"
    finally:
        child.kill()
        child.wait()
    well(daemon)
    # A job that nobody knows, of which something runs.
    ghost = folder(daemon, "ghost")
    ghost.mkdir(0o700)
    os.mkfifo(ghost / "0.stdout", 0o600)
    stray = writer(ghost / "0.stdout")
    try:
        found = find(daemon, PROBLEM, f"pid {stray.pid} runs as its process 0, and no record knows")
        run(found.mend)
        assert stray.wait(DEADLINE_S) == -signal.SIGTERM
    finally:
        stray.kill()
        stray.wait()
    run(find(daemon, WARNING, "left over").mend)
    well(daemon)


def test_foreign_holder(tmp_path):
    """Another program that holds the lock is named, escaped, and is not asked for anything."""
    state = tmp_path / "state"
    state.mkdir(0o700)
    program = (
        "import fcntl, sys, time\n"
        "lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX)\n"
        "open('/proc/self/comm', 'w').write('\\x1b[2J')\n"
        "print('held', flush=True); time.sleep(1000)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(state / "lock")],
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.defpath},
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        done = subprocess.run(
            command_line("doctor", "--state", str(state)),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 1
        said = f"the lock is held by pid {holder.pid} (\\x1b[2J), which is no taskmasterd"
        assert f"{said}; mend: kill {holder.pid}\n" in done.stdout
        run(f"kill {holder.pid}")
        assert holder.wait(DEADLINE_S) == -signal.SIGTERM
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_gave_up(make_daemon):
    """A job that is FATAL is a warning with its reason; one without a usable file has another command."""
    daemon = make_daemon()
    daemon.job("gone", ["/nonexistent/program"], restart="never")
    (daemon.jobs / "bad.tm.json").write_text("{}")
    daemon.start()
    daemon.wait_state("gone", "FATAL")
    bad, gone = sorted(ill(daemon), key=lambda one: one.about)
    assert (gone.level, gone.about) == (WARNING, "job gone")
    assert "/nonexistent/program: No such file or directory" in gone.text
    assert gone.mend == f"taskmasterctl -c {daemon.socket} repair gone"
    assert bad.mend.startswith(f"taskmasterctl -c {daemon.socket} push bad.tm.json")


def test_audit_and_descriptors(make_daemon):
    """An audit log that cannot be written is the daemon's word; descriptors that run out are counted."""
    daemon = running(make_daemon)
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        found = find(daemon, PROBLEM, "The audit log cannot be written")
        assert found.mend == f"df -h {daemon.audit_file}"
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
    well(daemon)
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    assert kernel.open_files(daemon.pid).level == OK
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (used + 2, hard))
    try:
        found = kernel.open_files(daemon.pid)
        assert found.level == PROBLEM
        assert f"of {used + 2} descriptors in use: soon it can start nothing" in found.text
        assert found.mend.startswith(f"prlimit --pid {daemon.pid} --nofile=")
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))
