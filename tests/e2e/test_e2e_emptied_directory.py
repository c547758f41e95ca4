"""A job directory that is not mounted stops nobody: at SIGHUP, a restart, a start, an upgrade."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from running import alive, process_start, wait_for

JOBS = ("a", "b", "c")


@pytest.fixture
def running(make_daemon):
    """A daemon with three jobs that run."""
    daemon = make_daemon()
    for name in JOBS:
        daemon.job(name, ["sleep", "1000"])
    daemon.start()
    for name in JOBS:
        daemon.wait_state(name, "RUNNING")
    return daemon


def pids_of(daemon):
    return {name: daemon.pids(name) for name in JOBS}


def unmount(daemon, how):
    """Have the job directory look as without its mount: an empty folder, no folder, or another one."""
    daemon.jobs.rename(daemon.folder / "unmounted")
    if how != "vanished":
        daemon.jobs.mkdir(mode=0o700)
    if how == "another":
        daemon.job("stranger", ["sleep", "1000"])


def mount(daemon):
    """Have it back."""
    if daemon.jobs.exists():
        shutil.rmtree(daemon.jobs)
    (daemon.folder / "unmounted").rename(daemon.jobs)


def names_of(daemon):
    return [one["name"] for one in json.loads(daemon.ask("list")["data"])["jobs"]]


@pytest.mark.parametrize("how", ["empty", "vanished", "another"])
def test_restart_refuses(running, how):
    """Nothing is stopped, nothing is new, the reply says which jobs would be, and the log has it."""
    before = pids_of(running)
    unmount(running, how)
    reply = running.ask("restart")
    assert reply["response"] == "fail"
    assert str(running.jobs) in reply["error"]
    if how != "vanished":
        assert "all 3 jobs (a, b, c)" in reply["error"]
        assert "--force" in reply["error"]
    (record,) = running.events("config.rejected")
    assert (record["file"], record["error"]) == (str(running.jobs), reply["error"])
    assert names_of(running) == list(JOBS)
    mount(running)
    assert running.ask("restart")["response"] == "success"
    assert pids_of(running) == before


def test_sighup_refuses(running):
    """There is nobody to answer, so the daemon's messages and the log say it."""
    before = pids_of(running)
    unmount(running, "empty")
    os.kill(running.pid, signal.SIGHUP)
    wait_for(lambda: running.events("config.rejected"))
    wait_for(lambda: "SIGHUP" in running.messages.read_text())
    assert "all 3 jobs" in running.messages.read_text()
    assert running.events("config.reloaded") == []
    assert pids_of(running) == before
    mount(running)
    os.kill(running.pid, signal.SIGHUP)
    (record,) = wait_for(lambda: running.events("config.reloaded"))
    assert (record["added"], record["changed"], record["removed"]) == ([], [], [])


@pytest.mark.parametrize("how", ["empty", "vanished", "another"])
def test_force(running, how):
    """With ``force`` it is done, and on record who has forced it."""
    before = pids_of(running)
    unmount(running, how)
    reply = running.ask("restart", force=True)
    assert reply["response"] == "success", reply
    assert names_of(running) == (["stranger"] if how == "another" else [])
    assert not any(alive(pid) for pids in before.values() for pid in pids)
    assert [one.get("force") for one in running.events("command.requested", command="restart")] == [
        True
    ]


def test_some_files_or_the_last_one(running):
    """That some files are gone is normal; a ``delete`` of the only job there is, too."""
    for name in ("b", "c"):
        (running.jobs / f"{name}.tm.json").unlink()
    assert running.ask("restart")["response"] == "success"
    assert names_of(running) == ["a"]
    (running.jobs / "a.tm.json").unlink()
    reply = running.ask("restart")
    assert reply["response"] == "fail"
    assert "the only job (a)" in reply["error"]
    assert running.ask("delete", "a", wait=30)["response"] == "success"
    assert names_of(running) == []
    assert running.ask("restart")["response"] == "success"


def test_a_job_that_never_was_is_nothing_to_lose(make_daemon):
    """A file that was never usable is no job: that it is gone is not refused."""
    daemon = make_daemon()
    (daemon.jobs / "broken.tm.json").write_text("{")
    daemon.start()
    (daemon.jobs / "broken.tm.json").unlink()
    assert daemon.ask("restart")["response"] == "success"
    assert names_of(daemon) == []


@pytest.mark.parametrize("also", ["", "watchdogs"])
@pytest.mark.parametrize("how", ["empty", "vanished", "another"])
def test_a_start_keeps_what_runs(running, how, also):
    """A daemon that is started without the mount has its jobs run on, by the definitions of their watchdogs."""
    before = pids_of(running)
    starts = {pid: process_start(pid) for pids in before.values() for pid in pids}
    watchdogs = [running.status(name)["watchdog"]["pid"] for name in JOBS]
    running.kill()
    if also:
        for pid in watchdogs:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in watchdogs))
    unmount(running, how)
    running.start()
    for name in JOBS:
        status = running.wait_state(name, "RUNNING")
        assert "no such file, nor one of any other job that was there" in status["reason"]
        assert status["definition"]["stale"]
    assert pids_of(running) == before
    rejected = [one["job"] for one in running.events("jobfile.rejected")]
    assert sorted(rejected) == list(JOBS)
    assert running.ask("restart")["response"] == "fail"
    assert pids_of(running) == before
    mount(running)
    assert running.ask("restart")["response"] == "success"
    assert names_of(running) == list(JOBS)
    for name in JOBS:
        status = running.status(name)
        assert (status["reason"], status["definition"]["stale"]) == ("", False)
    assert {pid: process_start(pid) for pid in starts} == starts


