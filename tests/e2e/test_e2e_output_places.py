"""Where input comes from and output goes to: users' folders, the daemon's own output, one file for two jobs."""

from __future__ import annotations

import json
import os
import select
from pathlib import Path

import pytest
from running import wait_for
from strangers import NOBODY, as_user, needs_root

SAYS = ["/bin/sh", "-c", "echo said; exec sleep 1000"]
#: Opens its outputs anew, in every way there is, as php-fpm and nginx do.
ANEW = [
    "/bin/sh",
    "-c",
    "echo 1 >>/proc/self/fd/1 && echo 2 >>/dev/stdout && echo 3 >>/dev/stderr && echo 4 >>/dev/fd/2 || exit 5;"
    " exec sleep 1000",
]


def run(daemon, name, cmd, **keys):
    daemon.job(name, cmd, **{"restart": "never", "startTime": 0, **keys})
    assert daemon.ask("reload", name, wait=60)["response"] == "success", daemon.status(name)
    return daemon.logs / "jobs" / name


# folders of others ---------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("then", "max_bytes"),
    [("restart", 0), ("restart", 52428800), ("upgrade", 52428800), ("kill", 52428800)],
)
def test_a_folder_of_the_jobs_user_becomes_a_link(daemon, open_folder, then, max_bytes):
    """After a restart, an upgrade or the death of its watchdog: nothing in root's folder, and others run on."""
    home, root = open_folder / "home", open_folder / "root"
    for folder in (home, home / "log", root):
        folder.mkdir()
    for folder in (home, home / "log"):
        os.chown(folder, NOBODY, NOBODY)
    run(daemon, "other", SAYS)
    other = daemon.pids("other")
    run(daemon, "web", SAYS, runas="nobody", stdout=str(home / "log/web"), logMaxBytes=max_bytes)
    wait_for(lambda: (home / "log/web").read_text() == "said\n")
    assert (home / "log/web").stat().st_uid == NOBODY

    def swap():
        (home / "log").rename(home / "old")
        (home / "log").symlink_to(root)

    as_user(NOBODY, swap)
    watchdog = daemon.status("web")["watchdog"]["pid"]
    if then == "upgrade":
        assert daemon.ask("upgrade")["response"] == "success"
    elif then == "kill":
        os.kill(watchdog, 9)
    if then != "restart":
        wait_for(lambda: _watched_by(daemon, "web") not in (None, watchdog))
    reply = daemon.ask("restart", "web", wait=60)
    assert list(root.iterdir()) == []
    assert daemon.pids("other") == other
    if max_bytes and then == "restart":
        # The watchdog has had the folder open all the time, wherever its user has put it.
        assert reply == {"response": "success"}
        wait_for(lambda: (home / "old/web").read_text() == "said\nsaid\n")
        return
    assert reply["response"] == "fail"
    assert "symbolic link" in reply["error"]
    assert list(root.iterdir()) == []


def _watched_by(daemon, job):
    """The pid of the watchdog that is at its work."""
    watchdog = daemon.status(job)["watchdog"]
    return watchdog["pid"] if watchdog["state"] == "ATTACHED" else None


@needs_root
@pytest.mark.parametrize("max_bytes", [0, 52428800])
def test_a_group_writable_folder_of_root(daemon, open_folder, max_bytes):
    """``/var/log`` of Debian: a job of another user writes to a file there that it could not open itself."""
    (open_folder / "log").mkdir()
    (open_folder / "log").chmod(0o2775)
    file = open_folder / "log/web.log"
    run(daemon, "web", SAYS, runas="nobody", stdout=str(file), logMaxBytes=max_bytes)
    wait_for(lambda: file.exists() and file.read_text() == "said\n")


