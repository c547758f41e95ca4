"""Reload, push and restart apply what is different, and only that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from running import alive, process_start, query, wait_for

BASE = {"cmd": ["sleep", "1000"], "startTime": 0, "stopTime": 5, "procNr": 2}
#: Changes that running processes are not restarted for.
LIVE = [
    {"restart": "always"}, {"restart": 0}, {"stopSig": "INT"}, {"stopTime": 1}, {"startTime": 3},
    {"restartTimes": -1}, {"stopTo": "all"},
    {"logMaxBytes": 1000}, {"logMaxBytes": 0}, {"logBackups": 1}, {"stdout": "other_%n.log"}, {"stdout": None},
    {"stderr": "stdout"}, {"stderr": None}, {"autoStart": False}, {"normalExitCode": [0, 1]},
    {"normalExitSig": [15]},
]  # fmt: skip
#: Changes of what the processes are.
IDENTITY = [
    {"cmd": ["sleep", "1001"]}, {"cmd": "sleep 1000", "shell": True}, {"env": {"A": "b"}}, {"dir": "/tmp"},
    {"umask": "077"}, {"inheritEnv": True},
]  # fmt: skip
if os.geteuid() == 0:
    IDENTITY.append({"runas": "nobody"})


def text(change=None):
    return json.dumps({**BASE, **(change or {})})


@pytest.fixture
def running(make_daemon):
    """A daemon with the jobs ``a`` (two processes) and ``other``."""
    daemon = make_daemon()
    (daemon.jobs / "a.tm.json").write_text(text())
    daemon.job("other", ["sleep", "1000"])
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    daemon.wait_state("other", "RUNNING")
    return daemon


def apply(daemon, how, content):
    """Bring a new content of a's file in force in one of four ways."""
    if how == "push":
        assert daemon.ask("push", "a", data=content)["response"] == "success"
        return
    (daemon.jobs / "a.tm.json").write_text(content)
    if how == "SIGHUP":
        before = len(daemon.events("config.reloaded"))
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for(lambda: len(daemon.events("config.reloaded")) > before)
        return
    reply = daemon.ask(how, "a" if how == "reload" else None)
    assert reply["response"] == "success", reply


@pytest.mark.parametrize("how", ["reload", "push", "restart", "SIGHUP"])
def test_only_what_changed(running, how):
    """Live keys keep every pid, a change of what the processes are gives new ones, the same bytes do nothing."""
    pids, other = running.pids("a"), running.pids("other")
    for change in LIVE:
        for content in (text(change), text(change), text(change) + " // a comment"):
            apply(running, how, content)
            status = running.status("a")
            assert [one["pid"] for one in status["processes"]] == pids, change
            assert status["state"] == "RUNNING"
            assert not status["definition"]["stale"]
    apply(running, how, text())
    for change in IDENTITY:
        apply(running, how, text(change))
        wait_for(lambda old=pids: not set(running.pids("a")) & set(old), f"{change}: new processes")
        running.wait_state("a", "RUNNING")
        after = running.pids("a")
        assert len(after) == 2
        assert not any(alive(pid) for pid in pids)
        pids = after
    assert running.pids("other") == other
    changed = running.events("job.changed", job="a")
    assert [one["restarted"] for one in changed][-len(IDENTITY) :] == [True] * len(IDENTITY)
    assert not any(one["restarted"] for one in changed[: len(LIVE)])


