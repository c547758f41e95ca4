"""The daemon's configuration: which file it is, whom it trusts, its defaults and its keys."""

import json
import os
import pwd
from pathlib import Path

import pytest
from config_disk import STRANGER, UID, folder, needs_root, written

from taskmaster.config.access import Role, Rule
from taskmaster.config.daemon import DAEMON_KEYS, SYSTEM_FILE, DaemonConfig, load
from taskmaster.errors import FileError
from taskmaster.wire.queries import Command

NOWHERE = Path("/nonexistent/config.json")
USER = 4711
HOME = {"HOME": "/home/u"}
STATE = "/home/u/.local/state/taskmaster"
XDG = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}
NO_XDG = {"XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": "r"}

#: Keys and defaults that users rely on; a change here breaks their files.
PROMISED = {
    "port": 7777,
    "remoteConnections": False,
    "verbosity": 2,
    "maxFrameBytes": 4194304,
    "maxClients": 512,
    "maxClientsPerUser": 128,
    "commandsPerSecond": 2000,
    "commandsBurst": 4000,
    "idleTimeout": 3600,
    "allowInsecureRemote": False,
    "tls": None,
    "socketMode": "0600",
    "access": [],
    "pushEnabled": True,
    "requireReason": [],
    "secretPattern": "(?i)pass|secret|token|key",
    "commandDeadline": 5.0,
    "watchdogTimeout": 30.0,
    "auditMaxBytes": 104857600,
    "auditBackups": 10,
    "auditSealSeconds": 900.0,
    "auditAnchorSeconds": 3600.0,
    "auditSink": None,
    "auditSinkSocket": None,
    "auditKeepDays": 0,
    "auditBytesPerDay": 268435456,
    "auditReserveBytes": 4194304,
    "logFile": None,
    "logFileMaxBytes": 10485760,
    "logFileBackups": 4,
    "historyMaxBytes": 268435456,
    "jobOutputMaxBytes": 17179869184,
}
COMPUTED = {
    *("socket", "configDirectory", "logDirectory", "stateDirectory", "auditFile"),
    "auditSealFile",
}


def loaded(tmp_path, **members):
    text = json.dumps(members).encode()
    return load(written(tmp_path / "config.json", text), {}, UID)


def refused(path, environ=None, uid=UID):
    with pytest.raises(FileError) as caught:
        load(path, environ or {}, uid)
    return caught.value


def test_promised_keys_and_defaults():
    """Every promised key is there with its default, and no other key is."""
    assert {row.name for row in DAEMON_KEYS} == {*PROMISED, *COMPUTED}
    defaults = {row.name: row.default for row in DAEMON_KEYS}
    assert {name: defaults[name] for name in PROMISED} == PROMISED
    filled = [field for row in DAEMON_KEYS for field in row.fields]
    assert set(filled) == set(DaemonConfig.__struct_fields__) - {"base", "file", "socket_link"}


def test_defaults_of_root():
    """Without a file, root's daemon uses the system's folders."""
    assert load(None, {"HOME": "/root", "XDG_STATE_HOME": "/x"}, 0, system_file=NOWHERE) == (
        DaemonConfig(
            port=7777,
            remote_connections=False,
            allow_insecure_remote=False,
            tls=None,
            socket_mode=0o600,
            access=(),
            push_enabled=True,
            require_reason=frozenset(),
            secret_pattern="(?i)pass|secret|token|key",
            socket=Path("/run/taskmaster/control.sock"),
            config_directory=Path("/etc/taskmaster/jobs"),
            log_directory=Path("/var/log/taskmaster"),
            state_directory=Path("/run/taskmaster"),
            verbosity=2,
            audit_file=Path("/var/log/taskmaster/audit.jsonl"),
            audit_max_bytes=104857600,
            audit_backups=10,
            audit_seal_file=Path("/var/log/taskmaster/audit.seal"),
            audit_seal_s=900.0,
            audit_anchor_s=3600.0,
            audit_sink=None,
            audit_sink_socket=None,
            audit_keep_days=0,
            audit_bytes_per_day=268435456,
            audit_reserve_bytes=4194304,
            log_file=None,
            log_file_max_bytes=10485760,
            log_file_backups=4,
            history_max_bytes=268435456,
            job_output_max_bytes=17179869184,
            max_frame_bytes=4194304,
            max_clients=512,
            max_clients_per_user=128,
            commands_per_second=2000,
            commands_burst=4000,
            idle_timeout_s=3600.0,
            command_deadline_s=5.0,
            watchdog_timeout_s=30.0,
            base=Path("/etc/taskmaster"),
            file=None,
        )
    )
    assert Path("/etc/taskmaster/config.json") == SYSTEM_FILE