# opened anew ---------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("max_bytes", [0, 52428800], ids=["direct", "rotated"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"stderr": "stdout"},
        {"stdout": "a/b.log"},
        {"stdout": None, "stderr": None},
        {"stdout": "inherit", "stderr": "inherit"},
        {"stdout": "inherit", "stderr": "stdout"},
    ],
    ids=["two files", "one file", "folder", "discarded", "inherited", "inherited as one"],
)
def test_outputs_opened_anew(daemon, max_bytes, keys):
    """As another user, however the output is kept; a second start, with the files there, works as well."""
    folder = run(daemon, "web", ANEW, runas="nobody", logMaxBytes=max_bytes, **keys)
    assert daemon.status("web")["state"] == "RUNNING"
    assert daemon.ask("restart", "web", wait=60) == {"response": "success"}

    def lines():
        files = folder.rglob("*.log")
        return sorted("".join(file.read_text() for file in files).split())

    if "inherit" in keys.values():
        wait_for(lambda: set("1234") <= set(daemon.messages.read_text().split("\n")))
    elif keys.get("stdout", "") is not None:
        wait_for(lambda: lines() == sorted("12341234"), "all is there")
    # And root's job of the same name does not write into what is another user's.
    run(daemon, "web", ANEW, logMaxBytes=max_bytes, **keys)
    assert daemon.status("web")["state"] == "RUNNING"


# the daemon's own output ---------------------------------------------------------------------------


def test_inherited_by_every_name(daemon):
    """What is printed goes where the daemon's own goes, whole lines of it; the job has not its descriptors."""
    names = ("inherit", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr")
    for number, name in enumerate(names):
        say = f"echo said {number}; readlink /proc/$$/fd/1; exec sleep 1000"
        run(daemon, f"job{number}", ["/bin/sh", "-c", say], stdout=name, logMaxBytes=number % 2)

    def said():
        lines = daemon.messages.read_text().splitlines()
        return all(f"said {number}" in lines for number in range(len(names)))

    wait_for(said)
    lines = daemon.messages.read_text().splitlines()
    assert str(daemon.messages) not in lines
    assert not list((daemon.logs / "jobs").rglob("*stdout.log"))


def test_inherited_and_nobody_reads(make_daemon):
    """The daemon's output is a pipe that is full: the job waits, and can be stopped; nobody else notices."""
    daemon = make_daemon()
    os.mkfifo(daemon.messages)
    reading = os.open(daemon.messages, os.O_RDONLY | os.O_NONBLOCK)
    daemon.start()
    run(daemon, "quiet", ["sleep", "1000"])
    quiet = daemon.pids("quiet")
    run(daemon, "loud", ["/bin/sh", "-c", "while :; do echo loud loud; done"], stdout="inherit")
    wait_for(lambda: _full(daemon.messages))
    assert daemon.status("quiet")["state"] == "RUNNING"
    assert daemon.ask("stop", "loud", wait=60)["response"] == "success"
    assert daemon.pids("quiet") == quiet
    assert daemon.events("watchdog.unresponsive") == []
    daemon.stop()
    os.close(reading)
    daemon.messages = daemon.folder / "a file"


def _full(pipe):
    """Whether it takes nothing more."""
    writing = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writing], [], 0)[1]
    finally:
        os.close(writing)


# standard input ------------------------------------------------------------------------------------

#: Tells each line that it reads, and when there are no more.
READS = ["/bin/sh", "-c", "while read line; do echo got $line; done; echo end; exec sleep 1000"]


@pytest.mark.parametrize("runas", ["", pytest.param("nobody", marks=needs_root)])
def test_standard_input(daemon, open_folder, runas):
    """At its end at once, never at its end, a file, a pipe that is written to now and then."""
    (open_folder / "in").write_text("one\ntwo\n")
    (open_folder / "in").chmod(0o644)
    os.mkfifo(open_folder / "pipe")
    (open_folder / "pipe").chmod(0o666)
    who = {"runas": runas} if runas else {}
    for name, stdin in {
        "null": "null",
        "open": "open",
        "file": str(open_folder / "in"),
        "pipe": str(open_folder / "pipe"),
    }.items():
        run(daemon, name, READS, stdin=stdin, **who)
    logs = {
        name: daemon.logs / "jobs" / name / "0_stdout.log"
        for name in ("null", "open", "file", "pipe")
    }
    wait_for(lambda: logs["null"].read_text() == "end\n")
    wait_for(lambda: logs["file"].read_text() == "got one\ngot two\nend\n")
    for line in ("first", "second"):
        (open_folder / "pipe").write_text(f"{line}\n")
        wait_for(lambda line=line: logs["pipe"].read_text().endswith(f"got {line}\n"))
    assert logs["open"].read_text() == ""
    # Whoever dies, an open pipe stays open.
    (pid,) = daemon.pids("open")
    os.kill(daemon.status("open")["watchdog"]["pid"], 9)
    wait_for(lambda: len(daemon.events("process.adopted", job="open")) == 1)
    assert daemon.pids("open") == [pid]
    assert logs["open"].read_text() == ""