def test_forced_after_such_a_start(running):
    """Somebody who did mean it removes the jobs by force."""
    before = pids_of(running)
    running.kill()
    unmount(running, "empty")
    running.start()
    for name in JOBS:
        running.wait_state(name, "RUNNING")
    assert running.ask("restart", force=True)["response"] == "success"
    assert names_of(running) == []
    assert not any(alive(pid) for pids in before.values() for pid in pids)


def test_an_upgrade_keeps_what_runs(running):
    """The trial of the new program reads the directory too, and believes an empty one as little."""
    before = pids_of(running)
    unmount(running, "empty")
    reply = running.ask("upgrade", wait=60)
    assert reply["response"] == "fail"
    assert "configDirectory" in reply["error"]
    assert pids_of(running) == before
    mount(running)
    assert running.ask("upgrade", wait=60)["response"] == "success"
    assert pids_of(running) == before


@pytest.mark.parametrize("then", ["restart", "sighup", "upgrade", "start"])
@pytest.mark.parametrize("noticed", [False, True])
def test_one_new_file_makes_it_no_truer(running, noticed, then):
    """Somebody pushes a job into the empty folder: all others run on as before, whatever comes then."""
    before = pids_of(running)
    unmount(running, "empty")
    if noticed:
        assert running.ask("restart")["response"] == "fail"
    data = json.dumps({"cmd": ["sleep", "1000"]}).encode()
    assert running.ask("push", "new", data=data)["response"] == "success"
    running.wait_state("new", "RUNNING")
    if then == "restart":
        reply = running.ask("restart")
        assert reply["response"] == "fail"
        assert "a.tm.json: found no such file" in reply["error"]
    elif then == "sighup":
        os.kill(running.pid, signal.SIGHUP)
        wait_for(lambda: running.events("config.reloaded"))
    elif then == "upgrade":
        assert running.ask("upgrade", wait=60)["response"] == "success"
    else:
        running.kill()
        running.start()
    for name in (*JOBS, "new"):
        running.wait_state(name, "RUNNING")
    assert pids_of(running) == before
    assert "is it mounted?" in running.status("a")["reason"]
    mount(running)
    running.ask("restart")
    assert pids_of(running) == before
    assert [running.status(name)["reason"] for name in JOBS] == [""] * 3
    # The mount is back, and what it does not have any more is gone as ever.
    (running.jobs / "a.tm.json").unlink()
    assert running.ask("restart")["response"] == "success"
    assert names_of(running) == ["b", "c"]


@pytest.mark.parametrize("how", ["force", "delete"])
def test_those_without_a_file_can_be_taken_away(running, how):
    """By force all at once, or one by one; and what was taken away does not come back with the next daemon."""
    unmount(running, "empty")
    data = json.dumps({"cmd": ["sleep", "1000"]}).encode()
    assert running.ask("push", "new", data=data)["response"] == "success"
    if how == "force":
        assert running.ask("restart", force=True)["response"] == "success"
    else:
        for name in JOBS:
            assert running.ask("delete", name, wait=30)["response"] == "success"
    assert names_of(running) == ["new"]
    running.kill()
    running.start()
    assert names_of(running) == ["new"]


def test_what_was_stopped_stays_so_when_the_mount_comes(running):
    """The host has been rebooted, and the daemon starts before the mount is there: notes come with the mount."""
    assert running.ask("stop", "b", wait=30)["response"] == "success"
    assert running.stop() == 0
    unmount(running, "empty")
    running.start()
    assert names_of(running) == []
    mount(running)
    os.kill(running.pid, signal.SIGHUP)
    for name in ("a", "c"):
        running.wait_state(name, "RUNNING")
    assert running.wait_state("b", "STOPPED")["desired"] == "DOWN"
    assert running.events("process.started", job="b")[1:] == []
    assert running.ask("start", "b", wait=30)["response"] == "success"


def test_a_folder_that_was_moved_is_not_made_again(running):
    """A stop while it is away works, and leaves nothing in its place that it could not come back to."""
    unmount(running, "vanished")
    assert running.ask("stop", "a", wait=30)["response"] == "success"
    assert not running.jobs.exists()
    assert "the next taskmasterd would start it" in running.messages.read_text()


@pytest.mark.parametrize("by", ["restart", "push"])
@pytest.mark.parametrize("when", ["in force", "at the start"])
def test_a_file_that_comes_back_while_its_job_is_removed(make_daemon, when, by):
    """It is stopped to its end, as was begun, and becomes a new job then; whoever brought the file is told so."""
    daemon = make_daemon()
    ignores = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]
    daemon.job("late", ignores, stopTime=2)
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    for name in ("late", "other"):
        daemon.wait_state(name, "RUNNING")
    (before,) = daemon.pids("late")
    file = daemon.jobs / "late.tm.json"
    data = file.read_bytes()
    with daemon.client() as client:
        if when == "in force":
            file.unlink()
            client.send(b'{"command":"restart"};;')
        else:
            daemon.kill()
            file.unlink()
            daemon.start()
        wait_for(lambda: daemon.status("late")["state"] == "STOPPING")
        if by == "push":
            assert daemon.ask("push", "late", data=data)["response"] == "success"
        else:
            file.write_bytes(data)
            assert daemon.ask("restart")["response"] == "success"
        daemon.wait_state("late", "RUNNING")
    (after,) = daemon.pids("late")
    assert after != before
    assert not alive(before)
    assert file.exists()


def test_an_empty_job_is_none(running):
    """The published D client sends an empty name where it means none; where a job is needed it is no name."""
    with running.client() as client:
        for word in ("command", "cmd"):
            client.send(b'{"%s":"restart","job":""};;' % word.encode())
            assert client.reply()["response"] == "success"
        client.send(b'{"command":"stop","job":""};;')
        assert client.reply()["error"] == "Invalid job name."
