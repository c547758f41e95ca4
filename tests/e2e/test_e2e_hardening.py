"""Jobs that may do less: every key at once, secrets that show nowhere, memory that has an end, without root."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from e2e_programs import python
from running import C_LIBRARY_SIGNALS, process_start, wait_for

from taskmaster import syscalls
from taskmaster.config.jobfile import JOB_KEYS
from taskmaster.watchdog import cgroup

NOBODY = pwd.getpwnam("nobody")
MIB = 1024 * 1024
SECRET = "hunter2-and-nothing-else"
#: What a job with every key needs of the tests' own rights: CHOWN, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE.
NEEDED = {0, 6, 7, 8, 10}


def rights() -> set[int]:
    mask = syscalls.capabilities().effective
    return {number for number in range(64) if mask >> number & 1}


full_root = pytest.mark.skipif(
    os.geteuid() != 0 or not rights() >= NEEDED, reason=f"needs the capabilities {NEEDED}"
)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def rights_of(pid: int) -> int:
    return int(status_of(pid)["CapPrm"], 16)


def limits_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:68].split() for line in lines}


#: Every limit that needs no rights to be set to this, its name in /proc and what stands there.
LIMITS = {
    "as": (2**33, "Max address space", ["8589934592"] * 2),
    "core": (0, "Max core file size", ["0", "0"]),
    "cpu": ({"soft": 1000, "hard": 2000}, "Max cpu time", ["1000", "2000"]),
    "data": (2**32, "Max data size", ["4294967296"] * 2),
    "fsize": ({"soft": 2**20, "hard": "unlimited"}, "Max file size", ["1048576", "unlimited"]),
    "memlock": (4096, "Max locked memory", ["4096", "4096"]),
    "msgqueue": (1024, "Max msgqueue size", ["1024", "1024"]),
    "nice": (0, "Max nice priority", ["0", "0"]),
    "nofile": ({"soft": 64, "hard": 128}, "Max open files", ["64", "128"]),
    "nproc": ({"soft": 50, "hard": 60}, "Max processes", ["50", "60"]),
    "rtprio": (0, "Max realtime priority", ["0", "0"]),
    "rttime": (5000000, "Max realtime timeout", ["5000000"] * 2),
    "sigpending": (10, "Max pending signals", ["10", "10"]),
    "stack": ({"soft": 2**20, "hard": 2**22}, "Max stack size", ["1048576", "4194304"]),
}  # fmt: skip
HARDENING = {
    "runas", "umask", "envFile", "limits", "nice", "ionice", "oomScoreAdj", "cpuAffinity", "noNewPrivileges",
    "capabilities", "groups", "memoryMax",
}  # fmt: skip


@full_root
def test_every_key_at_once(make_daemon):
    """/proc says of the process what its file said, and nothing more; another job beside it has none of it."""
    cpu = min(os.sched_getaffinity(0))
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    daemon = make_daemon()
    secret = daemon.folder / "web.env"
    secret.write_text(f"TOKEN={SECRET}\n")
    secret.chmod(0o600)
    keys = {
        "runas": "nobody:daemon", "umask": "0027", "envFile": "web.env",
        "limits": {name: value for name, (value, _, _) in LIMITS.items()},
        "nice": nice + 3, "ionice": "best-effort:6", "oomScoreAdj": 300, "cpuAffinity": [cpu],
        "noNewPrivileges": True, "groups": ["daemon", 12345], "memoryMax": "512M",
        "capabilities": {"bounding": ["CHOWN", "CAP_NET_BIND_SERVICE"], "ambient": ["net_bind_service"]},
    }  # fmt: skip
    assert set(keys) == HARDENING <= {row.name for row in JOB_KEYS}
    # It tells of its own descriptors and environment: into another user's process not even root may look
    # in every container.
    daemon.job("hard", ["/bin/sh", "-c", "ls /proc/$$/fd; env; exec sleep 1000"], **keys)
    daemon.job("plain", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("hard", "RUNNING")
    daemon.wait_state("plain", "RUNNING")
    (pid,), (plain,) = daemon.pids("hard"), daemon.pids("plain")
    log = daemon.logs / "jobs/hard/0_stdout.log"
    wait_for(lambda: log.exists() and f"TOKEN={SECRET}\n" in log.read_text())
    wait_for(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    found = status_of(pid)
    assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    assert found["Gid"].split() == ["1"] * 4
    assert sorted(found["Groups"].split()) == ["1", "12345"]
    assert found["Umask"] == "0027"
    assert [int(found[f"Cap{one}"], 16) for one in ("Inh", "Prm", "Eff", "Amb")] == [1 << 10] * 4
    assert int(found["CapBnd"], 16) == 1 << 10 | 1
    assert found["NoNewPrivs"] == "1"
    assert found["Cpus_allowed_list"] == str(cpu)
    for mask in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(found[mask], 16) & ~C_LIBRARY_SIGNALS == 0, mask
    assert os.getpriority(os.PRIO_PROCESS, pid) == nice + 3
    assert tuple(psutil.Process(pid).ionice()) == (2, 6)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "300\n"
    assert log.read_text().split()[:3] == ["0", "1", "2"]
    assert "=" in log.read_text().split()[3]
    limits = limits_of(pid)
    assert {line: limits[line] for _, line, _ in LIMITS.values()} == {
        line: values for _, line, values in LIMITS.values()
    }
    # What no key named is as it was.
    mine, other = status_of(daemon.pid), status_of(plain)
    assert found["Seccomp"] == other["Seccomp"] == mine["Seccomp"]
    unnamed = set(limits) - {line for _, line, _ in LIMITS.values()}
    assert {line: limits[line] for line in unnamed} == {
        line: limits_of(os.getpid())[line] for line in unnamed
    }
    for line in ("Uid", "Gid", "CapBnd", "CapPrm", "CapEff", "NoNewPrivs", "Cpus_allowed_list"):
        assert other[line] == mine[line], line
    assert limits_of(plain) == limits_of(os.getpid())
    assert daemon.status("plain")["memory"] is None


def everything_said(daemon) -> bytes:
    """All that the daemon has written anywhere, and all that it answers."""
    said = [path.read_bytes() for path in daemon.folder.rglob("*") if path.is_file()]
    return b"".join(said)


def test_secrets_show_nowhere(make_daemon, tmp_path):
    """Of an envFile the process has the values, and no answer, log, record or message has them."""
    daemon = make_daemon()
    outside = tmp_path / "secrets"
    outside.mkdir(mode=0o700)
    good, bad = outside / "good.env", outside / "bad.env"
    good.write_text(f"# ours\nDB_PASSWORD='{SECRET}'\n")
    bad.write_text(f"A=1\nDB_PASSWORD '{SECRET}'\n")
    for path in (good, bad):
        path.chmod(0o600)
    daemon.job("good", ["sleep", "1000"], envFile=str(good), env={"DB_PASSWORD": "x"})
    daemon.job("bad", ["sleep", "1000"], envFile=str(bad), restartTimes=1)
    daemon.start()
    daemon.wait_state("good", "RUNNING")
    (pid,) = daemon.pids("good")
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"DB_PASSWORD={SECRET}".encode() in environ
    why = f"envFile {bad}: line 2: no =, where NAME=VALUE is accepted"
    assert why in daemon.wait_state("bad", "FATAL")["reason"]
    assert daemon.ask("start", "bad") == {"response": "fail", "error": f"process 0: {why}"}
    # Read anew at each start: another value needs no other job file.
    good.write_text(f"DB_PASSWORD={SECRET}-changed\n")
    assert daemon.ask("restart", "good", wait=30)["response"] == "success"
    (pid,) = daemon.pids("good")
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert f"DB_PASSWORD={SECRET}-changed".encode() in environ
    with daemon.client() as client:
        replies = [client.ask("pull", job) for job in ("good", "bad")]
        replies += [client.status(job) for job in ("good", "bad")]
    assert SECRET not in repr(replies)
    assert SECRET.encode() not in everything_said(daemon)
    assert daemon.events("process.spawn_failed", job="bad")[-1]["error"] == why


def test_files_that_are_no_secrets(make_daemon):
    """What is in the place of the file and not to be trusted is a failed start that says so; nothing runs."""
    daemon = make_daemon()
    folder = daemon.folder
    good = folder / "good"
    good.write_text(f"TOKEN={SECRET}\n")
    good.chmod(0o600)
    cases = {
        "missing": (lambda path: None, "No such file or directory"),
        "link": (lambda path: path.symlink_to(folder / "readable.env"), "has mode 0640"),
        "pipe": (lambda path: os.mkfifo(path, 0o600), "is no regular file"),
        "readable": (
            lambda path: (path.write_text(f"TOKEN={SECRET}"), path.chmod(0o640)),
            "has mode 0640: group or others may use it (chmod 600)",
        ),
        "huge": (
            lambda path: (path.write_bytes(SECRET.encode() * 20000), path.chmod(0o600)),
            "is over 262144 bytes",
        ),
        "binary": (
            lambda path: (path.write_bytes(f"A=\0{SECRET}".encode()), path.chmod(0o600)),
            "line 1: a NUL byte",
        ),
    }
    if os.geteuid() == 0 and 0 in rights():
        uid = NOBODY.pw_uid
        cases["foreign"] = (
            lambda path: (path.write_text("A=1"), path.chmod(0o600), os.chown(path, uid, -1)),
            f"it belongs to uid {uid}, not to root or the user of taskmasterd",
        )
    for name, (make, _) in cases.items():
        make(folder / f"{name}.env")
        daemon.job(name, ["sleep", "1000"], envFile=f"{name}.env", autoStart=False, restartTimes=1)
    daemon.start()
    for name, (_, words) in cases.items():
        error = f"process 0: envFile {folder / name}.env: {words}"
        reply = daemon.ask("start", name)
        assert (reply["response"], reply["error"][: len(error)]) == ("fail", error)
        status = daemon.wait_state(name, "FATAL")
        assert (status["alive"], words in status["reason"]) == (0, True)
    for name in cases:
        (folder / f"{name}.env").unlink(missing_ok=True)
    good.unlink()
    assert SECRET.encode() not in everything_said(daemon)


def test_an_env_file_behind_links(make_daemon):
    """As cluster managers mount it: read; where others could exchange a folder on the way, not."""
    daemon = make_daemon()
    real = daemon.folder / "..2026"
    real.mkdir(mode=0o700)
    (real / "token").write_text(f"TOKEN={SECRET}\n")
    (real / "token").chmod(0o400)
    (daemon.folder / "..data").symlink_to(real.name)
    (daemon.folder / "token").symlink_to("..data/token")
    daemon.job(
        "web",
        ["/bin/sh", "-c", "echo ${#TOKEN}; exec sleep 1000"],
        envFile="token",
        autoStart=False,
    )
    daemon.start()
    assert daemon.ask("start", "web")["response"] == "success"
    log = daemon.logs / "jobs/web/0_stdout.log"
    wait_for(lambda: log.exists() and log.read_text() == f"{len(SECRET)}\n")
    assert daemon.ask("stop", "web", wait=60)["response"] == "success"
    real.chmod(0o777)
    assert f"folder {real}: mode 0777" in daemon.ask("start", "web")["error"]


# memory -------------------------------------------------------------------------------------------

#: Has two children that grow with it, all three below the limit, and a file that shows who they are.
GROWER = """
import os, sys, time
step, most, pids = int(sys.argv[1]) << 20, int(sys.argv[2]) << 20, sys.argv[3]
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        break
with open(pids, "a") as file:
    file.write(f"{os.getpid()}\\n")
