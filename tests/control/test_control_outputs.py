"""One file, one writer: two jobs by whatever path, generations, and the daemon's own files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from taskmaster.config.daemon import load
from taskmaster.control.outputs import Outputs
from taskmaster.core.spec import JobSpec
from taskmaster.errors import FileError


class Jobs(dict[str, SimpleNamespace]):
    """Jobs in force, and the check of a further one."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.gone: set[str] = set()
        for name in ("jobs", "log", "state", "other"):
            (folder / name).mkdir()
        config = folder / "config.json"
        config.write_text(
            '{"configDirectory":"jobs","logDirectory":"log","stateDirectory":"state","logFile":"say.log"}'
        )
        self.outputs = Outputs(
            load(config, {}, os.geteuid()), self, lambda name: name not in self.gone
        )

    def spec(self, name: str, stdout: object, **changed: object) -> JobSpec:
        """A job that writes there; ``{}`` is the folder."""
        path = None if stdout is None else str(stdout).replace("{}", str(self.folder))
        return JobSpec(name, ("true",), stdout=path, **{"stderr": None, **changed})

    def put(self, name: str, stdout: object, **changed: object) -> None:
        """In force, as if it had been there before."""
        self[name] = SimpleNamespace(spec=self.spec(name, stdout, **changed))

    def refused(self, name: str, stdout: object, **changed: object) -> str:
        """What is said of such a job; empty where nothing is."""
        try:
            self.outputs.check(self.spec(name, stdout, **changed))
        except FileError as error:
            return str(error)
        return ""


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """None yet."""
    return Jobs(tmp_path)


def link(jobs: Jobs) -> None:
    (jobs.folder / "link").symlink_to("other")


def hard_link(jobs: Jobs) -> None:
    (jobs.folder / "other/app.log").touch()
    os.link(jobs.folder / "other/app.log", jobs.folder / "second")


def nothing(jobs: Jobs) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "path"),
    [
        (nothing, "{}/other/app.log"),
        (nothing, "{}/other//./app.log"),
        (nothing, "{}/jobs/../other/app.log"),
        (link, "{}/link/app.log"),
        (link, "{}/link/../other/app.log"),
        (hard_link, "{}/second"),
        (nothing, "/proc/self/root{}/other/app.log"),
    ],
)
def test_two_jobs_with_one_file(jobs: Jobs, prepare: Callable[[Jobs], None], path: str) -> None:
    """By whatever path it is named: the other one is named, and with logMaxBytes 0 for both it may be."""
    prepare(jobs)
    jobs.put("a", "{}/other/app.log")
    said = jobs.refused("b", path)
    assert "stdout of job a" in said
    assert "logMaxBytes 0 for both" in said
    assert jobs.refused("b", path, log_max_bytes=0)
    assert jobs.refused("b", None, stderr=path.replace("{}", str(jobs.folder)))
    assert jobs.refused("a", path) == ""
    assert jobs.refused("b", path + "x") == ""
    jobs.put("a", "{}/other/app.log", log_max_bytes=0)
    assert jobs.refused("b", path)
    assert jobs.refused("b", path, log_max_bytes=0) == ""


def test_over_a_link_that_is_no_way_up(jobs: Jobs) -> None:
    """``link/../app.log`` is above what the link leads to, which no text tells."""
    (jobs.folder / "other/deep").mkdir()
    (jobs.folder / "link").symlink_to("other/deep")
    jobs.put("a", "{}/other/app.log")
    assert jobs.refused("b", "{}/link/../app.log")
    assert jobs.refused("b", "{}/app.log") == ""


def test_every_process_counts(jobs: Jobs) -> None:
    """``%n`` and the number that is put before a name stand for all their files."""
    jobs.put("a", "{}/other/%n.log", proc_nr=12)
    assert jobs.refused("b", "{}/other/11.log")
    assert jobs.refused("b", "{}/other/12.log") == ""
    jobs.put("c", "{}/other/log", proc_nr=2)
    assert jobs.refused("b", "{}/other/1_log")