@pytest.mark.parametrize("dies", [False, True])
def test_more_processes_again_while_the_surplus_is_stopped(make_daemon, dies):
    """Those that are still on their way out come back afterwards; also where the watchdog dies meanwhile."""
    daemon = make_daemon()
    keys = {"cmd": ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], "stopTime": 2}
    (daemon.jobs / "a.tm.json").write_text(json.dumps({**keys, "procNr": 3}))
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    before = daemon.pids("a")
    for wanted in (1, 3):
        data = json.dumps({**keys, "procNr": wanted})
        assert daemon.ask("push", "a", data=data)["response"] == "success"
    status = daemon.status("a")
    assert [one["state"] for one in status["processes"]] == ["RUNNING", "STOPPING", "STOPPING"]
    if dies:
        os.kill(status["watchdog"]["pid"], signal.SIGKILL)
    wait_for(lambda: len(set(daemon.pids("a")) - set(before)) == 2, "two new processes")
    daemon.wait_state("a", "RUNNING")
    assert daemon.pids("a")[0] == before[0]
    assert not any(alive(pid) for pid in before[1:])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount something")
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_delete_where_the_directory_is_read_only(make_daemon, when):
    """It is refused before the job is stopped; where that is found too late, the job comes up again."""
    daemon = make_daemon()
    cmd = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"]
    daemon.job("a", cmd, stopTime=2)
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    before = daemon.pids("a")
    folder = str(daemon.jobs)

    def mount(*how):
        subprocess.run(["mount", *how], check=True, timeout=30)

    mount("--bind", folder, folder)
    try:
        if when == "before":
            mount("-o", "remount,bind,ro", folder)
        with daemon.client() as client:
            client.send(query("delete", "a"))
            if when == "meanwhile":
                wait_for(lambda: daemon.status("a")["state"] == "STOPPING")
                mount("-o", "remount,bind,ro", folder)
            reply = client.reply()
        assert reply["response"] == "fail"
        assert "Read-only file system" in reply["error"]
        daemon.wait_state("a", "RUNNING")
        if when == "before":
            assert reply["error"].endswith("nothing was stopped or removed")
            assert daemon.pids("a") == before
        else:
            assert reply["error"].endswith("the job was stopped for that, and is started again")
            assert not any(alive(pid) for pid in before)
        assert (daemon.jobs / "a.tm.json").exists()
    finally:
        subprocess.run(["umount", folder], check=True, timeout=30)
    assert daemon.ask("delete", "a", wait=30)["response"] == "success"


@pytest.mark.parametrize("how", ["reload", "push", "restart"])
def test_more_and_fewer_processes(running, how):
    """procNr up starts the missing ones, down stops the surplus; those that stay keep their pids."""
    pids = running.pids("a")
    for wanted in (5, 1, 3, 2):
        apply(running, how, text({"procNr": wanted}))
        wait_for(lambda wanted=wanted: len(running.pids("a")) == wanted, f"procNr {wanted}")
        status = running.wait_state("a", "RUNNING")
        assert (status["alive"], status["of"]) == (wanted, wanted)
        assert [one["number"] for one in status["processes"]] == list(range(wanted))
        now = running.pids("a")
        assert now[: min(wanted, len(pids))] == pids[: min(wanted, len(pids))]
        pids = now


def test_what_takes_effect_later_does(running):
    """Stop signal, stopTime and restart policy that were changed on the run are those that are used."""
    script = "trap 'exit 3' INT; trap '' TERM; echo up; while :; do sleep 0.05; done"
    running.job("a", ["/bin/sh", "-c", script], stopTime=3600)
    assert running.ask("reload", "a", wait=60)["response"] == "success"
    (pid,) = running.pids("a")
    log = running.logs / "jobs/a/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes())
    running.job("a", ["/bin/sh", "-c", script], stopTime=3600, stopSig="INT", restart="never")
    assert running.ask("reload", "a")["response"] == "success"
    assert running.pids("a") == [pid]
    assert running.ask("stop", "a", wait=60)["response"] == "success"
    assert running.status("a")["processes"][0]["exitCode"] == 3
    assert running.ask("start", "a", wait=60)["response"] == "success"
    (pid,) = running.pids("a")
    os.kill(pid, signal.SIGKILL)
    assert running.wait_state("a", "EXITED")["processes"][0]["signal"] == 9


