"""Cgroups: which one is ours to make groups in, and what is done with a group; on folders that look like them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watchdog_children import wait_for

from taskmaster import children
from taskmaster.core.lifecycle import Phase, Process
from taskmaster.core.spec import JobSpec
from taskmaster.core.states import Desired
from taskmaster.eventloop import EventLoop
from taskmaster.watchdog import cgroup, memory
from taskmaster.watchdog.place import Place

MIB = 1024 * 1024


def proc(folder: Path, mounts: list[tuple[str, str, str]], groups: str) -> str:
    """A folder like /proc/self: mounts are (root, point, type)."""
    folder.mkdir()
    lines = [
        f"{number} 30 0:{number} {root} {point} rw,nosuid shared:9 - {kind} {kind} rw,nsdelegate\n"
        for number, (root, point, kind) in enumerate(mounts, 31)
    ]
    (folder / "mountinfo").write_text("".join(lines))
    (folder / "cgroup").write_text(groups)
    return str(folder)


@pytest.mark.parametrize(
    ("mounts", "groups", "found"),
    [
        ([("/", "/sys/fs/cgroup", "cgroup2")], "0::/a/b\n", ("/sys/fs/cgroup/a/b", "/sys/fs/cgroup")),
        ([("/", "/sys/fs/cgroup", "cgroup2")], "0::/\n", ("/sys/fs/cgroup", "/sys/fs/cgroup")),
        (
            [("/", "/cg/memory", "cgroup"), ("/", "/cg/unified", "cgroup2")],
            "4:memory:/x\n0::/a\n",
            ("/cg/unified/a", "/cg/unified"),
        ),
        ([("/docker/1", "/cg", "cgroup2")], "0::/docker/1/x\n", ("/cg/x", "/cg")),
        ([("/docker/1", "/cg", "cgroup2")], "0::/docker/1\n", ("/cg", "/cg")),
        ([("/docker/1", "/cg", "cgroup2")], "0::/docker/12\n", None),
        ([("/", "/my\\040cg", "cgroup2")], "0::/a\n", ("/my cg/a", "/my cg")),
        ([("/", "/cg/memory", "cgroup")], "4:memory:/x\n", None),
        ([("/", "/cg", "cgroup2")], "4:memory:/x\n", None),
        ([], "", None),
    ],
)  # fmt: skip
def test_where(
    tmp_path: Path,
    mounts: list[tuple[str, str, str]],
    groups: str,
    found: tuple[str, str] | None,
) -> None:
    """The folder of a process's cgroup, by its own word and where the hierarchy is mounted."""
    at = proc(tmp_path / "proc", mounts, groups)
    assert cgroup.where(at, at) == found


def test_nobody_is_nowhere() -> None:
    """A process that is gone has none; this one has one or there is no such hierarchy here."""
    assert cgroup.where("/proc/0") is None
    found = cgroup.where("/proc/self")
    assert found is None or os.path.isdir(found[0])
    # One that has ended and is not reaped is where it was.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    wait_for(lambda: children.peek(pid) is not None)
    assert cgroup.where(f"/proc/{pid}") in (found, None)
    assert children.reap(pid) == 0


def group(folder: Path, **files: str) -> Path:
    """A folder like a cgroup."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def mark(folder: Path, name: str = "user.delegate", value: bytes = b"1") -> None:
    try:
        os.setxattr(folder, name, value)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        pytest.skip("no extended attributes here")


@pytest.mark.parametrize(
    ("marked", "own", "above", "usable"),
    [
        ("above", None, "cpu memory", "above"),
        ("above", None, "cpu", "above"),  # it is switched on
        ("above", "memory", "memory", "above"),
        ("own", "memory", "memory", "own"),
        ("both", "memory", "memory", "own"),
        ("above", None, None, None),  # no such controller
        ("neither", "memory", "memory", None),  # writable by root, and not his to arrange
        ("no", "memory", "memory", None),
    ],
)
def test_delegated(
    tmp_path: Path, marked: str, own: str | None, above: str | None, usable: str | None
) -> None:
    """Only what is marked as delegated and has the controller for groups below it; its own one before the next."""
    folders = {"above": tmp_path / "cg/unit", "own": tmp_path / "cg/unit/supervisor"}
    for name, controllers in (("above", above), ("own", own)):
        files = {} if controllers is None else {"cgroup__subtree_control": controllers}
        group(folders[name], **files)
        if marked in (name, "both"):
            mark(folders[name])
        elif marked == "no":
            mark(folders[name], value=b"0")
    at = proc(tmp_path / "proc", [("/", f"{tmp_path}/cg", "cgroup2")], "0::/unit/supervisor\n")
    assert cgroup.delegated(at) == (None if usable is None else str(folders[usable]))
    if above == "cpu":
        assert (folders["above"] / "cgroup.subtree_control").read_text() == "+memory"


def test_not_above_the_mount(tmp_path: Path) -> None:
    """What is above the hierarchy is no cgroup, whatever it is marked as."""
    mark(group(tmp_path / "cg", cgroup__subtree_control="memory"))
    group(tmp_path / "cg/root")
    at = proc(tmp_path / "proc", [("/", f"{tmp_path}/cg/root", "cgroup2")], "0::/\n")
    assert cgroup.delegated(at) is None


FILES = {
    "memory__max": "max",
    "memory__oom__group": "0",
    "memory__current": "12345\n",
    "memory__events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 0\n",
    "cgroup__procs": "",
}


def test_a_group(tmp_path: Path) -> None:
    """One that is there already is taken over; it goes when it is empty, and one that is gone is no trouble."""
    folder = group(tmp_path / "group", **FILES)
    one = cgroup.Group(str(folder))
    one.make(5 * MIB)
    assert (folder / "memory.max").read_text() == str(5 * MIB)
    assert (folder / "memory.oom.group").read_text()[:1] == "1"
    assert (one.current(), one.kills()) == (12345, 0)
    (folder / "memory.events").write_text("low 0\noom_kill 3\n")
    assert one.kills() == 3
    one.limit(None)
    assert (folder / "memory.max").read_text()[:3] == "max"
    assert not one.remove()
    for file in folder.iterdir():
        file.unlink()
    assert one.remove()
    assert one.remove()
    with pytest.raises(FileNotFoundError) as caught:
        cgroup.Group(str(tmp_path / "new")).make(MIB)  # made, but no cgroup: the files are missing
    assert caught.value.filename == f"{tmp_path}/new/memory.max"


def test_names() -> None:
    """Two daemons, jobs or places never share one, and no name is one of the kernel's own files."""
    names = {
        cgroup.name(state, job, number)
        for state in ("/run/taskmaster/jobs/web", "/run/user/1/taskmaster/jobs/web")
        for job in ("web", "memory.max", "web-1")
        for number in (0, 1)
    }
    assert len(names) == 12
    assert all(name.startswith("taskmaster-") and "/" not in name for name in names)


