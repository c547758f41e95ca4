"""Programs that look dead and live, or look like another job's: stop leaves nothing of its own job."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_programs import python
from running import wait_for

NOBODY = pwd.getpwnam("nobody")
#: One that every user may execute, where there is one.
INTERPRETER = next((one for one in ("/usr/bin/python3",) if os.path.exists(one)), sys.executable)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

#: Argument 1: "self", or "child" in a session of its own. Its first thread ends, another runs on.
LEADER_GONE = r"""
#include <pthread.h>
#include <string.h>
#include <unistd.h>
static void *work(void *unused) { for (;;) sleep(1000); }
int main(int count, char **words) {
    pthread_t thread;
    if (strcmp(words[1], "child") == 0) {
        if (fork() > 0) for (;;) sleep(1000);
        setsid();
    }
    pthread_create(&thread, 0, work, 0);
    pthread_exit(0);
}
"""
#: Each process forks the next and ends, which takes a session of its own; SIGTERM is ignored. Only a SIGKILL that
#: is quicker ends that. Argument 1, "bare": without an environment, too.
CHAIN = r"""
#include <signal.h>
#include <unistd.h>
int main(int count, char **words) {
    char *none[] = {0};
    if (words[1][0] != 'l') {
        if (fork() > 0) for (;;) sleep(1000);
        signal(SIGTERM, SIG_IGN);
        signal(SIGCHLD, SIG_IGN);
        if (words[1][0] == 'b') { words[1] = "link"; execve(words[0], words, none); }
    }
    for (;;) { if (fork() != 0) _exit(0); setsid(); usleep(50); }
}
"""
#: Nobody but root may look into it: under hidepid it is not to be seen at all.
UNDUMPABLE = (
    "import ctypes, signal, sys\n"
    "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
    "open(sys.argv[2], 'a').write('started\\n')\n"
    "while True: signal.pause()\n"
)
#: A grandchild in a session of its own, without an environment but what argument 2 says.
STRAY = (
    "import os, signal, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        name, _, value = sys.argv[2].partition('=')\n"
    "        mark = sys.argv[1]\n"
    "        if value.isdigit():\n"
    "            block = open(f'/proc/{value}/environ').read().split('\\0')\n"
    "            value = next(one[len(name) + 1:] for one in block if one.startswith(name + '='))\n"
    "        os.execve('/bin/sleep', ['sleep', '1000', ], {name: value, 'STRAY': mark})\n"
    "    os._exit(0)\n"
    "os.wait()\n"
    "while True: signal.pause()\n"
)


@pytest.fixture
def compiled(open_folder):
    """A C program's path."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")

    def compile_(text: str) -> str:
        source, program = open_folder / "program.c", open_folder / f"program-{os.getpid()}"
        source.write_text(text)
        made = subprocess.run(
            ["gcc", "-O1", "-w", "-pthread", "-o", program, source], capture_output=True, text=True
        )
        if made.returncode != 0:
            pytest.skip(f"no C program can be made here: {made.stderr[:200]}")
        return str(program)

    return compile_