def test_the_whole_directory(running):
    """New files make jobs, removed ones end them, bad ones leave the job before in force, and all are reported."""
    pids, other = running.pids("a"), running.pids("other")
    starts = [process_start(pid) for pid in pids]
    running.job("new", ["sleep", "1000"])
    running.job("quiet", ["sleep", "1000"], autoStart=False)
    (running.jobs / "a.tm.json").write_text('{"cmd": ["sleep", "1"], "procNr": "many"}')
    (running.jobs / "broken.tm.json").write_text("{")
    (running.jobs / "other.tm.json").unlink()
    reply = running.ask("restart")
    assert reply["response"] == "fail"
    assert "a.tm.json: procNr" in reply["error"]
    assert "1 more" in reply["error"]
    names = [one["name"] for one in json.loads(running.ask("list")["data"])["jobs"]]
    assert names == ["a", "broken", "new", "quiet"]
    assert running.wait_state("new", "RUNNING")["alive"] == 1
    assert running.status("quiet")["state"] == "STOPPED"
    assert not any(alive(pid) for pid in other)
    status = running.status("a")
    assert [one["pid"] for one in status["processes"]] == pids
    assert [process_start(pid) for pid in pids] == starts
    assert status["definition"]["stale"]
    assert "procNr" in status["reason"]
    assert running.ask("status", "other")["error"] == 'Job "other" does not exist.'
    (running.jobs / "broken.tm.json").unlink()
    (running.jobs / "a.tm.json").write_text(text())
    assert running.ask("restart")["response"] == "success"
    status = running.status("a")
    assert (status["reason"], status["definition"]["stale"]) == ("", False)
    assert [one["pid"] for one in status["processes"]] == pids
    assert running.ask("restart")["response"] == "success"
    assert running.pids("a") == pids


def test_restart_while_a_job_is_being_deleted(running):
    """A restart of the whole directory that meets a job being deleted is no failure."""
    stubborn = ["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]
    running.job("slow", stubborn, stopTime=1)
    assert running.ask("reload", "slow", wait=60)["response"] == "success"
    log = running.logs / "jobs/slow/0_stdout.log"
    wait_for(lambda: log.exists() and b"up" in log.read_bytes())
    deleting, restarting = running.client(), running.client()
    deleting.send(b'{"command":"delete","job":"c2xvdw=="};;')
    wait_for(lambda: running.status("slow")["state"] == "STOPPING")
    assert restarting.ask("restart") == {"response": "success"}
    assert deleting.reply() == {"response": "success"}
    assert not (running.jobs / "slow.tm.json").exists()


def test_stale_is_told(running):
    """A file changed on disk and not yet read is shown as stale, with the old definition in force."""
    pids = running.pids("a")
    Path(running.jobs / "a.tm.json").write_text(text({"procNr": 3}))
    status = running.status("a")
    assert status["definition"]["stale"]
    assert (status["of"], [one["pid"] for one in status["processes"]]) == (2, pids)


@pytest.mark.parametrize("how", ["written", "touched", "replaced", "removed", "folder moved"])
def test_stale_is_told_at_once(running, how):
    """However a file is changed, the very next query is told so, also between many that are not."""
    folder, other = running.jobs, running.folder / "other"
    good = (folder / "a.tm.json").read_text()
    with running.client() as client:
        for number in range(8):
            for _ in range(5):
                assert not client.status("a")["definition"]["stale"]
            if how == "written":
                (folder / "a.tm.json").write_text(f"// {number}\n{good}")
            elif how == "touched":
                os.utime(folder / "a.tm.json", (number, number))
            elif how == "replaced":
                (folder / "new").write_text(f"// {number}\n{good}")
                (folder / "new").rename(folder / "a.tm.json")
            elif how == "removed":
                (folder / "a.tm.json").unlink()
            else:
                folder.rename(other)
            assert client.status("a")["definition"]["stale"], number
            if how == "folder moved":
                other.rename(folder)
            elif how == "removed":
                (folder / "a.tm.json").write_text(good)
            assert client.ask("reload", "a", wait=30)["response"] == "success"


def test_a_stopped_job_stays_stopped_over_reload(running):
    """Reload, push, restart of the directory and repair of a job that was stopped do not start it."""
    assert running.ask("stop", "a", wait=60)["response"] == "success"
    for change in ({"cmd": ["sleep", "7"]}, {"procNr": 3}, {"env": {"A": "b"}}, {"stopTime": 1}):
        for how in ("reload", "push", "restart"):
            apply(running, how, text(change))
    assert running.ask("repair", "a", wait=60)["response"] == "success"
    status = running.status("a")
    assert (status["state"], status["desired"], status["alive"]) == ("STOPPED", "DOWN", 0)
