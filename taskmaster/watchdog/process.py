"""The only file that starts, signals and reaps a job's processes.

A spawn has two halves, with the state record written between them (write-ahead spawn): ``fork`` makes a
child that prepares itself and then waits; ``Child.release`` lets it exec. A watchdog that dies before
the release takes the child with it, because the child reads the end of its pipe; one that dies after
it has left a record. So there is no moment at which a program could run unrecorded.

Between fork and exec everything that fails is reported by the name of its step, and nothing falls
back to something weaker: a user that does not exist is an error, never root.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import signal
from typing import Final, NoReturn

import msgspec

from taskmaster import procfs, syscalls
from taskmaster.children import exit_of, peek, peek_any, reap
from taskmaster.core.spec import JobSpec, expand

#: Exit status of a child whose watchdog died before releasing it: its program never ran.
UNRELEASED: Final = 117
#: Exit status of a child that could not exec; the step and the reason went over the pipe.
NOT_EXECUTED: Final = 127
#: What the child is called until it is the program.
CHILD_NAME: Final = "taskmaster-new"

CLEAN_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REPORT_BYTES: Final = 4096
_EVERY_SIGNAL: Final = signal.valid_signals()  # made once: it is a set of 64 enumeration members
#: Errors that say the host is short of something, not that the job is wrong.
TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
    }
)

__all__ = ["exit_of", "peek", "peek_any", "reap"]

Limits = tuple[tuple[int, tuple[int, int]], ...]


class Child(msgspec.Struct):
    """A forked child that waits: call ``release`` once it is on record, or ``abandon``.

    ``report`` is the descriptor on which the child says why it could not exec; its end without a word
    means that it did. The caller owns it.
    """

    pid: int
    start: int
    report: int
    go: int

    def release(self) -> None:
        """Let it exec."""
        try:
            os.write(self.go, b"g")
        except BrokenPipeError:
            pass  # it has been killed meanwhile; the report pipe and its exit tell
        os.close(self.go)

    def abandon(self) -> None:
        """Let it end without ever having been the program."""
        os.close(self.go)


class Plan(msgspec.Struct):
    """What a child is to become. ``stdout`` and ``stderr`` are open descriptors or names of pipes in
    ``directory``, the job's state directory; ``limits`` the rlimits that the daemon itself was started with."""

    spec: JobSpec
    number: int
    instance: str
    directory: int
    stdout: int | str
    stderr: int | str
    limits: Limits


class Failure(msgspec.Struct):
    """Why there is no process: the step and what it was tried on, and the error number if it has one."""

    text: str
    error: int = 0

    @property
    def transient(self) -> bool:
        """Whether it may pass by itself."""
        return self.error in TRANSIENT


def fork(plan: Plan) -> Child:
    """Make the waiting child. Raises OSError (EAGAIN, ENOMEM, EMFILE, ENFILE) where the host is short."""
    fds: list[int] = []
    try:
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        fds += [go_read, go_write]
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        fds += [report_read, report_write]
        # No signal may reach the child while it still has the watchdog's handlers and wake-up pipe.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
        try:
            pid = os.fork()
            if pid == 0:
                _become(plan, go_read, report_write)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    os.close(go_read)
    os.close(report_write)
    os.set_blocking(report_read, False)
    status = procfs.stat(pid)
    # Our own unreaped child always has an entry, even dead.
    assert status is not None
    return Child(pid, status.start, report_read, go_write)


def read_report(report: int) -> Failure | None:
    """What the child said; None when it became its program. Raises BlockingIOError when undecided."""
    said = os.read(report, _REPORT_BYTES)
    if not said:
        return None
    number, _, text = said.decode("utf-8", "replace").partition(" ")
    return Failure(text, int(number) if number.isdigit() else 0)


# between fork and exec: the child ------------------------------------------------------------------


class _Step(Exception):
    """A step that failed for a reason that is no system error."""