@pytest.mark.parametrize(
    ("environ", "jobs", "logs", "state"),
    [
        (HOME, "/home/u/.config", f"{STATE}/log", f"{STATE}/run"),
        ({**HOME, "XDG_RUNTIME_DIR": "/run/user/1"}, "/home/u/.config", None, f"{STATE}/run"),
        ({**HOME, **XDG}, "/c", "/s/taskmaster/log", "/s/taskmaster/run"),
        ({**HOME, **NO_XDG}, "/home/u/.config", f"{STATE}/log", f"{STATE}/run"),
        (XDG, "/c", "/s/taskmaster/log", "/s/taskmaster/run"),
    ],
)  # fmt: skip
def test_defaults_of_a_user(environ, jobs, logs, state):
    """An ordinary user's folders follow the XDG rules; a relative or empty variable is ignored."""
    config = load(None, environ, USER, system_file=NOWHERE)
    assert config.config_directory == Path(jobs) / "taskmaster/jobs"
    assert config.base == Path(jobs) / "taskmaster"
    if logs:
        assert config.log_directory == Path(logs)
    if state:
        assert config.state_directory == Path(state)
    assert config.socket == config.state_directory / "control.sock"
    assert config.audit_file == config.log_directory / "audit.jsonl"


def test_a_users_state_outlives_the_session(tmp_path):
    """It is not in XDG_RUNTIME_DIR, where the socket has a second path; an older version's stays where it is."""
    environ = {"HOME": "/home/u", "XDG_RUNTIME_DIR": str(tmp_path)}
    config = load(None, environ, USER, system_file=NOWHERE)
    assert config.state_directory == Path("/home/u/.local/state/taskmaster/run")
    assert config.socket_link == tmp_path / "taskmaster/control.sock"
    folder(tmp_path / "taskmaster")
    written(tmp_path / "taskmaster/lock", b"")
    config = load(None, environ, USER, system_file=NOWHERE)
    assert (config.state_directory, config.socket_link) == (tmp_path / "taskmaster", None)
    assert load(None, environ, 0, system_file=NOWHERE).socket_link is None


def test_home_of_the_user_database():
    """Without a usable HOME the user database says where home is; without that, it is an error."""
    entry = next(each for each in pwd.getpwall() if each.pw_uid != 0)
    for environ in ({}, {"HOME": ""}, {"HOME": "relative"}):
        config = load(None, environ, entry.pw_uid, system_file=NOWHERE)
        assert config.config_directory == Path(entry.pw_dir) / ".config/taskmaster/jobs"
    unknown = next(uid for uid in range(60000, 2**31) if not _is_known(uid))
    with pytest.raises(FileError, match=f"uid {unknown} is in no user database"):
        load(None, {}, unknown, system_file=NOWHERE)


