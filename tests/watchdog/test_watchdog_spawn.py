"""Write-ahead spawn: nothing runs before its release, and what fails between fork and exec has a name."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import C_LIBRARY_SIGNALS
from watchdog_children import (
    become_nobody,
    changes_users,
    ended,
    environment_of,
    executed,
    forked,
    isolated,
    killed,
    looks_into_users,
    plan,
    reported,
    wait_for,
)

from taskmaster import fifos, procfs
from taskmaster.watchdog import environment, process

#: Stops itself once it runs: from then on it can be looked at from outside at leisure.
STOPPED = ("/bin/sh", "-c", "kill -STOP $$")


def waiting(pid: int) -> bool:
    """Whether the child has prepared itself and waits for its release."""
    status = procfs.stat(pid)
    assert status is not None
    return status.state == "S" and procfs.name(pid) == process.CHILD_NAME


def run(child: process.Child) -> process.Failure | None:
    """Release and see it end; the program must not have run."""
    child.release()
    said = reported(child)
    assert os.waitstatus_to_exitcode(ended(child.pid)) == process.NOT_EXECUTED
    return said


# the two halves -----------------------------------------------------------------------------------


def test_nothing_runs_before_the_release(directory: int, tmp_path: Path) -> None:
    """Until then it is a process of a known identity, and undecided; afterwards the same one."""
    marker = tmp_path / "marker"
    child = forked(plan(directory, "/bin/sh", "-c", 'echo "$$" > "$0"', str(marker)))
    assert child.pid in procfs.children(os.getpid())
    wait_for(lambda: waiting(child.pid))
    with pytest.raises(BlockingIOError):
        process.read_report(child.report)
    assert not marker.exists()
    before = procfs.stat(child.pid)
    assert before is not None
    assert before.start == child.start
    assert executed(child) == child.pid
    after = procfs.stat(child.pid)
    assert after is not None
    assert after.start == child.start
    assert ended(child.pid) == 0
    assert marker.read_text() == f"{child.pid}\n"


def test_abandoned(directory: int, tmp_path: Path) -> None:
    """A child that could not be recorded ends, says so by its status, and was never the program."""
    marker = tmp_path / "marker"
    child = forked(plan(directory, "/usr/bin/env", "touch", str(marker)))
    child.abandon()
    assert reported(child) is None
    assert os.waitstatus_to_exitcode(ended(child.pid)) == process.UNRELEASED == 117
    assert not marker.exists()


def test_killed_before_the_release(directory: int) -> None:
    """The release of a child that is dead already is no error; its end tells."""
    child = forked(plan(directory, "/bin/true"))
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: process.peek(child.pid) is not None)
    child.release()
    assert reported(child) is None
    assert process.reap(child.pid) == signal.SIGKILL


def test_a_watchdog_killed_takes_the_unreleased_with_it(directory: int, tmp_path: Path) -> None:
    """SIGKILL between fork and release, with several at once: none of them ever runs."""
    marker = tmp_path / "marker"

    def subreaper() -> list[int]:
        reading, writing = os.pipe()
        watchdog = os.fork()
        if watchdog == 0:
            children = [
                forked(plan(directory, "/usr/bin/env", "touch", str(marker))) for _ in range(5)
            ]
            ended(executed(forked(plan(directory, "/bin/true"))))
            os.write(writing, b" ".join(b"%d" % child.pid for child in children))
            signal.pause()
        os.close(writing)
        pids = [int(word) for word in os.read(reading, 1000).split()]
        killed(watchdog)
        return [os.waitstatus_to_exitcode(ended(pid)) for pid in pids]

    assert isolated(subreaper) == [process.UNRELEASED] * 5
    assert not marker.exists()


# failing steps ------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A spawn that fails: what of the plan is wrong, what is said, and with which error number."""

    argv: tuple[str, ...]
    changed: dict[str, Any]
    text: str
    error: int


