"""The environment of a job's process: a clean one or the daemon's, then what the job says.

``envFile`` is for secrets: it is read in the child, as the daemon's user, at each start, and nothing of
it is kept anywhere else. An error names file and line, never what stands there.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final

from taskmaster import trail
from taskmaster.core.spec import JobSpec, expand
from taskmaster.watchdog.privileges import Who
from taskmaster.watchdog.steps import Step, StepFailed

CLEAN_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Bytes of an envFile.
MAX_FILE: Final = 262144
#: Bytes of one NAME=VALUE: MAX_ARG_STRLEN less its NUL (linux/binfmts.h).
_MAX_VARIABLE: Final = 131071
_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
#: What a backslash takes its meaning from in double quotes, as for a shell.
_ESCAPED: Final = re.compile(rb'\\(["\\`$])')


def made(spec: JobSpec, number: int, instance: str, who: Who, step: Step) -> dict[str, str]:
    """Everything that the process gets. Raises OSError or StepFailed, both for the file."""
    environment = dict(os.environ) if spec.inherit_env else {}
    environment.setdefault("PATH", CLEAN_PATH)
    environment.setdefault("LANG", os.environ.get("LANG", "C.UTF-8"))
    user = who.user
    if user is not None and (spec.runas or not spec.inherit_env):
        environment.update(
            HOME=user.pw_dir,
            USER=user.pw_name,
            LOGNAME=user.pw_name,
            SHELL=user.pw_shell or "/bin/sh",
        )
    environment.update((key, expand(value, number)) for key, value in spec.env)
    if spec.env_file is not None:
        step.name = f"envFile {spec.env_file}"
        environment.update(variables(_content(spec.env_file)))
    # First, where they are found without reading all of a large one.
    marks = {
        "TASKMASTER_INSTANCE": instance,
        "TASKMASTER_PROCESS": str(number),
        "TASKMASTER_JOB": spec.job,
    }
    return marks | {key: value for key, value in environment.items() if key not in marks}


def _content(path: str) -> bytes:
    """The bytes of the file, which nobody but the daemon's user and root may read, write or replace."""
    # O_NONBLOCK: opening a FIFO must not wait for its writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        file = trail.walk(path, flags, {0, os.geteuid()})
    except trail.Untrusted as why:
        raise StepFailed(f"others could put another in its place: {why}") from None
    try:
        return _read(file)
    finally:
        os.close(file)


def _read(file: int) -> bytes:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise StepFailed("is no regular file")
    _check_owner(status, "it")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise StepFailed(f"has mode {mode:04o}: group or others may use it (chmod 600)")
    data = b""
    while len(data) <= MAX_FILE:
        piece = os.read(file, MAX_FILE + 1 - len(data))
        if not piece:
            return data
        data += piece
    raise StepFailed(f"is over {MAX_FILE} bytes")


def _check_owner(status: os.stat_result, what: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise StepFailed(
            f"{what} belongs to uid {status.st_uid}, not to root or the user of taskmasterd"
        )


def variables(data: bytes) -> dict[str, str]:
    """The variables in the content of an envFile; of a name that comes twice the last.

    What is accepted means to systemd's EnvironmentFile= the same; what that would read otherwise than a
    reader expects (backslashes outside of quotes, values over several lines) is not. Raises StepFailed.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            name, value = _variable(line.strip(b" \t\r"))
            if name:
                found[name] = value.decode("utf-8")
        except UnicodeDecodeError:
            raise StepFailed(f"line {number}: not UTF-8") from None
        except StepFailed as why:
            raise StepFailed(f"line {number}: {why}") from None
    return found


def _variable(line: bytes) -> tuple[str, bytes]:
    """Name and value of one line; an empty name for a line that has none."""
    if not line or line[0] in b"#;":
        return "", b""
    if b"\0" in line:
        raise StepFailed("a NUL byte")
    name, equals, value = line.partition(b"=")
    if not equals:
        raise StepFailed("no =, where NAME=VALUE is accepted")
    if not _NAME.fullmatch(name):
        raise StepFailed("a name that is not letters, digits and _ (no export, no blanks)")
    if len(line) > _MAX_VARIABLE:
        raise StepFailed(f"over {_MAX_VARIABLE} bytes")
    return name.decode("ascii"), _unquoted(value.lstrip(b" \t"))


def _unquoted(value: bytes) -> bytes:
    quote = value[:1]
    if quote not in (b'"', b"'"):
        if b"\\" in value:
            raise StepFailed("a backslash outside of quotes")
        return value
    end = 1
    while end < len(value) and value[end : end + 1] != quote:
        end += 2 if quote == b'"' and value[end : end + 1] == b"\\" else 1
    if end >= len(value):
        raise StepFailed("a quote without its end")
    if end != len(value) - 1:
        raise StepFailed("something after the closing quote")
    inner = value[1:end]
    return _ESCAPED.sub(rb"\1", inner) if quote == b'"' else inner