def lives(pid: int) -> bool:
    """By its threads, not by the first of them alone."""
    try:
        states = [
            (task / "stat").read_bytes().rpartition(b")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(state not in b"ZX" for state in states)


def processes_of(program: str) -> list[int]:
    """All that execute the program, by its path; one whose first thread has ended shows it in another."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/task/[0-9]*/exe"):
        try:
            if os.readlink(link) == program:
                found.add(int(link.parts[2]))
        except OSError:
            continue  # gone meanwhile, or a first thread that has ended
    return sorted(found)


def is_watched(daemon, job: str, before: int) -> bool:
    """Whether the job has another watchdog than before."""
    found = daemon.status(job)["watchdog"]
    return found["state"] == "ATTACHED" and found["pid"] != before


def kill_watchdogs(daemon, *jobs: str) -> None:
    """All at once, and wait for what comes after them."""
    before = {job: daemon.status(job)["watchdog"]["pid"] for job in jobs}
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    for job in jobs:
        wait_for(
            lambda job=job: (
                (found := daemon.status(job)["watchdog"])["state"] == "ATTACHED"
                and found["pid"] != before[job]
            ),
            f"{job} has a watchdog again",
        )


def upgraded(daemon, *jobs: str) -> None:
    """Every watchdog leaves in good order, and another adopts."""
    before = {job: daemon.status(job)["watchdog"]["pid"] for job in jobs}
    assert daemon.ask("upgrade")["response"] == "success"
    for job in jobs:
        wait_for(
            lambda job=job: (
                (found := daemon.status(job)["watchdog"])["state"] == "ATTACHED"
                and found["pid"] != before[job]
            ),
            f"{job} has a watchdog of the new program",
        )


@pytest.mark.parametrize("command", ["stop", "kill", "restart"])
@pytest.mark.parametrize("who", ["self", "child"])
def test_the_first_thread_has_ended(make_daemon, compiled, who, command):
    """Adopted and not started again; stop, kill and restart end it, and nothing of it stays beside the next."""
    program = compiled(LEADER_GONE)
    daemon = make_daemon()
    daemon.job("threads", [program, who], stopTime=1)
    daemon.start()
    daemon.wait_state("threads", "RUNNING")
    expected = 1 if who == "self" else 2
    wait_for(
        lambda: (
            len(processes_of(program)) == expected and any(map(gone_first, processes_of(program)))
        )
    )
    before = sorted(processes_of(program))
    kill_watchdogs(daemon, "threads")
    assert daemon.status("threads")["state"] == "RUNNING"
    assert sorted(processes_of(program)) == before
    assert daemon.ask(command, "threads", wait=30)["response"] == "success"
    assert not any(lives(pid) for pid in before)
    assert daemon.status("threads")["state"] == ("RUNNING" if command == "restart" else "STOPPED")


def gone_first(pid: int) -> bool:
    """Whether the first thread of the process has ended."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("environment", ["marked", "bare"])
@pytest.mark.parametrize("command", ["stop", "kill"])
def test_a_chain_of_forks(make_daemon, compiled, command, environment, adopted):
    """Each link has a session of its own: the job is STOPPED when the chain is no more.

    So it is for an adopted one and for one that has erased its environment.
    """
    program = compiled(CHAIN)
    daemon = make_daemon()
    daemon.job("chain", [program, environment], stopTime=0.5)
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("chain", "RUNNING")
    daemon.wait_state("other", "RUNNING")
    others = daemon.pids("other")
    if adopted:
        kill_watchdogs(daemon, "chain")
    try:
        assert daemon.ask(command, "chain", wait=50)["response"] == "success"
        assert daemon.status("chain")["state"] == "STOPPED"
        assert processes_of(program) == []
        assert daemon.pids("other") == others
    finally:
        os.rename(program, f"{program}.old")  # a link that is left cannot hide behind the next
        while left := processes_of(f"{program}.old"):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def test_an_adopted_process_is_restarted_at_once(make_daemon):
    """Its own end is no sign of something left behind: nothing is stopped in between."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"], restart="always")
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    kill_watchdogs(daemon, "web")
    (before,) = daemon.pids("web")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: daemon.pids("web") not in ([], [before]))
    daemon.ask("stop", "web", wait=30)
    stopping = [one["pid"] for one in daemon.audit() if one["event"] == "process.stopping"]
    assert len(stopping) == 1
    assert stopping[0] not in (None, before)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this host")
def test_children_of_the_caller(make_daemon):
    """A script that starts something and then executes taskmasterd keeps it, and what it leaves behind."""
    mark = f"caller-{os.getpid()}"
    helper = f"exec -a {mark} sleep 1000"
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start(
        caller=[str(shutil.which("bash")), "-c", f'({helper} & {helper}) & exec "$@"', "-"]
    )
    daemon.wait_state("web", "RUNNING")

    def helpers() -> dict[int, int]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "cmdline").read_bytes().startswith(mark.encode()):
                    stat = (folder / "stat").read_text()
                    found[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    wait_for(lambda: len(helpers()) == 2)
    before = helpers()
    (first,) = (pid for pid, parent in before.items() if parent == daemon.pid)
    (second,) = before.keys() - {first}
    try:
        kill_watchdogs(daemon, "web")
        assert daemon.ask("stop", "web", wait=30)["response"] == "success"
        assert helpers().keys() == before.keys()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: helpers() == {second: daemon.pid})
        for command in ("start", "stop", "kill"):
            daemon.ask(command, "web", wait=30)
        assert helpers() == {second: daemon.pid}
    finally:
        for pid in helpers():
            os.kill(pid, signal.SIGKILL)


@root_only
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this host")
@pytest.mark.parametrize("mode", [1, 2])
def test_hidden_by_proc(make_daemon, open_folder, mode):
    """A user's daemon cannot see its own processes in /proc: they are adopted, not started twice, and stopped."""
    shell = f'mount -t proc -o hidepid={mode} proc /proc && exec "$0" "$@"'
    prefix = ["unshare", "--mount", "/bin/sh", "-c", shell, "setpriv", f"--reuid={NOBODY.pw_uid}"]
    prefix += [f"--regid={NOBODY.pw_gid}", "--clear-groups"]
    # Twice: setpriv itself executes with rights that its program has not.
    tries = ["/bin/sh", "-c", 'exec "$0" -c "import taskmaster.control.daemon"', sys.executable]
    if subprocess.run([*prefix, *tries], capture_output=True).returncode:
        # The interpreter is where only root looks; of root's rights this one is the least that helps.
        prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        if subprocess.run([*prefix, *tries], capture_output=True).returncode:
            pytest.skip("nobody cannot run these tests, or nothing can be mounted")
    daemon = make_daemon(prefix=prefix)
    started = open_folder / "started"
    open_folder.chmod(0o777)
    script = open_folder / "undumpable.py"
    argv = python(script, UNDUMPABLE, "mark", str(started))
    daemon.job("hidden", argv, stopTime=2)
    for path in [daemon.folder, *daemon.folder.rglob("*")]:
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    daemon.start()
    daemon.wait_state("hidden", "RUNNING")
    wait_for(started.exists)
    before = daemon.pids("hidden")
    kill_watchdogs(daemon, "hidden")
    daemon.wait_state("hidden", "RUNNING")
    assert daemon.pids("hidden") == before
    assert daemon.ask("stop", "hidden", wait=30)["response"] == "success"
    assert not lives(before[0])
    assert started.read_text() == "started\n"
    assert not list(daemon.logs.rglob("watchdog.crash"))


@root_only
@pytest.mark.parametrize("how", ["both watchdogs killed", "upgrade"])
@pytest.mark.parametrize("claims", ["TASKMASTER_JOB=db", "X=x"])
def test_what_an_orphan_says_of_itself(make_daemon, open_folder, how, claims):
    """An unmarked orphan of nobody's job counts for that job, whatever it says; the other one's is untouched."""
    daemon = make_daemon()
    mark = f"stray-{os.getpid()}"
    argv = python(open_folder / "stray.py", STRAY, mark, claims)
    argv[0] = INTERPRETER
    daemon.job("nasty", argv, runas="nobody", stopTime=1)
    daemon.job("db", ["sleep", "1000"], memoryMax="64M")
    daemon.start()
    daemon.wait_state("nasty", "RUNNING")
    daemon.wait_state("db", "RUNNING")
    (stray,) = wait_for(lambda: strays(mark))
    before = daemon.pids("db")
    if how == "upgrade":
        upgraded(daemon, "db", "nasty")
    else:
        kill_watchdogs(daemon, "db", "nasty")
    assert daemon.ask("stop", "db", wait=30)["response"] == "success"
    assert lives(stray)
    assert daemon.ask("start", "db", wait=30)["response"] == "success"
    again = daemon.pids("db")
    assert again != before
    assert daemon.ask("stop", "nasty", wait=30)["response"] == "success"
    assert not lives(stray)
    assert daemon.pids("db") == again


def strays(mark: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if f"STRAY={mark}".encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue  # gone meanwhile
    return found


@pytest.mark.parametrize("how", ["upgrade", "both watchdogs killed at once"])
def test_the_mark_of_another_job(make_daemon, open_folder, how):
    """A process that bears a copy of another job's mark is stopped with its own job, and not with that."""
    daemon = make_daemon()
    daemon.job("db", ["sleep", "1000"], stopTime=1)
    daemon.start()
    daemon.wait_state("db", "RUNNING")
    (db,) = daemon.pids("db")
    mark = f"stray-{os.getpid()}"
    argv = python(open_folder / "stray.py", STRAY, mark, f"TASKMASTER_INSTANCE={db}")
    daemon.job("thief", argv, stopTime=1)
    assert daemon.ask("restart")["response"] == "success"
    daemon.wait_state("thief", "RUNNING")
    (stray,) = wait_for(lambda: strays(mark))
    if how == "upgrade":
        upgraded(daemon, "db", "thief")
    else:
        # The record names the orphan since this changed something.
        daemon.job("thief", argv, stopTime=2)
        assert daemon.ask("reload", "thief")["response"] == "success"
        record = daemon.state / "jobs/thief/state.json"
        wait_for(lambda: stray in dict(json.loads(record.read_text())["inherited"]))
        # The daemon is told of one death when both are dead.
        before = {job: daemon.status(job)["watchdog"]["pid"] for job in ("db", "thief")}
        os.kill(daemon.pid, signal.SIGSTOP)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(lives, before.values())))
        os.kill(daemon.pid, signal.SIGCONT)
        wait_for(lambda: all(is_watched(daemon, job, pid) for job, pid in before.items()))
    assert daemon.ask("stop", "db", wait=30)["response"] == "success"
    assert lives(stray)
    assert daemon.ask("stop", "thief", wait=30)["response"] == "success"
    assert not lives(stray)
