"""Somebody removes the state directory, or something of it, under running jobs: supervision goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys

import pytest
from running import alive, wait_for
from strangers import NOBODY

JOB = ["/bin/sh", "-c", 'echo $$ >> "$0"; while :; do echo line; sleep 0.05; done']


def starts(daemon):
    """The pids of all that was ever started of the job, by its own account."""
    ledger = daemon.folder / "ledger"
    return [int(line) for line in ledger.read_text().split()] if ledger.exists() else []


@pytest.fixture
def web(make_daemon):
    """A daemon with a job that says a line now and then, and one that nobody touches."""
    daemon = make_daemon(watchdogTimeout=5, commandDeadline=2)
    daemon.job("web", [*JOB, str(daemon.folder / "ledger")])
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    for name in ("web", "other"):
        daemon.wait_state(name, "RUNNING")
    wait_for(lambda: (daemon.state / "jobs/web/state.json").exists())
    return daemon


def folder(daemon):
    return daemon.state / "jobs/web"


def removed(path):
    """As a cleaner does it: what is made again meanwhile stays."""
    shutil.rmtree(path, ignore_errors=True)


def removed_at_once(path):
    """So that nothing can be made again in it before it is gone."""
    gone = path.with_name(f"{path.name}.gone")
    path.rename(gone)
    wait_for(lambda: shutil.rmtree(gone, ignore_errors=True) or not gone.exists())


def emptied(path):
    """An empty folder in its place, of a mode that others may use."""
    path.rename(path.with_name(f"{path.name}.gone"))
    path.mkdir(mode=0o755)
    path.chmod(0o755)


REMOVALS = {
    "all of it": lambda daemon: removed(daemon.state),
    "the folder of jobs": lambda daemon: removed(daemon.state / "jobs"),
    "the job's folder": lambda daemon: removed(folder(daemon)),
    "the record": lambda daemon: (folder(daemon) / "state.json").unlink(),
    "the watchdog's lock": lambda daemon: (folder(daemon) / "lock").unlink(),
    "the rendezvous": lambda daemon: (folder(daemon) / "link.sock").unlink(),
    "a pipe": lambda daemon: (folder(daemon) / "0.stdout").unlink(),
    "both pipes": lambda daemon: [
        (folder(daemon) / f"0.{end}").unlink() for end in ("stdout", "stderr")
    ],
    "the socket": lambda daemon: daemon.socket.unlink(),
    "the lock": lambda daemon: (daemon.state / "lock").unlink(),
    "an empty one in its place": lambda daemon: emptied(daemon.state),
    "an empty job folder in its place": lambda daemon: emptied(folder(daemon)),
}


def is_whole(daemon):
    """Whether everything is there again, and reachable."""
    there = all(
        path.exists()
        for path in (
            *(daemon.socket, daemon.state / "lock"),
            *(folder(daemon) / name for name in ("lock", "link.sock", "state.json", "0.stdout")),
        )
    )
    return there and daemon.state.stat().st_mode & 0o077 == 0 and daemon.serves()


def attached(daemon):
    """Wait until both jobs have their watchdogs."""
    for name in ("web", "other"):
        wait_for(lambda name=name: daemon.status(name)["watchdog"]["state"] == "ATTACHED", name)


def goes_on(daemon, before):
    """A crash is restarted, output arrives, a new watchdog adopts, and nothing ever ran twice."""
    log = daemon.logs / "jobs/web/0_stdout.log"
    (pid,) = daemon.pids("web")
    assert pid == before
    watchdog = daemon.status("web")["watchdog"]["pid"]
    os.kill(watchdog, signal.SIGKILL)
    wait_for(
        lambda: (
            (one := daemon.status("web")["watchdog"])["state"] == "ATTACHED"
            and one["pid"] != watchdog
        )
    )
    assert daemon.pids("web") == [before]
    size = log.stat().st_size
    wait_for(lambda: log.stat().st_size > size, "output arrives after the adoption")
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: daemon.pids("web") not in ([], [before]))
    size = log.stat().st_size
    wait_for(lambda: log.stat().st_size > size, "output arrives after the restart")
    wait_for(lambda: len(starts(daemon)) == 2)
    assert [one for one in starts(daemon) if alive(one)] == daemon.pids("web")


@pytest.mark.parametrize("what", REMOVALS)
def test_what_was_removed_is_made_again(web, what):
    """By whichever of daemon and watchdog has it; the next daemon starts nothing twice."""
    (before,) = web.pids("web")
    (other,) = web.pids("other")
    REMOVALS[what](web)
    wait_for(lambda: is_whole(web), what)
    goes_on(web, before)
    assert web.pids("other") == [other]
    (now,) = web.pids("web")
    web.kill()
    web.start()
    attached(web)
    assert web.pids("web") == [now]
    assert web.pids("other") == [other]
    assert [one for one in starts(web) if alive(one)] == [now]


@pytest.mark.parametrize(
    "what", ["all of it", "the folder of jobs", "the job's folder", "the record"]
)
@pytest.mark.parametrize("crash", [False, True], ids=["at rest", "a crash meanwhile"])
def test_removed_while_no_daemon_runs(web, what, crash):
    """The next daemon finds the watchdogs that live, wherever their folders went, and starts nothing twice."""
    (before,) = web.pids("web")
    (other,) = web.pids("other")
    watchdog = web.status("web")["watchdog"]["pid"]
    web.kill()
    REMOVALS[what](web)
    if crash:
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: len(starts(web)) == 2)
    web.start()
    attached(web)
    assert web.status("web")["watchdog"]["pid"] == watchdog
    assert web.pids("web") == starts(web)[-1:]
    assert len(starts(web)) == 1 + crash
    assert web.pids("other") == [other]
    wait_for(lambda: is_whole(web))


def test_all_die_and_the_state_is_removed(web):
    """Neither daemon nor watchdogs nor a record: what runs is known by the pipe that it writes into."""
    (before,) = web.pids("web")
    watchdogs = [web.status(name)["watchdog"]["pid"] for name in ("web", "other")]
    os.kill(web.pid, signal.SIGSTOP)
    for pid in watchdogs:
        os.kill(pid, signal.SIGKILL)
    web.kill()
    removed(web.state)
    web.start()
    attached(web)
    web.wait_state("web", "RUNNING")
    assert web.pids("web") == [before]
    assert starts(web) == [before]


#: A daemon of the old school: of a session without its leader, and nobody's child.
LEAVES_ONE = """
import os, sys, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    with open(sys.argv[1], "a") as ledger:
        print(os.getpid(), file=ledger)