TRUE = ("/bin/true",)
STEPS = {
    "missing program": Step(
        ("{tmp}/nothing",), {}, "exec {tmp}/nothing: No such file or directory", errno.ENOENT
    ),
    "missing in PATH": Step(
        ("no-such-program",), {}, "exec no-such-program: No such file or directory", errno.ENOENT
    ),
    "not executable": Step(
        ("{tmp}/plain",), {}, "exec {tmp}/plain: Permission denied", errno.EACCES
    ),
    "denied in PATH": Step(
        ("plain",),
        {"env": (("PATH", "/nonexistent:{tmp}:{tmp}/plain"),)},
        "exec plain: Permission denied",
        errno.EACCES,
    ),
    "missing interpreter": Step(
        ("{tmp}/script",), {}, "exec {tmp}/script: its interpreter does not exist", 0
    ),
    "missing interpreter in PATH": Step(
        ("script",),
        {"env": (("PATH", "/nonexistent:{tmp}"),)},
        "exec script: its interpreter does not exist",
        0,
    ),
    "a folder": Step(("{tmp}",), {}, "exec {tmp}: Permission denied", errno.EACCES),
    "below a file": Step(
        ("{tmp}/plain/x",), {}, "exec {tmp}/plain/x: Not a directory", errno.ENOTDIR
    ),
    "no format": Step(
        ("{tmp}/noformat",), {}, "exec {tmp}/noformat: Exec format error", errno.ENOEXEC
    ),
    "argument too long": Step(
        ("/bin/true", "x" * 200_000), {}, "exec /bin/true: Argument list too long", errno.E2BIG
    ),
    "NUL in env": Step(TRUE, {"env": (("A", "b\0c"),)}, "exec /bin/true: embedded null byte", 0),
    "NUL in argv": Step(("/bin/true", "b\0c"), {}, "exec /bin/true: embedded null byte", 0),
    "name of env": Step(
        TRUE, {"env": (("A=B", "c"),)}, "exec /bin/true: illegal environment variable name", 0
    ),
    "no directory": Step(
        TRUE,
        {"dir": "{tmp}/nothing"},
        "directory {tmp}/nothing: No such file or directory",
        errno.ENOENT,
    ),
    "directory is a file": Step(
        TRUE, {"dir": "{tmp}/plain"}, "directory {tmp}/plain: Not a directory", errno.ENOTDIR
    ),
    "no user": Step(TRUE, {"runas": "no-such-user"}, "user no-such-user: no such user", 0),
    "a number without a group": Step(
        TRUE,
        {"runas": "123456"},
        "user 123456: has no account that says its group: name one, as in USER:GROUP",
        0,
    ),
    "empty user": Step(TRUE, {"runas": ":root"}, "user : no such user", 0),
    "no group": Step(
        TRUE, {"runas": "root:no-such-group"}, "group no-such-group: no such group", 0
    ),
    "no output": Step(
        TRUE, {"stdout": "0.stdout"}, "output: No such file or directory", errno.ENOENT
    ),
    "output is a link": Step(
        TRUE, {"stderr": "link"}, "output: Too many levels of symbolic links", errno.ELOOP
    ),
    "limit": Step(
        TRUE,
        {"limits": ((resource.RLIMIT_NOFILE, (20, 10)),)},
        "limits: current limit exceeds maximum limit",
        0,
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_fails_is_named(directory: int, state: Path, tmp_path: Path, name: str) -> None:
    """The step, what it was tried on, the system's words; the status is 127 and nothing has run."""
    for file, content, mode in (
        ("plain", "#!/bin/sh\n", 0o644),
        ("script", "#!/nonexistent/interpreter\n", 0o755),
        ("noformat", "\x7f nothing that can be run", 0o755),
    ):
        (tmp_path / file).write_text(content)
        (tmp_path / file).chmod(mode)
    (state / "link").symlink_to("/dev/null")

    def here(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{tmp}", str(tmp_path))
        return tuple(map(here, value)) if isinstance(value, tuple) else value

    step = STEPS[name]
    changed = {key: here(value) for key, value in step.changed.items()}
    said = run(forked(plan(directory, *here(step.argv), **changed)))
    assert said == process.Failure(here(step.text), step.error)
    assert not said.transient


@pytest.mark.parametrize("changed", [{"umask": 1 << 40}, {"umask": -(1 << 40)}, {"dir": "/\0"}])
def test_a_value_that_no_job_file_can_hold(directory: int, changed: dict[str, Any]) -> None:
    """From a damaged state record; it is said like any other failure, not taken for a start."""
    said = run(forked(plan(directory, "/bin/true", **changed)))
    assert said is not None
    assert said.text.startswith("umask: " if "umask" in changed else "directory /\0: ")


def test_what_may_pass_by_itself() -> None:
    """A host that is short of something is told from a job that is wrong."""
    for number in (errno.EMFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC):
        assert process.Failure("x", number).transient
    for number in (0, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC):
        assert not process.Failure("x", number).transient


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        (resource.RLIMIT_NOFILE, "open", errno.EMFILE),
        pytest.param(resource.RLIMIT_NPROC, 0, errno.EAGAIN, marks=changes_users),
    ],
    ids=["descriptors", "processes"],
)
def test_a_host_that_is_short(directory: int, limit: int, value: Any, expected: int) -> None:
    """No descriptors, no processes: an error to retry, the signal mask and the descriptors as before."""

    def short() -> tuple[int, bool, bool]:
        if limit == resource.RLIMIT_NPROC:
            become_nobody()
        wanted = plan(directory, "/bin/true")
        before = sorted(os.listdir("/proc/self/fd"))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        free = min(set(range(1000)) - {int(fd) for fd in before})
        # Room for one pipe, not for two: the first must be given back.
        most = free + 2 if value == "open" else value
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, hard))
        number = 0
        try:
            process.fork(wanted)
        except OSError as error:
            number = error.errno or 0
        if limit == resource.RLIMIT_NOFILE:
            resource.setrlimit(limit, (hard, hard))
        same = sorted(os.listdir("/proc/self/fd")) == before
        return number, same, signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask

    assert isolated(short) == [expected, True, True]


