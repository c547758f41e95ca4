"""What a job is: one frozen value, checked before it gets here.

Job files are read by ``taskmaster.config.jobfile``, which makes a JobSpec of them; a watchdog gets
the JobSpec over its link or from the state record and never sees the file. Times are in seconds.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

MAX_PROCESSES: Final = 1000
#: The largest number of a CPU that a job may be bound to; Linux has at most 8192 of them.
MAX_CPU: Final = 8191
#: For a resource limit: none. The kernel's RLIM_INFINITY, as ``resource`` spells it.
UNLIMITED: Final = -1
#: Output that goes where the daemon's own goes: by its name here, the daemon's descriptor.
INHERITED: Final = {"/dev/stdout": 1, "/dev/stderr": 2}
#: Standard input: at its end at once, and a pipe that nobody writes to and that never ends.
NO_INPUT: Final = "null"
OPEN_INPUT: Final = "open"


class RestartPolicy(str, enum.Enum):
    """When a process that ended by itself is started again."""

    NEVER = "never"
    UNEXPECTED = "unexpected"
    ALWAYS = "always"


class StopTo(str, enum.Enum):
    """Whom the stop signal goes to first: the main process alone, or all that it has started as well."""

    MAIN = "main"
    ALL = "all"


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Capabilities by number. ``bounding``: all that may ever be had, None leaves the set as it is;
    ``ambient``: those that the program has from the start, whoever it runs as."""

    bounding: tuple[int, ...] | None = None
    ambient: tuple[int, ...] = ()


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The definition of one job, with every default filled in.

    ``argv``, ``stdout``, ``stderr`` and the values of ``env`` still hold ``%n`` and ``%%``; ``expand``
    replaces them for one process. ``stdout`` and ``stderr``: None discards; a relative path is below the
    job's own log directory; one of INHERITED is the daemon's own; ``stderr_to_stdout`` sends both to the file
    of stdout. ``stdin``: NO_INPUT, OPEN_INPUT or an absolute path.

    What the processes may do: ``limits`` has (name, soft, hard), UNLIMITED for no limit; ``ionice`` class and
    level; ``groups`` names and numbers, None for those of the user. None also leaves ``nice``, ``ionice``,
    ``cpu_affinity`` and ``capabilities`` as they are; it is 0 for ``oom_score_adj`` as far as that may be set,
    and for ``no_new_privs`` all but root's own. ``memory_max``: bytes of one process with all it has started.

    Defaults are not written out: a program that does not know a key yet reads every job that does not use it.
    """

    job: str
    argv: tuple[str, ...]
    runas: str = ""
    proc_nr: int = 1
    auto_start: bool = True
    restart: RestartPolicy = RestartPolicy.UNEXPECTED
    start_time_s: float = 1.0
    normal_exit_codes: tuple[int, ...] = (0,)
    normal_exit_signals: tuple[int, ...] = ()
    restart_times: int = 3
    stop_signal: int = 15
    stop_time_s: float = 10.0
    stop_to: StopTo = StopTo.MAIN
    stdout: str | None = "%n_stdout.log"
    stderr: str | None = "%n_stderr.log"
    stderr_to_stdout: bool = False
    log_max_bytes: int = 52428800
    log_backups: int = 10
    env: tuple[tuple[str, str], ...] = ()
    inherit_env: bool = False
    dir: str = "/"
    umask: int = 0o022
    env_file: str | None = None
    limits: tuple[tuple[str, int, int], ...] = ()
    nice: int | None = None
    ionice: tuple[int, int] | None = None
    oom_score_adj: int | None = None
    cpu_affinity: tuple[int, ...] | None = None
    no_new_privs: bool | None = None
    capabilities: Capabilities | None = None
    groups: tuple[str | int, ...] | None = None
    memory_max: int | None = None
    stdin: str = NO_INPUT

    def is_normal(self, exit_code: int | None, exit_signal: int | None) -> bool:
        """Whether an end with this exit code or by this signal number is an expected one."""
        if exit_signal is not None:
            return exit_signal in self.normal_exit_signals
        return exit_code is not None and exit_code in self.normal_exit_codes


#: What the processes *are*: a change of one of these restarts running processes, nothing else does.
IDENTITY: Final = (
    *(
        "argv",
        "env",
        "env_file",
        "inherit_env",
        "dir",
        "runas",
        "groups",
        "umask",
        "limits",
        "nice",
        "stdin",
    ),
    *("ionice", "oom_score_adj", "cpu_affinity", "no_new_privs", "capabilities"),
)


def same_processes(old: JobSpec, new: JobSpec) -> bool:
    """Whether processes started under ``old`` may run on under ``new``."""
    return all(getattr(old, field) == getattr(new, field) for field in IDENTITY)


def changed_fields(old: JobSpec, new: JobSpec) -> tuple[str, ...]:
    """Names of the fields in which two definitions differ, in the order of the definition."""
    return tuple(
        field for field in JobSpec.__struct_fields__ if getattr(old, field) != getattr(new, field)
    )


def expand(text: str, number: int) -> str:
    """``text`` with ``%n`` as the process number and ``%%`` as a percent sign; any other ``%`` stays."""
    if "%" not in text:
        return text
    parts = text.split("%%")
    return "%".join(part.replace("%n", str(number)) for part in parts)


def output_path(spec: JobSpec, stream: str, number: int) -> str | None:
    """Path of the output file of one process; None where that output is discarded.

    ``stream`` is ``stdout`` or ``stderr``. With more than one process and no ``%n`` in the path, ``N_``
    is put before the file's name, so that no two processes share a file by accident.
    """
    if stream == "stderr" and spec.stderr_to_stdout:
        stream = "stdout"
    path: str | None = getattr(spec, stream)
    if path is None or path in INHERITED:
        return path
    if spec.proc_nr > 1 and "%n" not in path.replace("%%", ""):
        head, slash, tail = path.rpartition("/")
        path = f"{head}{slash}%n_{tail}"
    return expand(path, number)
