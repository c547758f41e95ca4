"""What takes several steps goes on, whatever becomes of the program that began it; and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Client, Daemon, process_start, query, wait_for

#: How the program that began it ends, and the next one comes.
WAYS: dict[str, Callable[[Daemon], None]] = {}


def way(then: Callable[[Daemon], None]) -> Callable[[Daemon], None]:
    WAYS[then.__name__] = then
    return then


@way
def upgraded(daemon: Daemon) -> None:
    assert daemon.ask("upgrade") == {"response": "success"}


@way
def killed(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


@way
def left(daemon: Daemon) -> None:
    assert daemon.ask("shutdown", leaveJobs=True) == {"response": "success"}
    assert daemon.host.wait(daemon.pid) == 0
    daemon.start()


class Slow:
    """A job that takes seconds to stop, and notes each of its starts, with the word that its command has."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon, self.name = daemon, name
        self.file = daemon.jobs / f"{name}.tm.json"
        self._starts = daemon.folder / f"{name}.starts"
        self.pid = 0
        daemon.job(name, self.command("first"), stopTime=2)

    def command(self, word: str) -> list[str]:
        script = f"trap '' TERM; echo {word} >> {self._starts}; while :; do sleep 0.05; done"
        return ["/bin/sh", "-c", script]

    def bytes_of(self, word: str) -> bytes:
        keys = {"cmd": self.command(word), "startTime": 0, "stopTime": 2}
        return json.dumps(keys).encode()

    def starts(self) -> list[str]:
        return self._starts.read_text().split()

    def runs(self) -> None:
        status = self.daemon.wait_state(self.name, "RUNNING")
        wait_for(lambda: self._starts.exists() and self.starts())
        self.pid = status["processes"][0]["pid"]


def ask_and_go(daemon: Daemon, asked: bytes, job: str) -> None:
    """Ask for something and be gone as soon as the job is being stopped for it."""
    with Client(daemon.socket) as client:
        client.send(asked)
        wait_for(lambda: daemon.status(job)["state"] == "STOPPING", f"{job} is being stopped")


@pytest.mark.parametrize("how", WAYS)
def test_goes_on(make_daemon: Callable[..., Daemon], how: str) -> None:
    """delete, push, rollback, restart, stop and start, each while its job is being stopped."""
    daemon = make_daemon()
    names = ("deleted", "pushed", "rolled", "restarted", "stopped", "started", "reloaded", "gone")
    jobs = {name: Slow(daemon, name) for name in names}
    daemon.job("rolled", ["true"], autoStart=False)
    daemon.start()
    slow = jobs["rolled"]
    assert daemon.ask("push", "rolled", data=slow.bytes_of("second"))["response"] == "success"
    assert daemon.ask("push", "rolled", data=slow.bytes_of("first"))["response"] == "success"
    assert daemon.ask("start", "rolled")["response"] == "success"
    for job in jobs.values():
        job.runs()
    jobs["reloaded"].file.write_bytes(jobs["reloaded"].bytes_of("second"))
    jobs["gone"].file.unlink()
    asked = {
        "deleted": query("delete", "deleted", reason="no use"),
        "pushed": query("push", "pushed", data=jobs["pushed"].bytes_of("second")),
        "rolled": query("rollback", "rolled"),
        "restarted": query("restart", "restarted"),
        "stopped": query("stop", "stopped"),
        "started": query("stop", "started") + query("start", "started"),
        "reloaded": query("reload", "reloaded"),
        "gone": query("restart"),
    }
    for name, frames in asked.items():
        ask_and_go(daemon, frames, name)
    WAYS[how](daemon)
    for name in ("deleted", "gone"):
        wait_for(lambda: daemon.ask("status", name).get("error", "").endswith("does not exist."))
        assert not jobs[name].file.exists()
        assert jobs[name].starts() == ["first"]
        assert not (daemon.jobs / ".removing" / name).exists()
    for name in ("pushed", "rolled", "reloaded"):
        wait_for(lambda: jobs[name].starts()[-1] == "second", f"{name} runs anew")
        daemon.wait_state(name, "RUNNING")
        assert jobs[name].starts() == ["first", "second"]
    for name in ("restarted", "started"):
        wait_for(lambda: len(jobs[name].starts()) == 2, f"{name} runs anew")
        daemon.wait_state(name, "RUNNING")
        assert jobs[name].starts() == ["first", "first"]
    daemon.wait_state("stopped", "STOPPED")
    assert jobs["stopped"].starts() == ["first"]
    assert all(process_start(job.pid) is None for job in jobs.values())
    (removed,) = daemon.events("job.removed", job="deleted")
    (asked_for,) = daemon.events("command.requested", command="delete")
    assert removed["cause"] == asked_for["id"]
    assert "deleted by" in removed["reason"]