def test_standard_input_that_cannot_be(daemon, tmp_path):
    """A file that is missing, a folder: the start fails with its name; it is tried as the job's user."""
    for path in (tmp_path / "missing", tmp_path):
        daemon.job("web", READS, stdin=str(path), restart="never")
        reply = daemon.ask("reload", "web", wait=60)
        wait_for(lambda: daemon.status("web")["state"] == "FATAL")
        assert f"stdin {path}" in json.dumps(daemon.status("web")), reply


@needs_root
def test_standard_input_is_opened_as_the_jobs_user(daemon, open_folder):
    """A file of root's alone is none for a job of another user, also by a link of theirs."""
    (open_folder / "secret").write_text("secret\n")
    (open_folder / "secret").chmod(0o600)
    (open_folder / "link").symlink_to("secret")
    for name in ("secret", "link"):
        daemon.job("web", READS, stdin=str(open_folder / name), runas="nobody", restart="never")
        daemon.ask("reload", "web", wait=60)
        wait_for(lambda: daemon.status("web")["state"] == "FATAL")
        assert "Permission denied" in json.dumps(daemon.status("web"))


# one file for two jobs -----------------------------------------------------------------------------


def test_one_file_for_two_jobs(daemon, tmp_path):
    """The second one is refused, by push, reload and at a start, and runs once the first is gone."""
    file = tmp_path / "both.log"
    run(daemon, "a", SAYS, stdout=str(file))
    definition = json.dumps({"cmd": SAYS, "stdout": str(file), "startTime": 0})
    reply = daemon.ask("push", "b", data=definition)
    assert reply["response"] == "fail"
    assert "job a" in reply["error"]
    assert not (daemon.jobs / "b.tm.json").exists()
    daemon.job("b", SAYS, stdout=f"{tmp_path}/./both.log", startTime=0)
    assert "job a" in daemon.ask("restart")["error"]
    daemon.stop()
    daemon.start()
    daemon.wait_state("a", "RUNNING")
    (rejected,) = daemon.events("jobfile.rejected", job="b")[-1:]
    assert "job a" in rejected["error"]
    assert daemon.ask("delete", "a", wait=60)["response"] == "success"
    assert daemon.ask("reload", "b", wait=60)["response"] == "success"
    daemon.wait_state("b", "RUNNING")


def test_a_job_file_that_is_renamed_keeps_its_output(daemon, tmp_path):
    """The job of the old name is on its way out: the new one is not refused for it."""
    run(daemon, "other", SAYS)
    run(daemon, "a", SAYS, stdout=str(tmp_path / "app.log"))
    (daemon.jobs / "a.tm.json").rename(daemon.jobs / "b.tm.json")
    assert daemon.ask("restart") == {"response": "success"}
    daemon.wait_state("b", "RUNNING")
    assert json.loads(daemon.ask("list")["data"]) == {"jobs": [{"name": "b"}, {"name": "other"}]}


# generations ---------------------------------------------------------------------------------------


def test_fewer_backups_while_it_runs(daemon):
    """What is too many goes with the reload, without a new line; a folder of that name and the process stay."""
    cmd = ["/bin/sh", "-c", "seq 1 2000; exec sleep 1000"]
    folder = run(daemon, "web", cmd, logMaxBytes=1000, logBackups=6)
    (pid,) = daemon.pids("web")
    wait_for(lambda: (folder / "0_stdout.log").read_text().endswith("2000\n"))
    assert (folder / "0_stdout.log.6").exists()
    (folder / "0_stdout.log.7").mkdir()
    run(daemon, "web", cmd, logMaxBytes=1000, logBackups=2)
    wait_for(lambda: not (folder / "0_stdout.log.3").exists())
    names = sorted(Path(file).name for file in folder.glob("0_stdout.log*"))
    assert names == [f"0_stdout.log{number}" for number in ("", ".1", ".2", ".7")]
    assert daemon.pids("web") == [pid]