def test_another_jobs_own_folder(jobs: Jobs) -> None:
    """A relative path of one, an absolute path of the other, in both orders; also where the folder is a link."""
    whole = "{}/log/jobs/a/0_stdout.log"
    jobs.put("a", "%n_stdout.log")
    assert "job a" in jobs.refused("b", whole)
    del jobs["a"]
    jobs.put("b", whole)
    assert "job b" in jobs.refused("a", "%n_stdout.log")
    assert jobs.refused("a", "other.log") == ""
    assert "crash" in jobs.refused("b", "{}/log/jobs/a/watchdog.crash")
    jobs.clear()
    jobs.put("a", "x", stderr="y.2")
    assert "rotation" in jobs.refused("b", "{}/log/jobs/a/x.7")
    assert "rotation" in jobs.refused("b", "{}/log/jobs/a/y", log_backups=2)
    assert jobs.refused("b", "{}/log/jobs/a/y", log_backups=1) == ""


def test_generations(jobs: Jobs) -> None:
    """What rotation makes of one job's file is no other job's, in both orders."""
    jobs.put("a", "{}/other/app.log", log_backups=3)
    assert "rotation" in jobs.refused("b", "{}/other/app.log.3")
    assert jobs.refused("b", "{}/other/app.log.4") == ""
    jobs.put("a", "{}/other/app.log.3")
    assert "rotation" in jobs.refused("b", "{}/other/app.log", log_backups=3)
    assert jobs.refused("b", "{}/other/app.log", log_backups=2) == ""
    assert jobs.refused("b", "{}/other/app.log", log_max_bytes=0) == ""


def test_one_job_with_one_file_by_two_paths(jobs: Jobs) -> None:
    """stdout and stderr of one job."""
    link(jobs)
    both = {"stderr": f"{jobs.folder}/link/app.log"}
    assert "its stdout" in jobs.refused("a", "{}/other/app.log", **both)
    assert jobs.refused("a", "{}/other/app.log", log_max_bytes=0, **both) == ""


def test_a_job_that_is_gone_or_has_changed_claims_nothing(jobs: Jobs) -> None:
    """At once, not only when things are looked up anew."""
    jobs.put("a", "{}/other/app.log")
    assert jobs.refused("b", "{}/other/app.log")
    jobs.put("a", "{}/other/another.log")
    assert jobs.refused("b", "{}/other/app.log") == ""
    jobs.put("a", "{}/other/app.log")
    assert jobs.refused("b", "{}/other/app.log")
    jobs.gone.add("a")  # its file was renamed to b.tm.json
    assert jobs.refused("b", "{}/other/app.log") == ""


@pytest.mark.parametrize(
    "path",
    [
        *("{}/log/audit.jsonl", "{}/log/audit.jsonl.1", "{}/log/audit.seal", "{}/say.log"),
        *("{}/say.log.2", "{}/config.json", "{}/jobs/web.tm.json", "{}/jobs/.history/x"),
        *("{}/state/lock", "{}/state/jobs/a/0.stdout", "{}/link/../log//audit.jsonl"),
        "{}/second",
    ],
)
@pytest.mark.parametrize("limit", [0, 1000])
def test_files_of_the_daemon(jobs: Jobs, path: str, limit: int) -> None:
    """None of them is a job's output, by whatever path."""
    link(jobs)
    (jobs.folder / "log/audit.jsonl").touch()
    os.link(jobs.folder / "log/audit.jsonl", jobs.folder / "second")
    assert "taskmasterd's own" in jobs.refused("b", path, log_max_bytes=limit)
    assert jobs.refused("b", "{}/log/audits.jsonl", log_max_bytes=limit) == ""


def test_where_the_daemons_own_output_goes(jobs: Jobs, tmp_path: Path) -> None:
    """``taskmasterd > file``: the file is no job's, since it would be rotated away; a job may inherit it."""
    before = os.dup(1)
    file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    try:
        assert "output of taskmasterd" in jobs.refused("b", "{}/out")
        assert jobs.refused("b", "/dev/stdout") == ""
    finally:
        os.dup2(before, 1)
        os.close(file)
        os.close(before)


def test_detached_there_is_nothing_to_inherit(jobs: Jobs) -> None:
    """Descriptors 1 and 2 are the file of the daemon's messages then: no job writes there."""
    before = os.dup(1)
    file = os.open(jobs.folder / "say.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    try:
        assert "--detach" in jobs.refused("b", "/dev/stdout")
    finally:
        os.dup2(before, 1)
        os.close(file)
        os.close(before)


def test_devices_have_many_writers(jobs: Jobs) -> None:
    """Two jobs may write to the same device, or pipe."""
    os.mkfifo(jobs.folder / "pipe")
    for path in ("/dev/null", "{}/pipe"):
        jobs.put("a", path)
        assert jobs.refused("b", path) == ""
