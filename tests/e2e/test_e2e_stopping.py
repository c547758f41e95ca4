"""How a stop goes: the main process first, then what is left, each asked once, SIGKILL at stopTime."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter

import pytest
from e2e_programs import python, with_mark
from running import alive, wait_for

#: Notes who it is and which SIGTERM it gets. A plan is {"name", "term", "children": [plan, …]}.
#: On SIGTERM: "end"; "wait": for its children, as a postmaster does; "linger": until the file NAME.go is there;
#: "fork": a child NAME+ that lingers is left, it ends; "ignore": nothing. Any of them ends at NAME.done, with the
#: status in that file.
ACTOR = r"""
import json, os, signal, sys, time
folder, plan = sys.argv[1], json.loads(sys.argv[2])
number = os.environ.get("TASKMASTER_PROCESS", "")

def note(name, what):
    file = os.open(f"{folder}/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{name} {what} {os.getpid()}\n".encode())
    os.close(file)

def act(plan):
    name = plan["name"].replace("%n", number)
    asked = []
    def term(*_):
        note(name, "TERM")
        if plan["term"] == "end":
            os._exit(0)
        asked.append(1)
    signal.signal(signal.SIGTERM, term)
    for child in plan.get("children", ()):
        begin(child)
    note(name, "began")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        if asked and plan["term"] == "wait":
            try:
                while True:
                    os.wait()
            except ChildProcessError:
                os._exit(0)
        if asked and plan["term"] == "fork":
            begin({"name": plan["name"] + "+", "term": "linger"})
            os._exit(0)
        if asked and plan["term"] == "linger" and os.path.exists(f"{folder}/{name}.go"):
            os._exit(0)
        if os.path.exists(f"{folder}/{name}.done"):
            os._exit(int(open(f"{folder}/{name}.done").read() or 0))
        time.sleep(0.01)

def begin(plan):
    # A signal that comes before the child has its handler must not be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if os.fork() == 0:
        act(plan)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

act(plan)
"""


def actor(name, term, *children):
    return {"name": name, "term": term, "children": list(children)}


class Stage:
    """A job of actors under a daemon, and what they have noted."""

    def __init__(self, daemon, folder):
        self.daemon = daemon
        self.folder = folder
        self.folder.mkdir()

    def job(self, plan, **keys):
        argv = python(
            self.folder / "actor.py", ACTOR, str(self.folder), json.dumps(plan).replace("%", "%%")
        )
        self.daemon.job("job", argv, **keys)

    def begin(self, plan, *names, **keys):
        """Start the daemon, and wait for these actors to have begun."""
        self.job(plan, **keys)
        self.daemon.start()
        self.daemon.wait_state("job", "RUNNING")
        for name in names:
            self.pid(name)

    def notes(self, what):
        """Lines of this kind so far: (name, pid)."""
        try:
            lines = (self.folder / "notes").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = (line.split() for line in lines)
        return [(name, int(pid)) for name, noted, pid in found if noted == what]

    def pid(self, name, nth=1):
        """Pid of the nth actor of this name, once it has begun."""
        found = wait_for(
            lambda: (
                pids
                if len(pids := [p for n, p in self.notes("began") if n == name]) >= nth
                else None
            ),
            f"{name} began",
        )
        return found[nth - 1]

    def asked(self):
        """How often each had its stop signal."""
        return Counter(name for name, _ in self.notes("TERM"))

    def wait_asked(self, *names):
        wait_for(lambda: set(names) <= set(self.asked()), f"{names} are asked: {self.asked()}")

    def let(self, name):
        """One that lingers may go."""
        (self.folder / f"{name}.go").touch()

    def ends(self, name, status=0):
        """It ends by itself."""
        new = self.folder / f"{name}.new"
        new.write_text(str(status))
        new.rename(self.folder / f"{name}.done")

    def status(self):
        return self.daemon.status("job")

    def reason_when(self, words):
        """The job's reason once these words are in it."""
        return wait_for(
            lambda: reason if words in (reason := self.status()["reason"]) else None, words
        )

    def ask(self, command, **fields):
        reply = self.daemon.ask(command, "job", **fields)
        assert reply["response"] in ("success", "redundant"), reply

    def events(self, event):
        return self.daemon.events(event, job="job")

    def replace_watchdog(self):
        old = self.status()["watchdog"]["pid"]
        os.kill(old, signal.SIGKILL)

        def replaced():
            watchdog = self.status()["watchdog"]
            return watchdog["state"] == "ATTACHED" and watchdog["pid"] != old

        wait_for(replaced)