def _is_known(uid):
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def test_everything_set(tmp_path):
    """Every key set; relative paths are relative to the file, base is its folder, no home is needed."""
    config = loaded(
        tmp_path,
        port=0,
        remoteConnections=True,
        allowInsecureRemote=True,
        tls=None,
        socketMode="0660",
        access=[{"role": "viewer", "users": [4711]}],
        pushEnabled=False,
        requireReason=["kill"],
        secretPattern="x",
        maxClientsPerUser=2,
        commandsPerSecond=3,
        commandsBurst=4,
        idleTimeout=5,
        socket="run/./s.sock",
        configDirectory="jobs",
        logDirectory="/var/../log/",
        stateDirectory="../state",
        verbosity=3,
        auditFile="audit",
        maxFrameBytes=1024,
        maxClients=1,
        commandDeadline=0.5,
        watchdogTimeout=2,
        auditMaxBytes=0,
        auditBackups=0,
        auditSealFile="seal",
        auditSealSeconds=1,
        auditAnchorSeconds=0,
        auditSink="journald",
        auditSinkSocket="sink",
        auditKeepDays=90,
        auditBytesPerDay=0,
        auditReserveBytes=0,
        logFile="messages",
        logFileMaxBytes=0,
        logFileBackups=0,
        historyMaxBytes=1 << 20,
        jobOutputMaxBytes=0,
    )
    assert config == DaemonConfig(
        port=0,
        remote_connections=True,
        allow_insecure_remote=True,
        tls=None,
        socket_mode=0o660,
        access=(Rule(role=Role.VIEWER, users=frozenset({4711})),),
        push_enabled=False,
        require_reason=frozenset({Command.KILL}),
        secret_pattern="x",
        socket=tmp_path / "run/s.sock",
        config_directory=tmp_path / "jobs",
        log_directory=Path("/log"),
        state_directory=tmp_path.parent / "state",
        verbosity=3,
        audit_file=tmp_path / "audit",
        audit_max_bytes=0,
        audit_backups=0,
        audit_seal_file=tmp_path / "seal",
        audit_seal_s=1.0,
        audit_anchor_s=0.0,
        audit_sink="journald",
        audit_sink_socket=tmp_path / "sink",
        audit_keep_days=90,
        audit_bytes_per_day=0,
        audit_reserve_bytes=0,
        log_file=tmp_path / "messages",
        log_file_max_bytes=0,
        log_file_backups=0,
        history_max_bytes=1 << 20,
        job_output_max_bytes=0,
        max_frame_bytes=1024,
        max_clients=1,
        max_clients_per_user=2,
        commands_per_second=3,
        commands_burst=4,
        idle_timeout_s=5.0,
        command_deadline_s=0.5,
        watchdog_timeout_s=2.0,
        base=tmp_path,
        file=tmp_path / "config.json",
    )


def test_null_and_derived(tmp_path):
    """null switches TCP and the socket off; socket and audit log follow the folders that are set."""
    assert loaded(tmp_path, port=None).port is None
    none = loaded(
        tmp_path, socket=None, stateDirectory="/s", logDirectory="/l", configDirectory="/c"
    )
    assert none.socket is None
    derived = loaded(tmp_path, stateDirectory="/s", logDirectory="/l", configDirectory="/c")
    assert (derived.socket, derived.audit_file) == (Path("/s/control.sock"), Path("/l/audit.jsonl"))
    assert derived.base == tmp_path
    assert derived.audit_seal_file == Path("/l/audit.seal")
    unsealed = loaded(tmp_path, auditSealFile=None, auditSink=None, auditSinkSocket=None)
    assert (unsealed.audit_seal_file, unsealed.audit_sink, unsealed.audit_sink_socket) == (
        None,
    ) * 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("port", v) for v in (-1, 65536, "7777", True, 1.5)),
        *(("remoteConnections", v) for v in (0, "no", None)),
        *(("tls", v) for v in (True, {}, {"certificate": "a", "key": "b"})),
        *(("socket", v) for v in ("", 1, "a\0")),
        *(("configDirectory", v) for v in ("", None, 1)),
        *(("verbosity", v) for v in (-1, 4, None, True)),
        *(("maxFrameBytes", v) for v in (1023, 64 * 1024 * 1024 + 1, None)),
        *(("maxClients", v) for v in (0, 100_001)),
        *(("commandDeadline", v) for v in (0, -1, "5", 3601, True)),
        *(("watchdogTimeout", v) for v in (0, None, 10**60)),
        *(("auditMaxBytes", v) for v in (-1, 2**40 + 1)),
        *(("auditBackups", v) for v in (-1, 1001)),
        *(("auditSealFile", v) for v in ("", 1, "a\0")),
        *(("auditSealSeconds", v) for v in (0, 86401, None)),
        *(("auditAnchorSeconds", v) for v in (-1, 86401, None)),
        *(("auditSink", v) for v in ("", "file", 1, ["syslog"])),
        *(("auditSinkSocket", v) for v in ("", 1)),
    ],
)
def test_refused_values(tmp_path, key, value):
    """A wrong value is an error with file, key, what was found and what is accepted."""
    path = written(tmp_path / "config.json", json.dumps({key: value}).encode())
    error = refused(path)
    assert (error.file, error.key) == (str(path), key)
    assert error.found
    assert error.accepted