# what the program finds ----------------------------------------------------------------------------


def field(pid: int, name: str) -> str:
    """One line of ``/proc/PID/status``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise LookupError(name)


def stopped(wanted: process.Plan) -> int:
    """The program, once it runs and has stopped itself."""
    pid = executed(forked(wanted))

    def has_stopped() -> bool:
        status = procfs.stat(pid)
        return status is not None and status.state == "T"

    wait_for(has_stopped)
    return pid


def look(wanted: process.Plan, seen: Callable[[int], Any]) -> Any:
    """What is to be seen of the running program, which is ended then."""
    pid = stopped(wanted)
    try:
        return seen(pid)
    finally:
        killed(pid)


def test_it_inherits_nothing(directory: int, tmp_path: Path) -> None:
    """Descriptors, signals, mask, umask, session of a watchdog in disorder: all as if freshly logged in."""

    def watchdog() -> list[Any]:
        reading, writing = os.pipe()
        for number in (7, 200, 900):
            os.dup2(reading, number, inheritable=True)
        os.umask(0o077)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        blocked = {signal.SIGTERM, signal.SIGCHLD, signal.SIGRTMIN}
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        wanted = plan(directory, *STOPPED, umask=0o027, dir=str(tmp_path))

        def seen(pid: int) -> list[Any]:
            status = procfs.stat(pid)
            assert status is not None
            return [
                sorted(map(int, os.listdir(f"/proc/{pid}/fd"))),
                [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)],
                [int(field(pid, name), 16) & ~C_LIBRARY_SIGNALS for name in ("SigBlk", "SigIgn")],
                int(field(pid, "Umask"), 8),
                os.readlink(f"/proc/{pid}/cwd"),
                (status.session, status.pgrp, status.ppid) == (pid, pid, os.getpid()),
                sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())) == sorted(blocked),
            ]

        return look(wanted, seen)

    found = isolated(watchdog)
    assert found == [[0, 1, 2], ["/dev/null"] * 3, [0, 0], 0o027, str(tmp_path), True, True]


def test_a_signal_before_exec_is_the_childs_own(directory: int) -> None:
    """The watchdog's handler and wake-up pipe are not for a signal that hits the child right after fork."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        for _ in range(20):
            child = forked(plan(directory, "/bin/true"))
            os.kill(child.pid, signal.SIGTERM)
            assert reported(child) is None
            assert ended(child.pid) == signal.SIGTERM
            child.abandon()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    os.close(reading)
    os.close(writing)


def test_its_output(directory: int, state: Path) -> None:
    """A pipe by name is opened for both directions and blocks, whatever the watchdog does with its own."""
    held = [fifos.hold(directory, "0.stdout"), os.open("/dev/full", os.O_WRONLY)]
    wanted = plan(directory, *STOPPED, stdout="0.stdout", stderr=held[1])

    def seen(pid: int) -> list[Any]:
        lines = Path(f"/proc/{pid}/fdinfo/1").read_text().splitlines()
        (flags,) = (int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        return [
            [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)],
            flags & (os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND),
        ]

    assert look(wanted, seen) == [
        ["/dev/null", str(state / "0.stdout"), "/dev/full"],
        os.O_RDWR,
    ]
    for fd in held:
        os.close(fd)