@pytest.fixture
def stage(make_daemon, tmp_path):
    return Stage(make_daemon(), tmp_path / "stage")


def due_s(reason):
    """Seconds until SIGKILL, as the reason says."""
    return float(re.search(r"SIGKILL in ([0-9.]+) s", reason)[1])


# the main process first ---------------------------------------------------------------------------


def test_the_main_process_may_wait_for_its_children(stage):
    """As PostgreSQL's postmaster: the children are not asked, end when they are done, and it ends after them."""
    stage.begin(actor("main", "wait", actor("a", "end"), actor("b", "end")), "a", "b", stopTime=60)
    stage.ask("stop")
    stage.wait_asked("main")
    assert stage.status()["state"] == "STOPPING"
    stage.ends("a")
    stage.ends("b")
    stage.daemon.wait_state("job", "STOPPED")
    assert stage.asked() == {"main": 1}
    (record,) = stage.events("process.stopping")
    assert "reason" not in record, record
    assert stage.events("process.killed") == []


def test_all_at_once(stage):
    """With ``stopTo`` all, everything is asked as the stop begins, and once."""
    stage.begin(
        actor("main", "linger", actor("a", "linger", actor("b", "linger"))),
        "b",
        stopTo="all",
        stopTime=60,
    )
    stage.ask("stop")
    stage.wait_asked("main", "a", "b")
    for name in ("main", "b", "a"):
        stage.let(name)
    stage.daemon.wait_state("job", "STOPPED")
    assert stage.asked() == {"main": 1, "a": 1, "b": 1}


def test_stop_to_is_changed_without_a_restart(stage):
    """Another ``stopTo`` is for the next stop of what runs."""
    plan = actor("main", "linger", actor("a", "linger"))
    stage.begin(plan, "a", stopTime=60)
    (pid,) = stage.daemon.pids("job")
    stage.job(plan, stopTime=60, stopTo="all")
    stage.ask("reload")
    assert stage.daemon.pids("job") == [pid]
    stage.ask("stop")
    stage.wait_asked("main", "a")
    stage.let("main")
    stage.let("a")
    stage.daemon.wait_state("job", "STOPPED")


def test_what_is_left_is_asked_once_the_main_process_has_ended(stage):
    """Each once, what is forked meanwhile too; the reason and the log name what is waited for."""
    children = actor("ends", "end"), actor("lingers", "linger"), actor("forks", "fork")
    stage.begin(actor("main", "end", *children), "ends", "lingers", "forks", stopTime=60)
    stage.ask("stop")
    stage.wait_asked("main", "ends", "lingers", "forks", "forks+")
    lingers = stage.pid("lingers")
    reason = stage.reason_when("the main process has ended")
    assert str(lingers) in reason
    assert due_s(reason) <= 60
    stage.let("forks+")
    stage.let("lingers")
    stage.daemon.wait_state("job", "STOPPED")
    assert set(stage.asked().values()) == {1}
    first, second = stage.events("process.stopping")
    assert "reason" not in first
    assert second["reason"].startswith("outlived the main process: pid ")
    assert stage.events("process.killed") == []


