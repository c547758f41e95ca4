"""Job files: the table against what is promised, each key's checks, and what an error says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from config_disk import ROOT

from taskmaster.config.jobfile import JOB_KEYS, parse_job, restarts
from taskmaster.config.keys import MAX_BYTES, Required
from taskmaster.core.spec import JobSpec, RestartPolicy, StopTo
from taskmaster.errors import FileError, InvalidJobName

#: Names of the daemon's own standard output.
OWN_STDOUT = ("inherit", "/dev/stdout", "//dev//stdout", "/dev/fd/1", "/proc/self/fd/1")
BASE = Path("/srv/base")

#: Keys and defaults that users rely on; a change here breaks their files.
PROMISED = {
    "shell": False,
    "runas": "",
    "procNr": 1,
    "autoStart": True,
    "restart": "unexpected",
    "startTime": 1,
    "normalExitCode": 0,
    "normalExitSig": [],
    "restartTimes": 3,
    "stopSig": "TERM",
    "stopTime": 10,
    "stopTo": "main",
    "stdin": "null",
    "stdout": "%n_stdout.log",
    "stderr": "%n_stderr.log",
    "logMaxBytes": 52428800,
    "logBackups": 10,
    "env": {},
    "inheritEnv": False,
    "dir": "/",
    "umask": "0022",
}


def parsed(**members):
    members.setdefault("cmd", "prog")
    return parse_job("web", json.dumps(members).encode(), BASE)


def refused(**members):
    with pytest.raises(FileError) as caught:
        parsed(**members)
    assert caught.value.file == "web.tm.json"
    return caught.value


def test_promised_keys_and_defaults():
    """Every promised key is there with its default, and only cmd is required."""
    defaults = {row.name: row.default for row in JOB_KEYS}
    assert defaults.pop("cmd") == Required()
    assert {name: defaults[name] for name in PROMISED} == PROMISED
    assert not any(isinstance(default, Required) for default in defaults.values())


def test_defaults_agree_with_spec():
    """A file with cmd alone gives the same value as a JobSpec made without a file."""
    assert parsed() == JobSpec(job="web", argv=("prog",))


def test_table_fills_every_field():
    """Every field of a JobSpec but its name comes from a key, and no key fills a field there is not."""
    filled = {field for row in JOB_KEYS for field in row.fields}
    assert filled == set(JobSpec.__struct_fields__) - {"job"}


def test_what_restarts():
    """Exactly the keys that say what the processes are restart them."""
    promised = {"cmd", "shell", "runas", "env", "inheritEnv", "dir", "umask"}
    promised |= {"envFile", "limits", "nice", "ionice", "oomScoreAdj", "cpuAffinity", "groups"}
    promised |= {"noNewPrivileges", "capabilities", "stdin"}
    assert {row.name for row in JOB_KEYS if restarts(row)} == promised


def test_everything_at_once():
    """Every key set, with comments and trailing commas, gives the value that it says."""
    data = b"""{
        // the front
        "cmd": ["/usr/bin/web", "--port", "80%n"], "runas": "www:www", "procNr": 4,
        "autoStart": false, "restart": "always", "startTime": 0.5, "normalExitCode": [2, 0, 2],
        "normalExitSig": ["INT", 15, 0], "restartTimes": -1, "stopSig": "SIGUSR1", "stopTime": 0,
        "stdout": null, "stderr": "/var/log/%n.err", "logMaxBytes": 0, "logBackups": 0,
        "env": {"B": "2", "A": "%n"}, "inheritEnv": true, "dir": "../www/", "umask": "077",
    }"""
    assert parse_job("web", data, BASE) == JobSpec(
        job="web",
        argv=("/usr/bin/web", "--port", "80%n"),
        runas="www:www",
        proc_nr=4,
        auto_start=False,
        restart=RestartPolicy.ALWAYS,
        start_time_s=0.5,
        normal_exit_codes=(0, 2),
        normal_exit_signals=(2, 15),
        restart_times=-1,
        stop_signal=10,
        stop_time_s=0.0,
        stdout=None,
        stderr="/var/log/%n.err",
        log_max_bytes=0,
        log_backups=0,
        env=(("A", "%n"), ("B", "2")),
        inherit_env=True,
        dir="/srv/base/../www",
        umask=0o077,
    )


@pytest.mark.parametrize(
    ("members", "field", "value"),
    [
        ({"cmd": "a 'b c' \"d\"e f\\ g ''"}, "argv", ("a", "b c", "de", "f g", "")),
        (
            {"cmd": "a # no comment; no $shell"},
            "argv",
            ("a", "#", "no", "comment;", "no", "$shell"),
        ),
        ({"cmd": "a | b %n", "shell": True}, "argv", ("/bin/sh", "-c", "a | b %n")),
        ({"restart": 0}, "restart", RestartPolicy.NEVER),
        ({"restart": 1}, "restart", RestartPolicy.UNEXPECTED),
        ({"restart": 2}, "restart", RestartPolicy.ALWAYS),
        ({"restart": "never"}, "restart", RestartPolicy.NEVER),
        ({"normalExitCode": 255}, "normal_exit_codes", (255,)),
        ({"normalExitCode": []}, "normal_exit_codes", ()),
        ({"normalExitSig": 0}, "normal_exit_signals", ()),
        ({"normalExitSig": "hup"}, "normal_exit_signals", (1,)),
        ({"stopSig": "sigrtmin+1"}, "stop_signal", 35),
        ({"stopSig": "RTMAX-2"}, "stop_signal", 62),
        ({"stopSig": 9}, "stop_signal", 9),
        ({"stopTo": "all"}, "stop_to", StopTo.ALL),
        ({"procNr": 1000}, "proc_nr", 1000),
        ({"procNr": 2.0}, "proc_nr", 2),
        ({"startTime": 2}, "start_time_s", 2.0),
        ({"stdout": "a/b.log"}, "stdout", "a/b.log"),
        ({"stdout": "stdout"}, "stdout", "stdout"),
        ({"stdout": "..a/b..c"}, "stdout", "..a/b..c"),
        ({"stdout": "./a//./b"}, "stdout", "a/b"),
        ({"stdout": "//a/../b"}, "stdout", "/a/../b"),
        *(({"stdout": path}, "stdout", "/dev/stdout") for path in OWN_STDOUT),
        *(({"stderr": path}, "stderr", "/dev/stdout") for path in OWN_STDOUT if path[0] == "/"),
        ({"stderr": "inherit"}, "stderr", "/dev/stderr"),
        ({"stdout": "/dev/fd/2"}, "stdout", "/dev/stderr"),
        ({"stdout": "./inherit"}, "stdout", "inherit"),
        ({"stdin": "open"}, "stdin", "open"),
        ({"stdin": None}, "stdin", "null"),
        ({"stdin": "./open"}, "stdin", "/srv/base/open"),
        ({"stdin": "/a/../b"}, "stdin", "/a/../b"),
        ({"env": [{"name": "A", "value": "x=y"}]}, "env", (("A", "x=y"),)),
        ({"env": {"A": ""}}, "env", (("A", ""),)),
        ({"umask": "0"}, "umask", 0),
        ({"umask": "0777"}, "umask", 0o777),
        ({"dir": "/a//b/./../c"}, "dir", "/a/b/../c"),
        ({"dir": "//a"}, "dir", "/a"),
        ({"dir": "."}, "dir", "/srv/base"),
        ({"dir": "../../../../x"}, "dir", "/srv/base/../../../../x"),
    ],
)
def test_accepted(members, field, value):
    """Each form of a value gives the field that it stands for."""
    assert getattr(parsed(**members), field) == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("cmd", v) for v in ("", " ", "''", "'a", "a \\", 1, None, True, {}, [], ["", "a"], [1])),
        *(("cmd", v) for v in ("a\0b", ["a", "b\0"], "a" * 65537, ["a" * 131072])),
        *(("shell", v) for v in (0, 1, "true", None)),
        *(
            ("runas", v)
            for v in (
                None,
                0,
                ":g",
                "u:",
                " a",
                "a ",
                "u: g",
                "a\u2028b",
                "u:g:h",
                "-u",
                "a/b",
                "u\0",
                "u\n",
            )
        ),
        *(("procNr", v) for v in (0, 1001, -1, True, 1.5, "1", None, [1], 10**60, 1e300)),
        *(("autoStart", v) for v in (0, "yes", None)),
        *(("restart", v) for v in (3, -1, "Always", "on-failure", True, None, [], 1.5)),
        *(("startTime", v) for v in (-1, -0.001, "1", True, None, 31536001, 1e300)),
        *(("normalExitCode", v) for v in (-1, 256, "0", True, [0, 256], [[0]], None, [False])),
        *(("normalExitSig", v) for v in (-1, 65, 32, 33, "FOO", "", [None], True, {}, "RTMIN+99")),
        *(("restartTimes", v) for v in (-2, 2**31, 0.5, True, "3")),
        *(("stopSig", v) for v in (0, 65, "SIG", "SIGSIG", "TERM+1", "15", None, ["TERM"], True)),
        *(("stopSig", v) for v in ("RTMIN-1", "RTMIN+31", "RTMAX+1", "_DFL", "TERM ", "RTMIN1")),
        *(("stopTime", v) for v in (-1, False, 10**60)),
        *(("stopTo", v) for v in ("", "MAIN", "both", 0, None, ["main"])),
        *(
            ("stdout", v)
            for v in ("", "../a", "a/../b", "a/..", "a/", "/", "/a/", ".", "a/.", "a\0")
        ),
        *(("stdout", v) for v in (1, False, [], "..", "a" * 4096)),
        *(("stderr", v) for v in ("", "../a", 0)),
        *(("stdin", v) for v in ("", 0, True, [], "a\0", "a" * 4096)),
        *(("stdout", v) for v in ("watchdog.crash", "./watchdog.crash", "watchdog.crash/a")),
        *(("stderr", v) for v in ("watchdog.crash", "0_stdout.log.1", "0_stdout.log/x")),
        *(("logMaxBytes", v) for v in (-1, 2**40 + 1, "50MB", True, None)),
        *(("logBackups", v) for v in (-1, 1001, True)),
        *(("env", v) for v in (None, "A=b", 1, {"": "x"}, {"A=": "x"}, {"A\0": "x"}, {"A": "\0"})),
        *(
            ("env", v)
            for v in ({"A": 1}, {"A": None}, {"A": True}, {"A": ["x"]}, {"A": "x" * 131072})
        ),
        *(("env", [v]) for v in ("A=b", {}, {"name": "A"}, {"name": 1, "value": "x"})),
        ("env", [{"name": "A", "value": "x", "extra": 1}]),
        ("env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        *(("inheritEnv", v) for v in (1, "no")),
        *(("dir", v) for v in ("", None, 1, "a\0", "a" * 4096)),
        *(("umask", v) for v in (22, "8", "1777", "0o22", "", "022 ", "00022", None, "٢", "-1")),
    ],
)
def test_refused(key, value):
    """Each wrong value is an error that names the key and says in words what is accepted."""
    error = refused(**{key: value})
    assert error.key == key
    assert error.found
    assert error.accepted
    assert len(error.found) < 150
    assert "\0" not in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("members", "key"),
    [
        # The other stream's file in another place: that of process 0 is "10", and so is that of process 10.
        ({"stdout": "1%n", "stderr": "%n", "procNr": 11}, "stderr"),
        ({"stdout": "a%n", "stderr": "a%n.10"}, "stderr"),
        ({"stdout": "a.2", "stderr": "a", "logBackups": 2}, "stdout"),
        ({"stdout": "a/%n.%n", "stderr": "a/1", "procNr": 1}, ""),
        ({"stdout": "a.2", "stderr": "a", "logBackups": 1}, ""),
        ({"stdout": "a.02", "stderr": "a"}, ""),
        ({"stdout": "a.1", "stderr": "a", "logBackups": 0}, ""),
        ({"stdout": "a.1", "stderr": "a", "logMaxBytes": 0}, ""),
        ({"stdout": "1%n", "stderr": "%n", "procNr": 11, "logMaxBytes": 0}, ""),
        ({"stdout": "watchdog%n.crash"}, ""),
        ({"stdout": "a/watchdog.crash"}, ""),
        ({"stdout": "/var/log/a", "stderr": "/var/log/a.3"}, "stderr"),
        ({"stdout": "inherit", "stderr": "/dev/stdout"}, ""),
        ({"procNr": 1000}, ""),
    ],
)
def test_outputs_in_each_others_way(members, key):
    """Two files of one job, over all its processes and with what rotation makes of them, are two names."""
    if key:
        assert refused(**members).key == key
    else:
        parsed(**members)


def test_shell_needs_a_string():
    """A list of words with shell true is an error of cmd, and so is a blank command."""
    assert refused(cmd=["a"], shell=True).key == "cmd"
    assert refused(cmd=" \n", shell=True).key == "cmd"


def test_stderr_to_stdout():
    """stderr may go to the file of stdout: by the word, or by naming the same file."""
    assert parsed(stderr="stdout").stderr_to_stdout
    assert parsed(stdout="a/b.log", stderr="a//b.log").stderr_to_stdout
    assert parsed(stderr="%n_stdout.log").stderr_to_stdout
    assert not parsed(stdout="a", stderr="b").stderr_to_stdout
    assert not parsed(stdout=None, stderr=None).stderr_to_stdout


def test_order_of_env_is_no_change():
    """Writing the same variables in another order or form does not restart anything."""
    listed = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert parsed(env={"B": "2", "A": "1"}) == parsed(env=listed)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("autostart", "autoStart"), ("numprocs", "procNr"), ("enviroment", "env"), ("xyz", "")],
)
def test_unknown_key(wrong, near):
    """An unknown key is an error that names it and the nearest there is."""
    error = refused(**{wrong: 1})
    assert error.key == wrong
    nearest = error.accepted.rpartition("nearest is ")[2].strip('"')
    assert nearest in {row.name for row in JOB_KEYS}
    if wrong in ("autostart",):
        assert nearest == near


def test_unknown_key_is_shown_safely():
    """A hostile key comes back short and without anything a terminal acts on."""
    error = refused(**{"\x1b[2J\u202e\n" + "x" * 100_000: 1})
    assert len(error.key) <= 60
    assert error.key.isprintable()


@pytest.mark.parametrize(
    "env",
    [
        {"A": 1234567},
        {"A": ["hunter2"]},
        "A=hunter2",
        ["A=hunter2"],
        {"A=hunter2": "x"},
        [{"A": "hunter2"}],
        [{"name": "A", "value": "hunter2", "hunter2": 1}],
        [{"name": "A", "value": {"hunter2": 1}}],
        [{"name": ["hunter2"], "value": "x"}],
        {"A": "hunter2\0"},
        {"A": "hunter2" * 20_000},
    ],
)
def test_env_values_stay_secret(env):
    """No error about env shows a value, however the value got into the wrong place."""
    message = str(refused(env=env))
    assert "hunter2" not in message
    assert "1234567" not in message


def test_syntax_error_shows_no_value():
    """A syntax error inside env shows one character at most."""
    for text in ('{"cmd":"a","env":{"A":hunter2}}', '{"cmd":"a","env":{"A":"hunter2\n'):
        with pytest.raises(FileError) as caught:
            parse_job("web", text.encode(), BASE)
        assert "hunter" not in str(caught.value)
        assert "line 1, column" in caught.value.found


def test_found_is_short():
    """A long value is shown shortened, and a value with control characters escaped."""
    error = refused(restart="\x1b]0;x\x07\u009b" + "y" * 100_000)
    assert error.found.startswith('"\\u001b]0;x\\u0007\\u009byyy')
    assert error.found.endswith("...")
    assert len(error.found) == 60


def test_whole_file_at_fault():
    """A file that is no object, too large, or without cmd says so; the name of a job is checked."""
    for data, words in ((b"[]", "a list"), (b"3", "a number"), (b"{}", "nothing"), (b"", "end of")):
        with pytest.raises(FileError, match=words):
            parse_job("web", data, BASE)
    with pytest.raises(FileError, match=f"{MAX_BYTES + 1} bytes"):
        parse_job("web", b" " * (MAX_BYTES + 1), BASE)
    with pytest.raises(FileError, match="second time at line 1") as caught:
        parse_job("web", b'{"cmd":"a","cmd":"b"}', BASE)
    assert caught.value.key == "cmd"
    with pytest.raises(InvalidJobName):
        parse_job("../web", b"{}", BASE)


def test_import_is_cheap():
    """Reading configuration drags in neither the command line's modules nor the network's."""
    heavy = "click,structlog,psutil,asyncio,socket,multiprocessing,secrets,email,http"
    code = (
        "import sys, taskmaster.config.store, taskmaster.config.daemon, taskmaster.config.jobfile\n"
        f"print(sorted(set({heavy!r}.split(',')) & set(sys.modules)))"
    )
    ran = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "[]"