def test_the_client_is_told_the_truth(make_daemon: Callable[..., Daemon]) -> None:
    """A delete that takes longer than an upgrade waits: what was begun goes on, and so it does."""
    daemon = make_daemon()
    daemon.job("late", ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], stopTime=8)
    daemon.start()
    daemon.wait_state("late", "RUNNING")
    with Client(daemon.socket) as client:
        client.send(query("delete", "late"))
        wait_for(lambda: daemon.status("late")["state"] == "STOPPING")
        assert daemon.ask("upgrade") == {"response": "success"}
        assert "what was begun goes on" in client.reply()["error"]
        # The new program knows that it is being removed: it is neither started nor listed for long.
        assert daemon.status("late")["state"] == "STOPPING"
    wait_for(lambda: daemon.events("job.removed", job="late"))
    assert len(daemon.events("process.started", job="late")) == 1
    assert not (daemon.jobs / "late.tm.json").exists()


@pytest.mark.parametrize("dies", ["daemon", "both", "ended"])
def test_a_delete_is_finished_by_the_next_daemon(
    make_daemon: Callable[..., Daemon], dies: str
) -> None:
    """Killed over it, alone or with the watchdog, or told to end: the job is not started again."""
    daemon = make_daemon()
    job = Slow(daemon, "late")
    daemon.start()
    job.runs()
    watchdog = daemon.status("late")["watchdog"]["pid"]
    ask_and_go(daemon, query("delete", "late", reason="no use"), "late")
    if dies == "ended":
        assert daemon.stop() == 0
    else:
        daemon.kill()
    if dies == "both":
        os.kill(watchdog, signal.SIGKILL)
    daemon.start()
    wait_for(lambda: not job.file.exists())
    wait_for(lambda: daemon.ask("status", "late").get("error", "").endswith("not exist."))
    assert job.starts() == ["first"]
    assert process_start(job.pid) is None
    assert not (daemon.jobs / ".removing" / "late").exists()
    wait_for(lambda: daemon.events("job.removed", job="late"))


@pytest.mark.parametrize("then", ["killed", "replaced"])
def test_the_new_program_dies_too(make_daemon: Callable[..., Daemon], then: str) -> None:
    """The third program goes on, but for a job whose file was replaced meanwhile: that is another job."""
    daemon = make_daemon()
    job = Slow(daemon, "late")
    daemon.start()
    job.runs()
    ask_and_go(daemon, query("delete", "late"), "late")
    upgraded(daemon)
    daemon.kill()
    if then == "replaced":
        job.file.write_bytes(job.bytes_of("second"))
    daemon.start()
    if then == "replaced":
        wait_for(lambda: job.starts()[-1] == "second")
        daemon.wait_state("late", "RUNNING")
        assert job.file.exists()
    else:
        wait_for(lambda: not job.file.exists())
        wait_for(lambda: daemon.ask("status", "late").get("error", "").endswith("not exist."))
        assert job.starts() == ["first"]
    assert not (daemon.jobs / ".removing" / "late").exists()


@pytest.mark.parametrize(
    "note", [b"", b"{", b'{"who":1}', b'{"who":"x","reason":"","sha256":"","cause":""}', b"\xff"]
)
def test_notes_of_others(make_daemon: Callable[..., Daemon], note: bytes) -> None:
    """A torn note, or one of another file, removes nothing."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    folder = Path(daemon.jobs, ".removing")
    folder.mkdir(mode=0o700)
    (folder / "web").write_bytes(note)
    (folder / "nobody").write_bytes(note)
    daemon.start()
    daemon.wait_state("web", "RUNNING")
    assert (daemon.jobs / "web.tm.json").exists()