def test_unknown_key(tmp_path):
    """An unknown key is an error that names the nearest."""
    error = refused(written(tmp_path / "c.json", b'{"configDir": "x"}'))
    assert error.key == "configDir"
    assert '"configDirectory"' in error.accepted


def test_which_file(tmp_path):
    """-c before $TASKMASTER_CONFIG before the system's file before the defaults; an empty variable is none."""
    a, b, c = (
        written(tmp_path / name, b'{"port": %d}' % port)
        for name, port in (("a.json", 1), ("b.json", 2), ("c.json", 3))
    )
    environ = {"TASKMASTER_CONFIG": str(b), **HOME}
    assert load(a, environ, UID, system_file=c).port == 1
    assert load(None, environ, UID, system_file=c).port == 2
    assert load(None, {"TASKMASTER_CONFIG": "", **HOME}, UID, system_file=c).port == 3
    last = load(None, HOME, UID, system_file=tmp_path / "d.json")
    assert (last.port, last.file) == (7777, None)


def test_never_the_current_directory(tmp_path, monkeypatch):
    """Files of the current directory count for nothing, unless -c names one."""
    written(tmp_path / "config.json", b'{"port": 1}')
    monkeypatch.chdir(tmp_path)
    assert load(None, HOME, UID, system_file=NOWHERE).port == 7777
    assert refused(None, {"TASKMASTER_CONFIG": "config.json"}).file == "TASKMASTER_CONFIG"
    config = load(Path("config.json"), HOME, UID)
    assert (config.port, config.file) == (1, tmp_path / "config.json")


def test_named_file_must_be_there(tmp_path):
    """A file named by -c or the variable that is not there is an error, not the defaults."""
    missing = tmp_path / "missing.json"
    for error in (refused(missing), refused(None, {"TASKMASTER_CONFIG": str(missing)})):
        assert error.file == str(missing)
        assert "No such file" in error.found
    assert "No such file" in refused(tmp_path / "no" / "folder.json").found


def test_not_a_regular_file(tmp_path):
    """A folder, a FIFO, a device is refused, and so is a link to one; a FIFO without writer does not block."""
    (tmp_path / "link.json").symlink_to("fifo.json")
    os.mkfifo(tmp_path / "fifo.json", 0o600)
    folder(tmp_path / "folder.json")
    assert refused(tmp_path / "link.json").found == "a FIFO"
    assert refused(tmp_path / "fifo.json").found == "a FIFO"
    assert refused(tmp_path / "folder.json").found == "a folder"
    assert "device" in refused(Path("/dev/null")).found
    assert refused(Path("/")).found
    assert refused(tmp_path / "nul\0.json").found


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_file_that_others_may_write(tmp_path, mode):
    """A file that group or others may write to is refused with its mode."""
    error = refused(written(tmp_path / "config.json", b"{}", mode))
    assert error.found == f"mode {mode:04o}"
    assert "chmod go-w" in error.accepted


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_folder_that_others_may_write(tmp_path, mode):
    """A folder that group or others may write to is refused, unless its sticky bit keeps files apart."""
    inside = folder(tmp_path / "open", mode)
    path = written(inside / "config.json", b'{"port": 5}')
    assert refused(path).found == f"mode {mode:04o}"
    inside.chmod(mode | 0o1000)
    assert load(path, HOME, UID).port == 5


@needs_root
def test_strangers(tmp_path):
    """File or folder of somebody who is neither root nor the daemon's user are refused."""
    inside = folder(tmp_path / "theirs")
    path = written(inside / "config.json", b"{}")
    os.chown(path, STRANGER, -1)
    assert refused(path).found == f"owner uid {STRANGER}"
    assert load(path, HOME, STRANGER).file == path
    os.chown(path, 0, -1)
    os.chown(inside, STRANGER, -1)
    assert refused(path).found == f"owner uid {STRANGER}"
    assert load(path, HOME, STRANGER).file == path


def test_folder_may_be_a_link(tmp_path):
    """The file's folder may be a link; what it leads to is what is judged."""
    real = folder(tmp_path / "real")
    written(real / "config.json", b'{"port": 6}')
    (tmp_path / "link").symlink_to(real)
    assert load(tmp_path / "link/config.json", HOME, UID).port == 6
    real.chmod(0o777)
    assert refused(tmp_path / "link/config.json").found == "mode 0777"