@pytest.mark.parametrize("stop_to", ["main", "all"])
def test_places_that_stop_at_once_do_not_forget_each_other(stage, stop_to):
    """One place comes to its end: what others had asked is not asked a second time."""
    children = actor("a%n", "linger"), actor("b%n", "linger")
    stage.begin(
        actor("main%n", "end", *children),
        *(f"{name}{number}" for name in "ab" for number in range(3)),
        procNr=3, stopTime=60, stopTo=stop_to,
    )  # fmt: skip
    stage.ask("stop")
    stage.wait_asked(*(f"{name}{number}" for name in "ab" for number in range(3)))

    def states():
        return [one["state"] for one in stage.status()["processes"]]

    stage.let("a0")
    stage.let("b0")
    wait_for(lambda: states() == ["STOPPED", "STOPPING", "STOPPING"])
    # The end of one that is left has the others looked at again.
    for number in (1, 2):
        stage.let(f"a{number}")
        wait_for(lambda number=number: not alive(stage.pid(f"a{number}")))
    stage.let("b1")
    wait_for(lambda: states() == ["STOPPED", "STOPPED", "STOPPING"])
    stage.let("b2")
    stage.daemon.wait_state("job", "STOPPED")
    assert set(stage.asked().values()) == {1}


def test_sigkill_to_all_at_the_one_deadline(stage):
    """A main process that takes its time, and children that ignore the signal: all end at stopTime."""
    stage.begin(
        actor("main", "ignore", actor("a", "ignore", actor("b", "ignore"))), "b", stopTime=0.3
    )
    stage.ask("stop", wait=30)
    assert [alive(stage.pid(name)) for name in ("main", "a", "b")] == [False] * 3
    (record,) = stage.events("process.killed")
    assert record["reason"] == "stopTime was over"
    # It may have been killed before it could say that it was asked.
    assert set(stage.asked()) <= {"main"}


def test_a_stopped_child_is_continued(stage):
    """SIGCONT to a child under SIGSTOP, for the main process waits for it and does not know."""
    stage.begin(actor("main", "wait", actor("a", "end")), "a", stopTime=3600)
    os.kill(stage.pid("a"), signal.SIGSTOP)
    stage.ends("a")
    stage.ask("stop", wait=60)
    assert stage.status()["state"] == "STOPPED"
    assert stage.asked() == {"main": 1}


def test_the_signal_of_the_definition_that_the_stop_began_under(stage):
    """A reload that changes ``cmd`` and ``stopSig`` at once: what is left is not asked in another language."""
    stage.begin(actor("main", "end", actor("a", "linger")), "a", stopTime=60)
    stage.job(actor("new", "end"), stopTime=60, stopSig="KILL")
    stage.ask("reload")
    stage.wait_asked("main", "a")
    assert stage.status()["state"] == "STOPPING"
    assert alive(stage.pid("a"))
    stage.let("a")
    stage.pid("new")
    assert stage.asked() == {"main": 1, "a": 1}
    assert {one["signal"] for one in stage.events("process.stopping")} == {signal.SIGTERM}


def test_a_watchdog_dies_during_a_stop(stage):
    """Its replacement goes on: the same deadline, nobody is asked twice, what is new is asked."""
    children = actor("a", "linger"), actor("forks", "fork")
    stage.begin(actor("main", "end", *children), "a", "forks", stopTime=600)
    stage.ask("stop")
    stage.wait_asked("main", "a", "forks", "forks+")
    before = due_s(stage.reason_when("the main process has ended"))
    stage.replace_watchdog()
    assert due_s(stage.reason_when("the main process has ended")) <= before
    stage.let("forks+")
    wait_for(lambda: not alive(stage.pid("forks+")))
    stage.let("a")
    stage.daemon.wait_state("job", "STOPPED")
    assert set(stage.asked().values()) == {1}


def test_the_main_process_ends_while_nobody_watches(stage):
    """Watchdog and main process die in the middle of a stop: what is left still has the stop's deadline."""
    stage.begin(actor("main", "linger", actor("a", "ignore")), "a", stopTime=4)
    stage.ask("stop")
    stage.wait_asked("main")
    watchdog = stage.status()["watchdog"]["pid"]
    os.kill(stage.daemon.pid, signal.SIGSTOP)
    try:
        for pid in (watchdog, stage.pid("main")):
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not alive(pid))
    finally:
        os.kill(stage.daemon.pid, signal.SIGCONT)
    stage.daemon.wait_state("job", "STOPPED")
    assert not alive(stage.pid("a"))
    assert set(stage.asked().values()) == {1}


