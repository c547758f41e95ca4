"""Job files: THE table of their keys, and a file's bytes made a JobSpec.

A key that is not in the table does not exist: reading, JSON Schema and manual all follow from it.
Nothing here touches the disk; ``store`` reads and writes the files.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any, Final

from taskmaster.config import hardening, jobkinds, keys, kinds, outputnames
from taskmaster.config.keys import Key, Required
from taskmaster.config.kinds import Schema
from taskmaster.core import names
from taskmaster.core.spec import IDENTITY, MAX_PROCESSES, NO_INPUT, OPEN_INPUT, JobSpec
from taskmaster.errors import FileError

#: A year: over any real start or stop time, and far below where a timer's arithmetic gets inexact.
MAX_SECONDS: Final = 31_536_000
#: People write 999999999 for "never give up"; what fits a 32-bit integer is let through.
MAX_RETRIES: Final = 2**31 - 1
MAX_LOG_BYTES: Final = 2**40
MAX_LOG_BACKUPS: Final = 1000
#: Less is a mistake of unit: an interpreter that does nothing takes more.
MIN_MEMORY: Final = 1024 * 1024
MAX_MEMORY: Final = 2**50

JOB_KEYS: Final = (
    Key(
        name="cmd",
        kind=jobkinds.command(),
        default=Required(),
        fields=("argv",),
        meaning="The program and its arguments.",
    ),
    Key(
        name="shell",
        kind=kinds.boolean(),
        default=False,
        fields=("argv",),
        meaning="Run cmd, a string, by /bin/sh -c.",
    ),
    Key(
        name="runas",
        kind=jobkinds.user(),
        default="",
        fields=("runas",),
        meaning="The user, and group, to run as; needs root.",
    ),
    Key(
        name="procNr",
        kind=kinds.whole(1, MAX_PROCESSES),
        default=1,
        fields=("proc_nr",),
        meaning="Processes to run.",
    ),
    Key(
        name="autoStart",
        kind=kinds.boolean(),
        default=True,
        fields=("auto_start",),
        meaning="Start the job when taskmasterd starts.",
    ),
    Key(
        name="restart",
        kind=jobkinds.restart_policy(),
        default="unexpected",
        fields=("restart",),
        meaning="When a process that ended by itself is started again.",
    ),
    Key(
        name="startTime",
        kind=kinds.seconds(0, MAX_SECONDS),
        default=1,
        fields=("start_time_s",),
        meaning="How long a process must stay up to count as running.",
    ),
    Key(
        name="normalExitCode",
        kind=jobkinds.exit_codes(),
        default=0,
        fields=("normal_exit_codes",),
        meaning="Exit codes that are expected.",
    ),
    Key(
        name="normalExitSig",
        kind=jobkinds.exit_signals(),
        default=[],
        fields=("normal_exit_signals",),
        meaning="Signals by which an end is expected.",
    ),
    Key(
        name="restartTimes",
        kind=kinds.whole(-1, MAX_RETRIES, "-1: never give up"),
        default=3,
        fields=("restart_times",),
        meaning="Failed starts in a row before it is given up as FATAL.",
    ),
    Key(
        name="stopSig",
        kind=jobkinds.stop_signal(),
        default="TERM",
        fields=("stop_signal",),
        meaning="The signal that asks a process to stop.",
    ),
    Key(
        name="stopTime",
        kind=kinds.seconds(0, MAX_SECONDS),
        default=10,
        fields=("stop_time_s",),
        meaning="Time from the stop signal to SIGKILL.",
    ),
    Key(
        name="stopTo",
        kind=jobkinds.stop_to(),
        default="main",
        fields=("stop_to",),
        meaning="Whom the stop signal goes to first: the main process, or all it has started as well.",
    ),
    Key(
        name="stdin",
        kind=jobkinds.standard_input(),
        default=NO_INPUT,
        fields=("stdin",),
        meaning="Where standard input comes from.",
    ),
    Key(
        name="stdout",
        kind=jobkinds.output("/dev/stdout"),
        default="%n_stdout.log",
        fields=("stdout",),
        meaning="Where standard output goes.",
    ),
    Key(
        name="stderr",
        kind=jobkinds.output("/dev/stderr", '; "stdout": the file of stdout'),
        default="%n_stderr.log",
        fields=("stderr", "stderr_to_stdout"),
        meaning="Where standard error goes.",
    ),
    Key(
        name="logMaxBytes",
        kind=kinds.whole(0, MAX_LOG_BYTES, "0: no rotation"),
        default=52428800,
        fields=("log_max_bytes",),
        meaning="Size in bytes at which an output file is rotated.",
    ),
    Key(
        name="logBackups",
        kind=kinds.whole(0, MAX_LOG_BACKUPS),
        default=10,
        fields=("log_backups",),
        meaning="Rotated files to keep.",
    ),
    Key(
        name="env",
        kind=jobkinds.environment(),
        default={},
        fields=("env",),
        meaning="Environment variables to set.",
    ),
    Key(
        name="inheritEnv",
        kind=kinds.boolean(),
        default=False,
        fields=("inherit_env",),
        meaning="Start from the environment of taskmasterd instead of a clean one.",
    ),
    Key(
        name="dir",
        kind=kinds.path(),
        default="/",
        fields=("dir",),
        meaning="The working directory.",
    ),
    Key(
        name="umask",
        kind=jobkinds.umask(),
        default="0022",
        fields=("umask",),
        meaning="The mask of file modes.",
    ),
    Key(
        name="envFile",
        kind=kinds.or_null(kinds.path(), "none"),
        default=None,
        fields=("env_file",),
        meaning="A file of further environment variables, for secrets.",
    ),
    Key(
        name="limits",
        kind=hardening.limits(),
        default={},
        fields=("limits",),
        meaning="Resource limits of each process.",
    ),
    Key(
        name="nice",
        kind=kinds.or_null(kinds.whole(-20, 19, "-20: first, 19: last"), "that of taskmasterd"),
        default=None,
        fields=("nice",),
        meaning="Priority for the CPU.",
    ),
    Key(
        name="ionice",
        kind=kinds.or_null(hardening.io_priority(), "that of taskmasterd"),
        default=None,
        fields=("ionice",),
        meaning="Priority for disks.",
    ),
    Key(
        name="oomScoreAdj",
        kind=kinds.or_null(
            kinds.whole(-1000, 1000, "-1000: never"), "0, as far as that may be set"
        ),
        default=None,
        fields=("oom_score_adj",),
        meaning="How soon the kernel ends the process when the host has no memory left.",
    ),
    Key(
        name="cpuAffinity",
        kind=kinds.or_null(hardening.cpus(), "as taskmasterd"),
        default=None,
        fields=("cpu_affinity",),
        meaning="The CPUs that it may run on.",
    ),
    Key(
        name="noNewPrivileges",
        kind=kinds.or_null(kinds.boolean(), "true, unless the process runs as root without runas"),
        default=None,
        fields=("no_new_privs",),
        meaning="No program that it executes gives it more rights (set-user-ID, file capabilities).",
    ),
    Key(
        name="capabilities",
        kind=kinds.or_null(hardening.capabilities(), "untouched"),
        default=None,
        fields=("capabilities",),
        meaning="What it may have of the rights of root.",
    ),
    Key(
        name="groups",
        kind=kinds.or_null(hardening.groups(), "those of the user"),
        default=None,
        fields=("groups",),
        meaning="Supplementary groups; needs root.",
    ),
    Key(
        name="memoryMax",
        kind=kinds.or_null(hardening.size(MIN_MEMORY, MAX_MEMORY), "no limit"),
        default=None,
        fields=("memory_max",),
        meaning="Memory that a process and all it has started may take together.",
    ),
)


def restarts(row: Key) -> bool:
    """Whether a change of this key restarts running processes; any other change leaves them alone."""
    return any(field in IDENTITY for field in row.fields)


def parse_job(name: str, data: bytes, base: Path) -> JobSpec:
    """The definition of job ``name`` in the bytes of its file.

    ``base``: the absolute folder that a relative ``dir``, ``envFile`` or ``stdin`` is relative to. Raises
    FileError, and InvalidJobName where ``name`` is none.
    """
    file = names.checked(name) + names.FILE_SUFFIX
    values = keys.read(file, data, JOB_KEYS)
    fields: dict[str, Any] = {
        row.fields[0]: values[row.name] for row in JOB_KEYS if len(row.fields) == 1
    }
    try:
        fields["argv"] = jobkinds.argv(values["cmd"], values["shell"])
    except kinds.Refused as refused:
        raise FileError(file, "cmd", refused.found, refused.accepted) from None
    fields["dir"] = _from(base, values["dir"])
    if values["envFile"] is not None:
        fields["env_file"] = _from(base, values["envFile"])
    if values["stdin"] not in (NO_INPUT, OPEN_INPUT):
        fields["stdin"] = _from(base, values["stdin"])
    fields["stderr"], fields["stderr_to_stdout"] = _stderr(values["stdout"], values["stderr"])
    spec = JobSpec(job=name, **fields)
    outputnames.check(file, spec)
    return spec


def _from(base: Path, path: str) -> str:
    """``path``, relative to ``base`` where it is relative. ``..`` stays: behind a link, only the kernel knows
    which folder is above."""
    return jobkinds.plain(os.path.join(base, path))


def absolute(path: str, base: Path) -> str:
    """``path``, relative to ``base`` where it is relative, without ``.``, ``..`` and doubled slashes."""
    joined = os.path.normpath(os.path.join(base, path))
    # POSIX lets two leading slashes mean something else, and normpath keeps them; Linux does not care.
    return "/" + joined.lstrip("/")


def _stderr(stdout: str | None, stderr: str | None) -> tuple[str | None, bool]:
    if stderr is None:
        return None, False
    # The same file named twice would have two writers, each rotating it away under the other.
    return (None, True) if stderr in ("stdout", stdout) else (stderr, False)


def job_schema() -> Schema:
    """JSON Schema (draft 2020-12) of job files, comments and trailing commas taken away."""
    schema = keys.schema("taskmaster job file", JOB_KEYS)
    schema["if"] = {"properties": {"shell": {"const": True}}, "required": ["shell"]}
    schema["then"] = {"properties": {"cmd": {"type": "string"}}}
    return schema
