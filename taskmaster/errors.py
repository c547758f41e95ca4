"""The exceptions of taskmaster: each a code, an exit status and one sentence.

A message says what was tried, on what, and why it failed; whoever raises adds what happens next.
The codes are what a program may match on; the sentences may be reworded.
"""

from __future__ import annotations


class TaskmasterError(Exception):
    """Base of everything taskmaster raises on purpose.

    ``code`` is a stable word for programs; ``exit_status`` is what ``taskmasterctl`` exits with
    (sysexits.h where it has a number).
    """

    code = "failed"
    exit_status = 1


class InvalidJobName(TaskmasterError):
    """A name outside ``[A-Za-z0-9][A-Za-z0-9._-]{0,63}`` or ending in ``.tm.json``."""

    code = "invalid-job-name"
    exit_status = 4

    def __init__(self) -> None:
        super().__init__("Invalid job name.")


class NoSuchJob(TaskmasterError):
    """A well-formed name that no job has."""

    code = "no-such-job"
    exit_status = 4

    def __init__(self, name: str) -> None:
        super().__init__(f'Job "{name}" does not exist.')


class FileError(TaskmasterError):
    """A configuration file that cannot be used: names file, key, what was found, what is accepted.

    ``key`` is empty where the file as a whole is at fault (not JSON, unreadable, too open a mode).
    """

    code = "bad-file"
    exit_status = 78

    def __init__(self, file: str, key: str, found: str, accepted: str) -> None:
        self.file, self.key, self.found, self.accepted = file, key, found, accepted
        where = f"{file}: {key}" if key else file
        super().__init__(f"{where}: found {found}; accepted: {accepted}")


class Conflict(TaskmasterError):
    """The job's file is another than the one that a change was made for."""

    code = "conflict"


class TimedOut(TaskmasterError):
    """Something was not there in time; what was begun goes on."""

    code = "timed-out"
    exit_status = 75


class NotPermitted(TaskmasterError):
    """The peer may not do this."""

    code = "not-permitted"
    exit_status = 77


class SlowDown(TaskmasterError):
    """The peer asks more often than it may."""

    code = "slow-down"
    exit_status = 75


class ReasonRequired(TaskmasterError):
    """The command is refused without a reason."""

    code = "reason-required"
    exit_status = 2


class Unavailable(TaskmasterError):
    """No daemon answers where one was looked for."""

    code = "unavailable"
    exit_status = 69


class Held(TaskmasterError):
    """Another process holds the lock of the state directory."""

    code = "held"
    exit_status = 75


class KernelRefuses(TaskmasterError):
    """The kernel, or a sandbox, does not let taskmasterd do what it cannot work without."""

    code = "kernel-refuses"
    exit_status = 71


class InvalidQuery(TaskmasterError):
    """A frame that is no valid query; ``fatal`` where nothing after it on the connection can be trusted."""

    code = "invalid-query"
    exit_status = 2

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal
