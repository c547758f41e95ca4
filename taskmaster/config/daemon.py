"""The daemon's own configuration: which file it is, THE table of its keys, and its defaults.

Never a file of the current directory (Supervisor's search there let whoever could write to it run code as
root), and never a file that somebody else could have written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from taskmaster.config import access, keys, kinds, secretnames, tls, trusted
from taskmaster.config.access import Rule
from taskmaster.config.jobfile import absolute
from taskmaster.config.keys import Computed, Key
from taskmaster.config.kinds import Kind, Schema
from taskmaster.config.places import Places
from taskmaster.config.tls import TlsFiles
from taskmaster.errors import FileError
from taskmaster.wire.queries import Command

SYSTEM_FILE: Final = Path("/etc/taskmaster/config.json")
VARIABLE: Final = "TASKMASTER_CONFIG"


class DaemonConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's configuration with every default filled in; paths are absolute.

    ``base``: what a job's relative ``dir`` is relative to. ``file``: None where no file was read.
    ``socket_link``: a second path of the socket, in a folder that may vanish.
    ``port``: 0 is any free one, None no TCP. ``audit_max_bytes``: 0 is no rotation. ``commands_per_second``,
    ``idle_timeout_s``: 0 is no limit. ``tls``: None is none.
    """

    port: int | None
    remote_connections: bool
    tls: TlsFiles | None
    allow_insecure_remote: bool
    socket: Path | None
    socket_link: Path | None = None
    socket_mode: int
    access: tuple[Rule, ...]
    push_enabled: bool
    require_reason: frozenset[Command]
    secret_pattern: str
    config_directory: Path
    log_directory: Path
    state_directory: Path
    verbosity: int
    log_file: Path | None
    log_file_max_bytes: int
    log_file_backups: int
    audit_file: Path
    audit_max_bytes: int
    audit_backups: int
    audit_keep_days: int
    audit_bytes_per_day: int
    audit_reserve_bytes: int
    audit_seal_file: Path | None
    audit_seal_s: float
    audit_anchor_s: float
    audit_sink: str | None
    audit_sink_socket: Path | None
    history_max_bytes: int
    job_output_max_bytes: int
    max_frame_bytes: int
    max_clients: int
    max_clients_per_user: int
    commands_per_second: float
    commands_burst: int
    idle_timeout_s: float
    command_deadline_s: float
    watchdog_timeout_s: float
    base: Path
    file: Path | None


def per_day() -> Kind:
    """Bytes a day, so many that there is room for a command now and then, or 0."""
    kind = kinds.whole(1 << 20, 2**40)

    def parse(value: object) -> int:
        return 0 if kinds.is_number(value) and value == 0 else int(kind.parse(value))

    schema = {"anyOf": [{"const": 0}, kind.schema]}
    return Kind(f"{kind.accepted}, or 0: no limit", parse, schema)


DAEMON_KEYS: Final = (
    Key(
        name="port",
        kind=kinds.or_null(kinds.whole(0, 65535, "0: any free port"), "no TCP"),
        default=7777,
        fields=("port",),
        meaning="TCP port to listen on.",
    ),
    Key(
        name="remoteConnections",
        kind=kinds.boolean(),
        default=False,
        fields=("remote_connections",),
        meaning="Listen on all addresses instead of loopback alone.",
    ),
    Key(
        name="tls",
        kind=kinds.or_null(tls.files(), "no TLS"),
        default=None,
        fields=("tls",),
        meaning="Certificate and key of the daemon, and whose certificates it accepts from clients.",
    ),
    Key(
        name="allowInsecureRemote",
        kind=kinds.boolean(),
        default=False,
        fields=("allow_insecure_remote",),
        meaning="Let whoever can reach the port from another host look at everything, unencrypted.",
    ),
    Key(
        name="socket",
        kind=kinds.or_null(kinds.path(), "no Unix socket"),
        default=Computed("STATE/control.sock"),
        fields=("socket",),
        meaning="Unix socket to listen on.",
    ),
    Key(
        name="socketMode",
        kind=access.socket_mode(),
        default="0600",
        fields=("socket_mode",),
        meaning="File mode of the Unix socket: who can connect to it.",
    ),
    Key(
        name="access",
        kind=access.rules(),
        default=[],
        fields=("access",),
        meaning="Who may do what, beside root and the daemon's own user.",
    ),
    Key(
        name="pushEnabled",
        kind=kinds.boolean(),
        default=True,
        fields=("push_enabled",),
        meaning="Whether push, delete and rollback are there at all, for anybody.",
    ),
    Key(
        name="requireReason",
        kind=access.changing_commands(),
        default=[],
        fields=("require_reason",),
        meaning="Commands that are refused without a reason.",
    ),
    Key(
        name="secretPattern",
        kind=secretnames.pattern(),
        default=secretnames.DEFAULT_PATTERN,
        fields=("secret_pattern",),
        meaning="Which names of environment variables are those of secrets.",
    ),
    Key(
        name="configDirectory",
        kind=kinds.path(),
        default=Computed("/etc/taskmaster/jobs; $XDG_CONFIG_HOME/taskmaster/jobs"),
        fields=("config_directory",),
        meaning="The job directory: where the files NAME.tm.json are.",
    ),
    Key(
        name="logDirectory",
        kind=kinds.path(),
        default=Computed("/var/log/taskmaster; $XDG_STATE_HOME/taskmaster/log"),
        fields=("log_directory",),
        meaning="Where the logs of the daemon and its jobs are.",
    ),
    Key(
        name="stateDirectory",
        kind=kinds.path(),
        default=Computed("/run/taskmaster; $XDG_STATE_HOME/taskmaster/run"),
        fields=("state_directory",),
        meaning="Where the state of the running daemon is, mode 0700; one daemon for each.",
    ),
    Key(
        name="verbosity",
        kind=kinds.whole(0, 3),
        default=2,
        fields=("verbosity",),
        meaning="On standard error: 0 nothing, 1 connections, 2 errors as well, 3 everything.",
    ),
    Key(
        name="logFile",
        kind=kinds.or_null(
            kinds.path(), "standard error; with --detach LOGDIRECTORY/taskmasterd.log"
        ),
        default=None,
        fields=("log_file",),
        meaning="The file that the daemon's own messages go to; opened anew at SIGUSR2 and SIGHUP.",
    ),
    Key(
        name="logFileMaxBytes",
        kind=kinds.whole(0, 2**40, "0: no rotation"),
        default=10485760,
        fields=("log_file_max_bytes",),
        meaning="Size in bytes at which the file of the daemon's messages is rotated.",
    ),
    Key(
        name="logFileBackups",
        kind=kinds.whole(0, 100),
        default=4,
        fields=("log_file_backups",),
        meaning="Rotated files of the daemon's messages to keep.",
    ),
    Key(
        name="auditFile",
        kind=kinds.path(),
        default=Computed("LOGDIRECTORY/audit.jsonl"),
        fields=("audit_file",),
        meaning="The audit log.",
    ),
    Key(
        name="auditMaxBytes",
        kind=kinds.whole(0, 2**40, "0: no rotation"),
        default=104857600,
        fields=("audit_max_bytes",),
        meaning="Size in bytes at which the audit log is rotated.",
    ),
    Key(
        name="auditBackups",
        kind=kinds.whole(0, 1000),
        default=10,
        fields=("audit_backups",),
        meaning="Rotated audit logs to keep.",
    ),
    Key(
        name="auditKeepDays",
        kind=kinds.whole(0, 36500, "0: only size and number count"),
        default=0,
        fields=("audit_keep_days",),
        meaning="For how long no rotated audit log is deleted, however many there are.",
    ),
    Key(
        name="auditBytesPerDay",
        kind=per_day(),
        default=268435456,
        fields=("audit_bytes_per_day",),
        meaning="How much of the audit log one user's commands may fill in a day.",
    ),
    Key(
        name="auditReserveBytes",
        kind=kinds.whole(0, 2**30, "0: none"),
        default=4194304,
        fields=("audit_reserve_bytes",),
        meaning="Room that is allocated for the audit log in advance, so that root can act on a full disk.",
    ),
    Key(
        name="auditSealFile",
        kind=kinds.or_null(kinds.path(), "the audit log is not sealed"),
        default=Computed("LOGDIRECTORY/audit.seal"),
        fields=("audit_seal_file",),
        meaning="The sealing key of the audit log; without such a file it is not sealed.",
    ),
    Key(
        name="auditSealSeconds",
        kind=kinds.seconds(1, 86400),
        default=900.0,
        fields=("audit_seal_s",),
        meaning="How long after a record the audit log is sealed.",
    ),
    Key(
        name="auditAnchorSeconds",
        kind=kinds.seconds(0, 86400),
        default=3600.0,
        fields=("audit_anchor_s",),
        meaning="How long after a record the audit log's head goes to syslog; 0: never.",
    ),
    Key(
        name="auditSink",
        kind=kinds.or_null(kinds.one_of("syslog", "journald"), "the file alone"),
        default=None,
        fields=("audit_sink",),
        meaning="Where each audit record goes besides the file.",
    ),
    Key(
        name="auditSinkSocket",
        kind=kinds.or_null(kinds.path(), "/dev/log, or journald's own"),
        default=None,
        fields=("audit_sink_socket",),
        meaning="The datagram socket of auditSink, and of the audit log's heads.",
    ),
    Key(
        name="historyMaxBytes",
        kind=kinds.whole(1 << 20, 2**40),
        default=268435456,
        fields=("history_max_bytes",),
        meaning="What the histories of all job files may take together, in bytes.",
    ),
    Key(
        name="jobOutputMaxBytes",
        kind=kinds.whole(0, 2**50, "0: no limit"),
        default=17179869184,
        fields=("job_output_max_bytes",),
        meaning="How much output may be kept of a job that somebody with limited rights pushes.",
    ),
    Key(
        name="maxFrameBytes",
        kind=kinds.whole(1024, 64 * 1024 * 1024),
        default=4194304,
        fields=("max_frame_bytes",),
        meaning="Largest query of a client, in bytes.",
    ),
    Key(
        name="maxClients",
        kind=kinds.whole(1, 100_000),
        default=512,
        fields=("max_clients",),
        meaning="Clients connected at the same time.",
    ),
    Key(
        name="maxClientsPerUser",
        kind=kinds.whole(1, 100_000),
        default=128,
        fields=("max_clients_per_user",),
        meaning="Connections at the same time of one user, one certificate or one other host.",
    ),
    Key(
        name="commandsPerSecond",
        kind=kinds.whole(0, 1_000_000, "0: any number"),
        default=2000,
        fields=("commands_per_second",),
        meaning="Commands a second of one user, one certificate or one other host.",
    ),
    Key(
        name="commandsBurst",
        kind=kinds.whole(1, 10_000_000),
        default=4000,
        fields=("commands_burst",),
        meaning="Commands that may come at once before commandsPerSecond holds.",
    ),
    Key(
        name="idleTimeout",
        kind=access.idle_time(),
        default=3600,
        fields=("idle_timeout_s",),
        meaning="How long a connection may ask nothing before it is ended.",
    ),
    Key(
        name="commandDeadline",
        kind=kinds.seconds(0.1, 3600),
        default=5.0,
        fields=("command_deadline_s",),
        meaning="How long a watchdog may take to answer a command before the command fails.",
    ),
    Key(
        name="watchdogTimeout",
        kind=kinds.seconds(0.1, 3600),
        default=30.0,
        fields=("watchdog_timeout_s",),
        meaning="How long a watchdog may be silent before it is killed and replaced.",
    ),
)


def load(
    path: Path | None,
    environ: Mapping[str, str],
    uid: int,
    *,
    system_file: Path = SYSTEM_FILE,
) -> DaemonConfig:
    """The configuration in force: ``path`` (of -c), else $TASKMASTER_CONFIG, else ``system_file`` if it
    exists, else the defaults of user ``uid``.

    Raises FileError: unreadable, writable or owned by somebody else, or with a wrong key or value; the same
    of the files of ``tls``.
    """
    return loaded(path, environ, uid, system_file=system_file)[0]


def loaded(
    path: Path | None,
    environ: Mapping[str, str],
    uid: int,
    *,
    system_file: Path = SYSTEM_FILE,
) -> tuple[DaemonConfig, bytes]:
    """As ``load``, with the bytes of the file."""
    file = _chosen(path, environ, system_file)
    if file is None:
        return again(b"{}", None, environ, uid), b"{}"
    label = str(file)
    # Its folder may be sticky and open to all (/tmp); a link to a folder is judged by what it leads to.
    with trusted.folder(str(file.parent), uid, label=label, follow=True, sticky=True) as inside:
        data = trusted.read(file.name, uid, keys.MAX_BYTES, label=label, inside=inside, linked=True)
    config = again(data, file, environ, uid)
    if config.tls is not None:
        tls.context(
            config.tls, uid, label
        )  # whatever is wrong with it is said before anything is served
    return config, data


def again(data: bytes, file: Path | None, environ: Mapping[str, str], uid: int) -> DaemonConfig:
    """The configuration of a file with these bytes, which is not looked at. Raises FileError."""
    label = "defaults" if file is None else str(file)
    return _filled(keys.read(label, data, DAEMON_KEYS), Places(environ, uid), file)


def _chosen(path: Path | None, environ: Mapping[str, str], system_file: Path) -> Path | None:
    if path is not None:
        return Path(os.path.abspath(path))
    named = environ.get(VARIABLE, "")
    if named:
        if not named.startswith("/"):
            # A variable is inherited into directories that nobody thought of when it was set.
            found = kinds.shown(named)
            raise FileError(VARIABLE, "", found, "an absolute path (-c takes a relative one)")
        return Path(os.path.abspath(named))
    try:
        os.lstat(system_file)
    except OSError as error:
        # EACCES: a folder that this user may not even search is not meant for a daemon of this user.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return None
        raise FileError(str(system_file), "", os.strerror(error.errno or 0), "a file") from None
    return system_file


def _filled(values: dict[str, Any], places: Places, file: Path | None) -> DaemonConfig:
    def at(key: str) -> Path | None:
        # Without a file nothing is given, so there is always a folder to be relative to.
        if file is None or key not in values:
            return None
        return Path(absolute(values[key], file.parent))

    _check_remote(values, file)
    jobs = at("configDirectory") or places.jobs()
    logs = at("logDirectory") or places.logs()
    state = at("stateDirectory") or places.state()
    no_seal = "auditSealFile" in values and values["auditSealFile"] is None
    sink_socket = None if values.get("auditSinkSocket") is None else at("auditSinkSocket")
    no_socket = "socket" in values and values["socket"] is None
    plain = {row.fields[0]: values[row.name] for row in DAEMON_KEYS if row.name in values}
    return DaemonConfig(
        **{
            **plain,
            "tls": _tls(values["tls"], file),
            "socket": None if no_socket else at("socket") or state / "control.sock",
            "socket_link": None
            if values.keys() & {"socket", "stateDirectory"}
            else places.socket_link(),
            "config_directory": jobs,
            "log_directory": logs,
            "state_directory": state,
            "log_file": None if values.get("logFile") is None else at("logFile"),
            "audit_file": at("auditFile") or logs / "audit.jsonl",
            "audit_seal_file": None if no_seal else at("auditSealFile") or logs / "audit.seal",
            "audit_sink_socket": sink_socket,
            "base": file.parent if file else jobs.parent,
            "file": file,
        }
    )


def _check_remote(values: dict[str, Any], file: Path | None) -> None:
    """Refuse to be open to a network by an oversight."""
    if not values["remoteConnections"] or values["allowInsecureRemote"] or values.get("tls"):
        return
    raise FileError(
        str(file),
        "remoteConnections",
        'true, without "tls": anybody could read and say everything on the way',
        '"tls" beside it, or "allowInsecureRemote": true, with which other hosts may only look',
    )


def _tls(named: TlsFiles | None, file: Path | None) -> TlsFiles | None:
    if named is None or file is None:
        return None
    paths = (named.certificate, named.key, named.client_ca)
    return TlsFiles(*(absolute(path, file.parent) for path in paths))


def daemon_schema() -> Schema:
    """JSON Schema (draft 2020-12) of the daemon's file, comments and trailing commas taken away."""
    return keys.schema("taskmaster daemon configuration", DAEMON_KEYS)