def _become(plan: Plan, go: int, report: int) -> NoReturn:
    """Never returns: the child either is the program or has reported and ended."""
    step = ["prepare"]
    status = NOT_EXECUTED
    try:
        syscalls.set_name(CHILD_NAME)
        stdout, stderr = plan.stdout, plan.stderr
        keep = {fd for fd in (stdout, stderr, go, report, plan.directory) if isinstance(fd, int)}
        close_all_but(keep)
        os.setsid()
        _reset_signals()
        step[0] = "output"
        _connect(plan)
        step[0] = "umask"
        os.umask(plan.spec.umask)
        step[0] = "limits"
        for limit, values in plan.limits:
            resource.setrlimit(limit, values)
        user = _change_user(plan.spec.runas, step)
        environment = _environment(plan, user)
        directory = plan.spec.dir
        step[0] = f"directory {directory}"
        os.chdir(directory)
        argv = [expand(word, plan.number) for word in plan.spec.argv]
        if os.read(go, 1) != b"g":
            status = UNRELEASED
        else:
            step[0] = f"exec {argv[0]}"
            _exec(argv, environment)
    except _Step as why:
        _say(report, 0, f"{step[0]}: {why}")
    except OSError as error:
        _say(report, error.errno or 0, f"{step[0]}: {os.strerror(error.errno or 0)}")
    except (ValueError, LookupError, ArithmeticError, MemoryError) as error:
        _say(report, 0, f"{step[0]}: {error}")
    finally:
        # Whatever happened, the child must not run on as a second watchdog.
        os._exit(status)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor but 0, 1, 2 and these: a forked copy has all that its parent had open."""
    low = 3
    for fd in sorted(fd for fd in keep if fd > 2):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in procfs.signals_not_default():
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _connect(plan: Plan) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    owner = _owner(plan.spec.runas)
    for target, source in ((1, plan.stdout), (2, plan.stderr)):
        if isinstance(source, str):
            # An open of its own: the flags of the watchdog's descriptor (non-blocking) are not for the job.
            fd = os.open(source, os.O_RDWR | os.O_NOFOLLOW, dir_fd=plan.directory)
            if owner is not None:
                # A program that opens /dev/stdout anew is checked against the pipe's own mode.
                os.fchown(fd, owner, -1)
        else:
            fd = source
        os.dup2(fd, target)


def _owner(runas: str) -> int | None:
    if not runas or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(runas.partition(":")[0]).pw_uid
    except KeyError:
        return None  # the step that changes the user says so


def _change_user(runas: str, step: list[str]) -> pwd.struct_passwd | None:
    """Become ``user`` or ``user:group``; the password entry of who it is now."""
    if not runas:
        try:
            return pwd.getpwuid(os.geteuid())
        except KeyError:
            return None
    user, _, group = runas.partition(":")
    step[0] = f"user {user}"
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise _Step("no such user") from None
    gid = entry.pw_gid
    if group:
        step[0] = f"group {group}"
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise _Step("no such group") from None
    if os.geteuid() != 0 and entry.pw_uid == os.geteuid() and gid == os.getegid():
        return entry
    step[0] = f"user {runas}"
    groups = os.getgrouplist(user, gid)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    uids, gids = os.getresuid(), os.getresgid()
    if set(uids) != {entry.pw_uid} or set(gids) != {gid} or set(os.getgroups()) != set(groups):
        raise _Step("the change of user did not take effect")
    return entry


def _environment(plan: Plan, user: pwd.struct_passwd | None) -> dict[str, str]:
    spec = plan.spec
    environment = dict(os.environ) if spec.inherit_env else {}
    environment.setdefault("PATH", CLEAN_PATH)
    environment.setdefault("LANG", os.environ.get("LANG", "C.UTF-8"))
    if user is not None and (spec.runas or not spec.inherit_env):
        environment.update(
            HOME=user.pw_dir,
            USER=user.pw_name,
            LOGNAME=user.pw_name,
            SHELL=user.pw_shell or "/bin/sh",
        )
    environment.update((key, expand(value, plan.number)) for key, value in spec.env)
    environment["TASKMASTER_JOB"] = spec.job
    environment["TASKMASTER_PROCESS"] = str(plan.number)
    environment["TASKMASTER_INSTANCE"] = plan.instance
    return environment


def _exec(argv: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process. Raises the error that says most: a denied candidate over a missing one."""
    program = argv[0]
    if "/" in program:
        candidates = [program]
    else:
        folders = environment.get("PATH", CLEAN_PATH).split(":")
        candidates = [os.path.join(folder or ".", program) for folder in folders]
    failure: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, argv, environment)
        except OSError as error:
            if error.errno == errno.ENOENT and os.path.exists(path):
                raise _Step("its interpreter does not exist") from None
            if failure is None or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error
    assert failure is not None
    raise failure


def _say(report: int, number: int, text: str) -> None:
    line = f"{number} {text}".encode("utf-8", "replace")[:_REPORT_BYTES]
    try:
        os.write(report, line)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise


# signals ------------------------------------------------------------------------------


def send(pid: int, start: int, number: int) -> bool:
    """Send signal ``number`` to exactly that process; whether it was there to get it.

    The process is held by a pidfd while its start time is compared, so that a recycled number is never
    signalled. Raises PermissionError where the process has become somebody else's.
    """
    try:
        held = os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):
        return False  # ENOENT (EINVAL before Linux 6.16): the number is that of a thread by now
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOSYS):
            raise
        return _send_unheld(pid, number)
    try:
        status = procfs.stat(pid)
        if status is None or status.start != start:
            return False
        signal.pidfd_send_signal(held, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(held)
    return True


def _send_unheld(pid: int, number: int) -> bool:
    """Without a descriptor to hold it, or to read /proc: safe for our own unreaped child, whose number
    cannot be recycled."""
    try:
        peek(pid)
    except ChildProcessError:
        return False
    os.kill(pid, number)
    return True