def test_its_limits(directory: int) -> None:
    """The daemon raises its own limits for its own needs; its jobs get back those of before."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    core = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = plan(
        directory,
        *STOPPED,
        limits=((resource.RLIMIT_NOFILE, (123, hard)), (resource.RLIMIT_CORE, (0, core[1]))),
    )

    def seen(pid: int) -> list[tuple[int, int]]:
        return [
            resource.prlimit(pid, resource.RLIMIT_NOFILE),
            resource.prlimit(pid, resource.RLIMIT_CORE),
        ]

    assert look(wanted, seen) == [(123, hard), (0, core[1])]
    assert resource.getrlimit(resource.RLIMIT_CORE) == core


@pytest.mark.parametrize("inherit", [False, True], ids=["clean", "inherited"])
def test_its_environment(directory: int, monkeypatch: pytest.MonkeyPatch, inherit: bool) -> None:
    """Clean: what a login gives and nothing of the daemon's. Inherited: all of it. Both: the job's own."""
    monkeypatch.setenv("SECRET", "of the daemon")
    monkeypatch.setenv("HOME", "/daemon")
    monkeypatch.setenv("LANG", "xx_YY.UTF-8")
    monkeypatch.setenv("TASKMASTER_PROCESS", "99")
    wanted = plan(
        directory,
        *STOPPED,
        number=3,
        inherit_env=inherit,
        env=(("A", "%n of 100%%"), ("SHELL", "/bin/mine"), ("TASKMASTER_JOB", "fake")),
    )
    found = look(wanted, environment_of)
    user = pwd.getpwuid(os.geteuid())
    own = {
        "A": "3 of 100%",
        "SHELL": "/bin/mine",
        "TASKMASTER_JOB": "web",
        "TASKMASTER_PROCESS": "3",
        "TASKMASTER_INSTANCE": "instance-1",
    }
    if inherit:
        assert found == dict(os.environ) | own
    else:
        login = {"PATH": environment.CLEAN_PATH, "LANG": "xx_YY.UTF-8", "HOME": user.pw_dir}
        login |= {"USER": user.pw_name, "LOGNAME": user.pw_name}
        assert found == login | own


def test_it_is_found_through_the_path_of_the_job(directory: int, tmp_path: Path) -> None:
    """The job's PATH, in order; a missing or denied candidate does not end the search; %n in words."""
    for folder, mode, text in (("a", 0o644, ""), ("b", 0o755, "b"), ("c", 0o755, "c")):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "my-program"
        program.write_text(f'#!/bin/sh\necho {text} "$0" "$@" > {tmp_path}/said\n')
        program.chmod(mode)
    path = f"/nonexistent:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c"
    wanted = plan(directory, "my-program", "%n", "100%%", "a b", number=7, env=(("PATH", path),))
    assert ended(executed(forked(wanted))) == 0
    said = (tmp_path / "said").read_text()
    assert said == f"b {tmp_path}/b/my-program 7 100% a b\n"


# users --------------------------------------------------------------------------------------------


def identity(pid: int) -> list[list[int]]:
    """Its user ids, group ids and supplementary groups."""
    return [[int(word) for word in field(pid, key).split()] for key in ("Uid", "Gid", "Groups")]


@looks_into_users
@pytest.mark.parametrize("group", ["", "daemon"], ids=["own group", "another group"])
def test_as_another_user(directory: int, state: Path, group: str) -> None:
    """All ids, groups, HOME and the like are that user's, and so is the pipe of its output."""
    entry = pwd.getpwnam("nobody")
    runas = f"nobody:{group}" if group else "nobody"
    held = fifos.hold(directory, "0.stdout")
    wanted = plan(directory, *STOPPED, runas=runas, stdout="0.stdout")

    def seen(pid: int) -> tuple[Any, dict[str, str]]:
        return identity(pid), environment_of(pid)

    ids, environment = look(wanted, seen)
    gid = grp.getgrnam(group).gr_gid if group else entry.pw_gid
    assert ids[0] == [entry.pw_uid] * 4
    assert ids[1] == [gid] * 4
    assert set(ids[2]) == set(os.getgrouplist("nobody", gid))
    assert {key: environment[key] for key in ("HOME", "USER", "LOGNAME")} == {
        "HOME": entry.pw_dir,
        "USER": "nobody",
        "LOGNAME": "nobody",
    }
    assert environment["SHELL"] == (entry.pw_shell or "/bin/sh")
    status = (state / "0.stdout").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (entry.pw_uid, 0o600)
    os.close(held)


@changes_users
def test_without_root(tmp_path: Path) -> None:
    """An ordinary user may name itself, and nobody else; never is it run as somebody weaker or stronger."""
    tmp_path.chmod(0o755)

    def watchdog() -> list[Any]:
        entry = become_nobody()
        directory = os.open("/", os.O_RDONLY)
        own = look(plan(directory, *STOPPED, runas="nobody"), identity)
        child = forked(plan(directory, "/bin/true", runas="root"))
        said = run(child)
        assert said is not None
        return [own == [[entry.pw_uid] * 4, [entry.pw_gid] * 4, []], said.text, said.error]

    assert isolated(watchdog) == [True, "user root: Operation not permitted", errno.EPERM]