held = []
while sum(map(len, held)) < most:
    held.append(b"x" * step)
    time.sleep(0.05)
while True:
    time.sleep(1000)
"""


@pytest.mark.parametrize("watchdog", ["lives", "is replaced"])
def test_memory_has_an_end(make_daemon, tmp_path, watchdog):
    """A family that grows over memoryMax is killed as a whole and it is said why; another job lives on.

    None of its processes is over the limit by itself, ``normalExitSig`` makes nothing of it normal, and a
    watchdog that has adopted the family watches on.
    """
    daemon = make_daemon()
    pids = tmp_path / "pids"
    argv = python(tmp_path / "grower.py", GROWER, "2", "60", str(pids))
    daemon.job("grow", argv, memoryMax="120M", restart="never", normalExitSig="KILL")
    daemon.job("fits", ["sleep", "1000"], memoryMax="64M", procNr=2)
    daemon.start()
    daemon.wait_state("fits", "RUNNING")
    fitting = daemon.pids("fits")
    if watchdog == "is replaced":
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        os.kill(daemon.status("grow")["watchdog"]["pid"], signal.SIGKILL)
        wait_for(lambda: daemon.events("process.adopted", job="grow"))
    status = daemon.wait_state("grow", "EXITED")
    family = [int(pid) for pid in pids.read_text().split()]
    assert len(family) == 3
    wait_for(lambda: [process_start(pid) for pid in family] == [None] * 3)
    (exceeded,) = daemon.events("process.memory_exceeded")
    (started,) = daemon.events("process.started", job="grow")
    assert (exceeded["job"], exceeded["pid"]) == ("grow", started["pid"])
    assert started["pid"] in family
    assert exceeded["max"] == 120 * MIB < exceeded["memory"] < 300 * MIB
    assert status["memory"] == {"max": 120 * MIB, "current": None, "by": exceeded["by"]}
    assert exceeded["by"] == ("watching" if cgroup.delegated() is None else "cgroup")
    process = status["processes"][0]
    why = process["exitReason"]
    assert why.startswith("memoryMax: ")
    assert why.endswith(" of 120 MiB")
    assert why in status["reason"]
    assert process["signal"] == signal.SIGKILL
    (exited,) = daemon.events("process.exited", job="grow")
    assert exited["expected"] is False
    assert daemon.events("process.killed", job="grow")[0]["reason"] == why
    # Forgiven: the next one starts with nothing against it.
    assert daemon.pids("fits") == fitting

    def told() -> int | None:
        found = daemon.status("fits")["memory"]["current"]
        return found if found is None else int(found)

    assert 0 < wait_for(told) < 64 * MIB


def test_what_a_process_left_behind_has_an_end_too(make_daemon, tmp_path):
    """A program that went into the background, its parent gone, is watched on and killed when it grows over."""
    daemon = make_daemon()
    pids = tmp_path / "pids"
    argv = python(
        tmp_path / "background.py",
        "import os\nif os.fork(): os._exit(0)\nos.setsid()\n" + GROWER,
        *("2", "60", str(pids)),
    )
    daemon.job("grow", argv, memoryMax="100M", restart="never")
    daemon.start()
    status = daemon.wait_state("grow", "EXITED")
    assert status["alive"] == 0
    wait_for(lambda: daemon.events("process.memory_exceeded", job="grow"))
    family = [int(pid) for pid in pids.read_text().split()]
    wait_for(lambda: [process_start(pid) for pid in family] == [None] * 3)
    found = daemon.status("grow")["processes"][0]
    assert (found["exitCode"], found["exitReason"][:10]) == (0, "memoryMax:")


def test_another_limit_is_applied_to_what_runs(make_daemon):
    """memoryMax may be given, changed and taken away again; the process stays, until it has too much."""
    daemon = make_daemon()
    argv = [sys.executable, "-c", "x = b'x' * (50 << 20); import time; time.sleep(1000)"]
    daemon.job("web", argv)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    pids = daemon.pids("web")
    for limit in ("512M", "1G", None):
        daemon.job("web", argv, memoryMax=limit)
        assert daemon.ask("reload", "web") == {"response": "success"}
        assert daemon.pids("web") == pids
        found = daemon.status("web")["memory"]
        assert found is None if limit is None else found["by"] == "watching"
    daemon.job("web", argv, memoryMax="20M", restart="never")
    assert daemon.ask("reload", "web") == {"response": "success"}
    assert "of 20 MiB" in daemon.wait_state("web", "EXITED")["reason"]


def test_with_a_cgroup(make_daemon, tmp_path):
    """Where one is delegated the kernel keeps the limit, also while there is no watchdog; the group goes after."""
    base = cgroup.delegated()
    if base is None:
        pytest.skip("no cgroup with the memory controller is delegated to the tests")
    daemon = make_daemon()
    pids = tmp_path / "pids"
    argv = python(tmp_path / "grower.py", GROWER, "2", "60", str(pids))
    daemon.job("grow", argv, memoryMax="120M", restart="never")
    daemon.job("fits", ["sleep", "1000"], memoryMax="64M")
    daemon.start()
    status = daemon.wait_state("fits", "RUNNING")
    assert status["memory"]["by"] == "cgroup"
    (pid,) = daemon.pids("fits")
    at = cgroup.where(f"/proc/{pid}")
    assert at is not None
    group = Path(at[0])
    assert str(group.parent) == base
    assert (group / "memory.max").read_text() == f"{64 * MIB}\n"
    os.kill(status["watchdog"]["pid"], signal.SIGKILL)
    assert "memoryMax: 120 MiB of 120 MiB" in daemon.wait_state("grow", "EXITED")["reason"]
    assert daemon.wait_state("fits", "RUNNING")["memory"]["by"] == "cgroup"
    assert daemon.pids("fits") == [pid]
    for job in ("fits", "grow"):
        assert daemon.ask("delete", job, wait=30)["response"] == "success"
    wait_for(lambda: not [one for one in os.listdir(base) if one.startswith("taskmaster-")])


# without root -------------------------------------------------------------------------------------


@pytest.fixture
def users_daemon(make_daemon):
    """A daemon of user nobody, with what it needs to be his; where the tests may change users."""
    if os.geteuid() != 0 or not rights() >= {0, 6, 7}:
        pytest.skip("needs CAP_CHOWN, CAP_SETGID and CAP_SETUID")
    prefix = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    # Twice: setpriv itself executes with rights that its program has not.
    tries = ["/bin/sh", "-c", 'exec "$0" -c "import taskmaster.control.daemon"', sys.executable]
    if subprocess.run([*prefix, *tries], capture_output=True).returncode != 0:
        # The interpreter is where only root looks; of root's rights this one is the least that helps.
        prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        if subprocess.run([*prefix, *tries], capture_output=True).returncode != 0:
            pytest.skip("nobody cannot run these tests")
    return make_daemon(prefix=prefix)


def test_a_users_daemon(users_daemon):
    """It does what a user may; what he may not is a failed start that names the key, and nothing runs."""
    daemon = users_daemon
    uid = NOBODY.pw_uid
    secret, roots = daemon.folder / "own.env", daemon.folder / "root.env"
    for path in (secret, roots):
        path.write_text(f"TOKEN={SECRET}\n")
        path.chmod(0o600)
    may = {
        "nice": os.getpriority(os.PRIO_PROCESS, 0) + 1, "ionice": "idle", "oomScoreAdj": 500,
        "limits": {"nofile": 32, "core": 0}, "memoryMax": "256M", "envFile": "own.env",
        "cpuAffinity": [min(os.sched_getaffinity(0))], "runas": "nobody",
    }  # fmt: skip
    may_not = {
        "nice": (-20, "nice -20: Permission denied"),
        "ionice": ("realtime:0", "ionice: Operation not permitted"),
        "oomScoreAdj": (-1, "oomScoreAdj -1: Permission denied"),
        "limits": ({"nofile": {"soft": 1, "hard": 2**40}}, "limits nofile: Operation not permitted"),
        "groups": ([], "groups: Operation not permitted"),
        "capabilities": ([], "capabilities without CAP_CHOWN: Operation not permitted"),
        "runas": ("root", "user root: Operation not permitted"),
        "envFile": ("root.env", f"envFile {roots}: Permission denied"),
    }  # fmt: skip
    if rights_of(daemon.host.pid):
        del may_not["envFile"]  # it may read everything
    daemon.job("may", ["sleep", "1000"], **may)
    for key, (value, _) in may_not.items():
        daemon.job(key, ["sleep", "1000"], autoStart=False, restartTimes=1, **{key: value})
    for path in [daemon.folder, *daemon.folder.rglob("*")]:
        if path != roots:
            os.chown(path, uid, NOBODY.pw_gid)
    daemon.start()
    daemon.wait_state("may", "RUNNING")
    (pid,) = daemon.pids("may")
    found = status_of(pid)
    assert found["Uid"].split() == [str(uid)] * 4
    assert found["NoNewPrivs"] == "1"
    assert int(found["CapPrm"], 16) == int(found["CapAmb"], 16) == rights_of(daemon.pid)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
    assert limits_of(pid)["Max open files"] == ["32", "32"]
    assert psutil.Process(pid).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    assert daemon.status("may")["memory"]["max"] == 256 * MIB
    for key, (_, words) in may_not.items():
        reply = daemon.ask("start", key)
        assert reply == {"response": "fail", "error": f"process 0: {words}"}
        assert daemon.wait_state(key, "FATAL")["alive"] == 0
    assert SECRET not in json.dumps(daemon.audit())