# what an end leaves behind ------------------------------------------------------------------------


def left_by_a_crash(stage):
    """The main process is killed and leaves ``a``, which has been asked to end."""
    plan = actor("main", "end", actor("a", "linger"))
    stage.begin(plan, "a", restart="unexpected", stopTime=600)
    os.kill(stage.pid("main"), signal.SIGKILL)
    stage.wait_asked("a")
    return stage.pid("a")


def test_a_crash_leaves_something_behind(stage):
    """It is asked, and waited for before the next process starts; state, reason and log say so."""
    left = left_by_a_crash(stage)
    reason = stage.reason_when("waits for the end of")
    assert reason.startswith(
        f"waits for the end of what the process before left behind: pid {left}, SIGKILL in"
    )
    assert 0 < due_s(reason) <= 600
    status = stage.status()
    assert (status["state"], status["alive"]) == ("STARTING", 0)
    stage.let("a")
    stage.pid("main", 2)
    stage.daemon.wait_state("job", "RUNNING")
    assert stage.asked() == {"a": 1}
    (record,) = stage.events("process.stopping")
    assert (record["pid"], record["reason"]) == (
        left,
        f"left behind by the process before: pid {left}",
    )
    assert stage.events("process.killed") == []


def test_what_does_not_go_is_killed_at_stop_time(stage):
    """Then the next process starts, and the log says why there was a SIGKILL."""
    stage.begin(actor("main", "end", actor("a", "ignore")), "a", stopTime=0.3)
    left = stage.pid("a")
    os.kill(stage.pid("main"), signal.SIGKILL)
    stage.pid("main", 2)
    assert not alive(left)
    (asked,), (killed,) = stage.events("process.stopping"), stage.events("process.killed")
    assert asked["reason"] == f"left behind by the process before: pid {left}"
    assert killed["reason"] == f"stopTime was over; left behind: pid {left}"
    assert stage.asked()["a"] <= 1


@pytest.mark.parametrize("dies", ["watchdog", "daemon", "both"])
def test_it_is_gone_on_with(stage, dies):
    """The watchdog, the daemon or both die meanwhile: the same deadline, no second signal, then the start."""
    left_by_a_crash(stage)
    before = due_s(stage.reason_when("waits for the end of"))
    watchdog = stage.status()["watchdog"]["pid"]
    if dies == "watchdog":
        stage.replace_watchdog()
    else:
        stage.daemon.kill()
        if dies == "both":
            os.kill(watchdog, signal.SIGKILL)
            wait_for(lambda: not alive(watchdog))
        stage.daemon.start()
    assert due_s(stage.reason_when("waits for the end of")) <= before
    assert stage.asked() == {"a": 1}
    stage.let("a")
    stage.pid("main", 2)
    stage.daemon.wait_state("job", "RUNNING")
    assert stage.asked() == {"a": 1}
    assert len([name for name, _ in stage.notes("began") if name == "main"]) == 2
    assert stage.events("process.killed") == []


@pytest.mark.parametrize(
    "command", ["stop", "kill", "start", "restart", "repair", "reload", "delete"]
)
def test_a_command_meanwhile(stage, command):
    """Whatever is asked, nobody is asked to end twice, and only ``kill`` does not wait."""
    left = left_by_a_crash(stage)
    stage.reason_when("waits for the end of")
    if command == "reload":
        stage.job(actor("new", "end"), stopTime=600)
    with stage.daemon.client() as client:
        client.send(b'{"command":"%s","job":"am9i","wait":60};;' % command.encode())
        wait_for(lambda: stage.daemon.events("command.requested", command=command))
        if command == "stop":
            daemon_says = stage.reason_when("the main process has ended")
            assert str(left) in daemon_says
        if command != "kill":
            assert alive(left)
            stage.let("a")
        assert client.reply()["response"] in ("success", "redundant")
    assert not alive(left)
    if command == "delete":
        assert stage.daemon.ask("status", "job")["response"] == "fail"
    else:
        down = command in ("stop", "kill")
        stage.daemon.wait_state("job", "STOPPED" if down else "RUNNING")
        if not down:
            stage.pid("new", 1) if command == "reload" else stage.pid("main", 2)
    assert stage.asked()["a"] == 1
    reasons = [one["reason"] for one in stage.events("process.killed")]
    assert reasons == ([f"asked for; left behind: pid {left}"] if command == "kill" else [])


