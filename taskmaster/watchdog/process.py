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
import os
import resource
import signal
from typing import Final, NoReturn

import msgspec

from taskmaster import procfs, syscalls
from taskmaster.children import exit_of, peek, peek_any, reap
from taskmaster.core.spec import NO_INPUT, OPEN_INPUT, JobSpec, expand
from taskmaster.watchdog import confinement, environment, privileges, standardinput
from taskmaster.watchdog.confinement import Limits
from taskmaster.watchdog.steps import Step, StepFailed

#: Exit status of a child whose watchdog died before releasing it: its program never ran.
UNRELEASED: Final = 117
#: Exit status of a child that could not exec; the step and the reason went over the pipe.
NOT_EXECUTED: Final = 127
#: What the child is called until it is the program.
CHILD_NAME: Final = "taskmaster-new"

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
    ``directory``, the job's state directory; ``limits`` the rlimits that the daemon itself was started with;
    ``entrance`` what it writes 0 to, to be in its cgroup; ``given`` descriptors of files that become those of
    its user."""

    spec: JobSpec
    number: int
    instance: str
    directory: int
    stdout: int | str
    stderr: int | str
    limits: Limits
    entrance: str | None = None
    given: frozenset[int] = frozenset()


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
    # Our own unreaped child always has an entry, even dead; but /proc may hide it (hidepid), as one that has
    # changed its user. 0 is no start time, and such a process is known by being our child or by its pidfd.
    start = 0 if status is None else status.start
    return Child(pid, start, report_read, go_write)


def read_report(report: int) -> Failure | None:
    """What the child said; None when it became its program. Raises BlockingIOError when undecided."""
    said = os.read(report, _REPORT_BYTES)
    if not said:
        return None
    number, _, text = said.decode("utf-8", "replace").partition(" ")
    return Failure(text, int(number) if number.isdigit() else 0)


# between fork and exec: the child ------------------------------------------------------------------


def _become(plan: Plan, go: int, report: int) -> NoReturn:
    """Never returns: the child either is the program or has reported and ended."""
    step = Step()
    status = NOT_EXECUTED
    spec = plan.spec
    try:
        syscalls.set_name(CHILD_NAME)
        stdout, stderr = plan.stdout, plan.stderr
        keep = {fd for fd in (stdout, stderr, go, report, plan.directory) if isinstance(fd, int)}
        close_all_but(keep)
        os.setsid()
        _reset_signals()
        who = privileges.resolved(spec, step)
        step.name = "output"
        _connect(plan, who.uid)
        step.name = "umask"
        os.umask(spec.umask)
        variables = environment.made(spec, plan.number, plan.instance, who, step)
        argv = [expand(word, plan.number) for word in spec.argv]
        if plan.entrance is not None:
            confinement.enter(plan.entrance, step)
        confinement.confine(spec, plan.limits, step)
        privileges.take(spec, who, step)
        step.name = f"directory {spec.dir}"
        os.chdir(spec.dir)
        if spec.stdin not in (NO_INPUT, OPEN_INPUT):
            step.name = f"stdin {spec.stdin}"
            standardinput.open_file(spec.stdin)
        privileges.seal(who, step)
        if os.read(go, 1) != b"g":
            status = UNRELEASED
        else:
            step.name = f"exec {argv[0]}"
            _exec(argv, variables)
    except StepFailed as why:
        _say(report, 0, f"{step.name}: {why}")
    except OSError as error:
        _say(report, error.errno or 0, f"{step.name}: {os.strerror(error.errno or 0)}")
    except MemoryError:
        _say(report, 0, f"{step.name}: out of memory (see limits)")
    except (ValueError, LookupError, ArithmeticError) as error:
        _say(report, 0, f"{step.name}: {error}")
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


def _connect(plan: Plan, owner: int | None) -> None:
    standardinput.connect(plan.spec.stdin == OPEN_INPUT, owner)
    for target, source in ((1, plan.stdout), (2, plan.stderr)):
        if isinstance(source, str):
            # An open of its own: the flags of the watchdog's descriptor (non-blocking) are not for the job.
            fd = os.open(source, os.O_RDWR | os.O_NOFOLLOW, dir_fd=plan.directory)
        else:
            fd = source
        if isinstance(source, str) or source in plan.given:
            _give(fd, os.geteuid() if owner is None else owner)
        os.dup2(fd, target)


def _give(fd: int, owner: int) -> None:
    """A program that opens /dev/stdout anew is checked against the owner and mode of what that is."""
    if os.geteuid() == 0 and os.fstat(fd).st_uid != owner:
        os.fchown(fd, owner, -1)


def _exec(argv: list[str], variables: dict[str, str]) -> NoReturn:
    """Replace this process. Raises the error that says most: a denied candidate over a missing one."""
    program = argv[0]
    if "/" in program:
        candidates = [program]
    else:
        folders = variables.get("PATH", environment.CLEAN_PATH).split(":")
        candidates = [os.path.join(folder or ".", program) for folder in folders]
    failure: OSError | None = None
    for path in candidates:
        try:
            os.execve(path, argv, variables)
        except OSError as error:
            if error.errno == errno.ENOENT and os.path.exists(path):
                raise StepFailed("its interpreter does not exist") from None
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
    signalled. One whose start time cannot be seen has to be our child, or one that the control plane has
    inherited. Raises PermissionError where the process has become somebody else's.
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
        if status is None and not _is_related(pid, held):
            return False
        if status is not None and status.start != start:
            return False
        signal.pidfd_send_signal(held, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(held)
    return True


def _is_related(pid: int, held: int) -> bool:
    """Whether a process that /proc does not show is our child, or the control plane's."""
    try:
        peek(pid)
    except ChildProcessError:
        return syscalls.pidfd_parent(held) == os.getppid()
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