while True:
    time.sleep(1000)
"""


@pytest.mark.parametrize("what", ["all of it", "the job's folder", "the record"])
def test_what_was_left_behind_goes_before_the_next_start(make_daemon, what):
    """Everything dies but what the process had started, and the record is gone: its pipe says whose it is."""
    daemon = make_daemon()
    ledger = daemon.folder / "ledger"
    daemon.job("web", [sys.executable, "-c", LEAVES_ONE, str(ledger)])
    daemon.start()
    status = daemon.wait_state("web", "RUNNING")
    wait_for(lambda: len(starts(daemon)) == 1)
    (left,) = starts(daemon)
    main, watchdog = status["processes"][0]["pid"], status["watchdog"]["pid"]
    daemon.kill()
    for pid in (watchdog, main):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: not alive(pid))
    REMOVALS[what](daemon)
    assert alive(left)
    daemon.start()
    wait_for(lambda: len(starts(daemon)) == 2, "the next one is started")
    assert not alive(left)
    daemon.wait_state("web", "RUNNING")
    assert daemon.stop() == 0
    assert not any(alive(pid) for pid in starts(daemon))


@pytest.mark.parametrize("what", ["all of it", "the lock", "an empty one in its place"])
def test_a_second_daemon_is_refused(web, what):
    """However soon it comes, it ends with 75, and the first one has everything."""
    (before,) = web.pids("web")
    REMOVALS[what](web)
    program = [sys.executable, "-m", "taskmaster.control", "-c", str(web.config)]
    second = web.host.start(program, web.folder / "second")
    assert os.waitstatus_to_exitcode(web.host.wait(second)) == 75
    assert len((web.folder / "second").read_text().splitlines()) == 1
    wait_for(lambda: is_whole(web))
    assert web.pids("web") == [before]
    assert starts(web) == [before]


@pytest.mark.parametrize("attack", ["a link", "a file", "another user's folder"])
def test_something_else_in_the_place(web, attack, open_folder):
    """A link, a file or a stranger's folder is never used: that is said, and mended as soon as it is gone."""
    if attack == "another user's folder" and os.geteuid():
        pytest.skip("only root can give a folder away")
    (before,) = web.pids("web")
    kept = web.state.with_name("state.kept")
    place = {
        "a link": lambda: web.state.symlink_to(open_folder),
        "a file": lambda: web.state.write_text("x"),
        "another user's folder": lambda: (web.state.mkdir(), os.chown(web.state, NOBODY, -1)),
    }
    client = web.client()
    web.state.rename(kept)
    place[attack]()
    wait_for(lambda: web.events("state.lost"))
    assert os.listdir(open_folder) == []
    assert client.status("web")["processes"][0]["pid"] == before
    web.state.rmdir() if attack == "another user's folder" else web.state.unlink()
    removed(kept)
    wait_for(lambda: web.socket.exists() and is_whole(web))
    goes_on(web, before)


def test_it_is_in_the_log(web):
    """Who looks for the reason of a gap finds it: what was removed, of the daemon and of the job."""
    removed_at_once(web.state)
    wait_for(lambda: is_whole(web))
    wait_for(lambda: web.events("state.restored", job="web"))
    (own,) = web.events("state.restored", job=None)
    assert own["what"] == "folder, lock, control.sock"
    assert "folder, lock, link.sock, state.json" in [
        one["what"] for one in web.events("state.restored", job="web")
    ]
    assert web.events("state.lost") == []