@pytest.mark.parametrize(("policy", "status"), [("never", 0), ("never", 1), ("unexpected", 0)])
def test_what_is_not_followed_is_left_alone(stage, policy, status):
    """A server that handed over and ended as expected, or is never started again: its successor runs on."""
    stage.begin(actor("main", "end", actor("a", "linger")), "a", restart=policy, stopTime=600)
    stage.ends("main", status)
    left = stage.pid("a")
    words = f"1 of the processes it started still run: pid {left}"
    assert stage.daemon.wait_state("job", "EXITED")["reason"] == f"exit code {status}; {words}"
    stage.replace_watchdog()
    assert words in stage.status()["reason"]
    assert (alive(left), stage.asked()) == (True, {})
    # Its end is noticed, also by a watchdog that had not seen it begin.
    os.kill(left, signal.SIGKILL)
    wait_for(lambda: stage.status()["reason"] == f"exit code {status}")


@pytest.mark.parametrize("command", ["stop", "kill", "start", "restart", "delete"])
def test_a_command_reaches_what_was_left_alone(stage, command):
    """It is asked to end as any process is, or killed, and what is started comes after it."""
    stage.begin(actor("main", "end", actor("a", "linger")), "a", restart="never", stopTime=600)
    stage.ends("main")
    left = stage.pid("a")
    stage.daemon.wait_state("job", "EXITED")
    (stage.folder / "main.done").unlink()
    stage.let("a")
    stage.ask(command, wait=60)
    assert not alive(left)
    assert stage.asked() == ({} if command == "kill" else {"a": 1})
    if command in ("start", "restart"):
        stage.pid("main", 2)


def test_fewer_processes_with_something_left_behind(stage):
    """A place that is no longer wanted is not forgotten before what it left behind is gone."""
    plan = actor("main%n", "end", actor("a%n", "end"))
    stage.begin(plan, "a0", "a1", procNr=2, restart="never")
    stage.ends("main1")
    wait_for(lambda: stage.status()["processes"][1]["state"] == "EXITED")
    stage.job(plan, procNr=1, restart="never")
    stage.ask("reload")
    wait_for(lambda: not alive(stage.pid("a1")))
    wait_for(lambda: len(stage.status()["processes"]) == 1)
    assert stage.asked() == {"a1": 1}
    assert alive(stage.pid("a0"))


def test_a_crash_loop_does_not_pile_up(make_daemon, tmp_path):
    """Each crash leaves a child that ignores the signal: there is never more than one round of them."""
    daemon = make_daemon()
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    text = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork(): os._exit(1)\n"
        "time.sleep(1000)\n"
    )
    argv = python(tmp_path / "crash.py", text, mark)
    daemon.job("loop", argv, restart="always", restartTimes=-1, stopTime=0.1)
    daemon.start()
    most = 0
    deadline = time.monotonic() + 60
    while len(daemon.events("process.exited", job="loop")) < 3:
        most = max(most, len(with_mark(mark)))
        assert time.monotonic() < deadline
    assert most <= 2
    started = len(daemon.events("process.started", job="loop"))
    killed = daemon.events("process.killed", job="loop")
    assert started - 1 <= len(killed) <= started
    assert daemon.ask("stop", "loop", wait=30)["response"] == "success"
    assert with_mark(mark) == {}