class Told:
    """As much of a runner as ``Memory`` asks of it; what it is told stays here."""

    def __init__(self, loop: EventLoop, directory: int, limit: int | None) -> None:
        self.loop, self.directory = loop, directory
        self.spec = JobSpec("web", ("/bin/web",), memory_max=limit)
        self.places = {0: Place(0)}
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.signalling = SimpleNamespace(of=lambda place: [])

    def touch(self, place: Place) -> None:
        place.changed = True

    def notice(self, place: Place, event: str, **fields: Any) -> None:
        self.notices.append((event, fields))


@pytest.fixture
def told(loop: EventLoop, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A runner of one place, where a cgroup is delegated."""
    base = tmp_path / "base"
    state = os.readlink(f"/proc/self/fd/{directory}")
    group(base / cgroup.name(state, "web", 0), **FILES)
    monkeypatch.setattr(cgroup, "delegated", lambda: str(base))
    told = Told(loop, directory, 64 * MIB)
    told.group = base / cgroup.name(state, "web", 0)  # type: ignore[attr-defined]
    return told


def test_the_kernel_keeps_it(told: Any) -> None:
    """A process enters its group; what it takes is told; that the kernel has ended it is noticed and said."""
    kept, place = memory.Memory(told), told.places[0]
    assert kept.prepare(place) == f"{told.group}/cgroup.procs"
    assert place.memory_by == "cgroup"
    place.pid, place.process = 4242, Process(Phase.RUNNING, Desired.UP)
    kept.settle()
    kept._look()
    assert place.memory == 12345
    # Killed by somebody: no business of the limit's.
    kept.ended(place, 9)
    assert (told.notices, place.exit_why, place.over) == ([], "", False)
    (told.group / "memory.events").write_text("oom_kill 1\n")
    kept.ended(place, 15)
    assert told.notices == []
    kept.ended(place, 9)
    assert told.notices == [
        (
            "process.memory_exceeded",
            {"pid": 4242, "memory": 64 * MIB, "max": 64 * MIB, "by": "cgroup"},
        )
    ]
    assert (place.exit_why, place.over) == ("memoryMax: 64 MiB of 64 MiB", True)
    # The next process begins with what has been counted.
    place.over = False
    assert kept.prepare(place) is not None
    kept.ended(place, 9)
    assert (len(told.notices), place.exit_why) == (1, "")


def test_another_limit_for_the_group(told: Any) -> None:
    """A new limit is the group's at once, none is none; the group goes when the next process needs none."""
    kept, place = memory.Memory(told), told.places[0]
    kept.prepare(place)
    for limit, text in ((32 * MIB, str(32 * MIB)), (None, "max")):
        told.spec = JobSpec("web", ("/bin/web",), memory_max=limit)
        (told.group / "memory.max").write_text("")
        kept.settle()
        assert (told.group / "memory.max").read_text() == text
    for file in told.group.iterdir():
        file.unlink()
    assert kept.prepare(place) is None
    assert not told.group.exists()
    kept.forget()


def test_a_group_of_a_dead_watchdog(told: Any) -> None:
    """It is found by its name although nothing is in it any more, and removed when it can be."""
    kept, place = memory.Memory(told), told.places[0]
    kept.resume(place)
    assert place.memory_by == "cgroup"
    # What the kernel killed while nobody watched is known by what it has counted.
    (told.group / "memory.events").write_text("oom_kill 1\n")
    kept.ended(place, 9)
    assert place.exit_why == "memoryMax: 64 MiB of 64 MiB"
    place.process = Process(Phase.EXITED, Desired.UP)
    kept.settle()  # one looks, although nothing runs
    kept._look()
    assert told.group.exists()
    for file in told.group.iterdir():
        file.unlink()
    kept.settle()
    kept._look()
    assert not told.group.exists()


def test_no_group(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a delegated cgroup one watches; a key that is not there asks for nothing."""
    monkeypatch.setattr(cgroup, "delegated", lambda: None)
    kept, place = memory.Memory(told), told.places[0]
    assert kept.prepare(place) is None
    assert place.memory_by == "watching"
    told.spec = JobSpec("web", ("/bin/web",))
    assert kept.prepare(place) is None
    assert place.memory_by is None
    kept.settle()
    kept.resume(place)
    assert place.memory_by is None
