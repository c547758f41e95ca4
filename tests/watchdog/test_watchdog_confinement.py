"""What a job's process may do: each step that cannot be done has a name, and what is done is what was asked."""

from __future__ import annotations

import errno
import os
import pwd
import re
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watchdog_children import (
    become_nobody,
    capable,
    changes_users,
    ended,
    environment_of,
    executed,
    forked,
    isolated,
    killed,
    looks_into_users,
    plan,
    reported,
    root_only,
    wait_for,
)

from taskmaster import procfs
from taskmaster.core.spec import UNLIMITED, Capabilities
from taskmaster.watchdog import environment, process
from taskmaster.watchdog.steps import StepFailed

TRUE = "/bin/true"
STOPPED = ("/bin/sh", "-c", "kill -STOP $$")
CHOWN, SETGID, SETUID, SETPCAP, BIND, RESOURCE = 0, 6, 7, 8, 10, 24
NOBODY = pwd.getpwnam("nobody")

drops = pytest.mark.skipif(
    not capable(SETUID, SETGID, SETPCAP, BIND, CHOWN),
    reason="needs CAP_SETPCAP and some to drop and keep",
)


def refused(directory: int, **changed: Any) -> tuple[str, int]:
    """What is said of a process that must not come to be, and the error number."""
    child = forked(plan(directory, TRUE, **changed))
    child.release()
    said = reported(child)
    assert os.waitstatus_to_exitcode(ended(child.pid)) == process.NOT_EXECUTED
    assert said is not None
    return said.text, said.error


# steps that fail ----------------------------------------------------------------------------------


class Step(NamedTuple):
    """What of the definition cannot be done, what is said, and with which error number."""

    changed: dict[str, Any]
    text: str
    error: int = 0


ANYBODY = {
    "no CPU": Step({"cpu_affinity": (8191,)}, "cpuAffinity: CPU 8191 is not there to be used"),
    "some CPUs": Step(
        {"cpu_affinity": (min(os.sched_getaffinity(0)), 8190, 8191)},
        "cpuAffinity: CPU 8190, 8191 are not there to be used",
    ),
    "no group": Step({"groups": (0, "no-such-group")}, "groups no-such-group: no such group"),
    "capability of the future": Step(
        {"capabilities": Capabilities((63,), ())},
        "capabilities capability 63: unknown to this kernel",
    ),
    "no cgroup": Step(
        {"entrance": "/nonexistent/cgroup.procs"},
        "memoryMax: No such file or directory",
        errno.ENOENT,
    ),
    "soft over hard": Step(
        {"limits_": (("cpu", 2, 1),)}, "limits cpu: current limit exceeds maximum limit"
    ),
    "a limit that no job file can hold": Step({"limits_": (("x", 1, 1),)}, "limits x: 'x'"),
}
#: For who has no rights at all.
WEAK = {
    "limits": Step(
        {"limits_": (("nofile", 100, 2**40),)},
        "limits nofile: Operation not permitted",
        errno.EPERM,
    ),
    "nice": Step({"nice": -5}, "nice -5: Permission denied", errno.EACCES),
    "ionice": Step({"ionice": (1, 4)}, "ionice: Operation not permitted", errno.EPERM),
    "oomScoreAdj": Step(
        {"oom_score_adj": -500}, "oomScoreAdj -500: Permission denied", errno.EACCES
    ),
    "groups": Step({"groups": (7,)}, "groups: Operation not permitted", errno.EPERM),
    "bounding": Step(
        {"capabilities": Capabilities((), ())},
        "capabilities without CAP_CHOWN: Operation not permitted",
        errno.EPERM,
    ),
    "ambient": Step(
        {"capabilities": Capabilities(None, (21,))},
        "capabilities CAP_SYS_ADMIN: Operation not permitted: taskmasterd does not have it",
    ),
    "runas and groups": Step(
        {"runas": "root", "groups": ()}, "groups: Operation not permitted", errno.EPERM
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANYBODY)
def test_what_nobody_can_do(directory: int, name: str) -> None:
    """Root or not, what is not there is said, and nothing runs with less."""
    step = ANYBODY[name]
    assert refused(directory, **step.changed) == (step.text, step.error)


@changes_users
def test_what_takes_rights(directory: int) -> None:
    """Without the rights that a key takes there is no process, and the key is named."""

    def weak() -> list[tuple[str, int]]:
        become_nobody()
        return [refused(directory, **step.changed) for step in WEAK.values()]

    expected = [[step.text, step.error] for step in WEAK.values()]
    assert isolated(weak) == expected


@root_only
def test_root_with_few_capabilities(directory: int) -> None:
    """Root in a container may not do everything either: the same names, and never a start without."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    raised = {"limits_": (("nproc", 1, UNLIMITED),)}
    if capable(RESOURCE) or hard == UNLIMITED:
        pid = executed(forked(plan(directory, TRUE, **raised)))
        assert ended(pid) == 0
    else:
        assert refused(directory, **raised) == (
            "limits nproc: Operation not permitted",
            errno.EPERM,
        )
        assert refused(directory, oom_score_adj=-1) == (
            "oomScoreAdj -1: Permission denied",
            errno.EACCES,
        )


# what is there afterwards ---------------------------------------------------------------------------


def look(wanted: process.Plan, seen: Callable[[int], Any]) -> Any:
    """What is to be seen of the running program, which is ended then."""
    pid = executed(forked(wanted))

    def has_stopped() -> bool:
        status = procfs.stat(pid)
        return status is not None and status.state == "T"

    wait_for(has_stopped)
    try:
        return seen(pid)
    finally:
        killed(pid)


def fields(pid: int, *names: str) -> list[str]:
    """Lines of ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return [found[name].strip() for name in names]


def rights(pid: int) -> dict[str, set[int]]:
    """The capability sets of a process by the ends of their names."""
    sets = ("Inh", "Prm", "Eff", "Bnd", "Amb")
    masks = [int(text, 16) for text in fields(pid, *(f"Cap{name}" for name in sets))]
    return {
        name: {number for number in range(64) if mask >> number & 1}
        for name, mask in zip(sets, masks, strict=True)
    }


@changes_users
@pytest.mark.parametrize(
    ("changed", "sealed"),
    [
        ({}, "0"),
        ({"no_new_privs": True}, "1"),
        ({"runas": "nobody"}, "1"),
        ({"runas": "root"}, "1"),
        ({"runas": "nobody", "no_new_privs": False}, "0"),
    ],
)
def test_who_may_gain_rights(directory: int, changed: dict[str, Any], sealed: str) -> None:
    """Only root's own jobs may, and those that say so."""
    if fields(os.getpid(), "NoNewPrivs") == ["1"]:
        pytest.skip("the tests themselves may not")
    seen = look(plan(directory, *STOPPED, **changed), lambda pid: fields(pid, "NoNewPrivs"))
    assert seen == [sealed]


@changes_users
def test_a_users_jobs_gain_no_rights(directory: int) -> None:
    """Under a daemon that is not root nothing does by default."""

    def weak() -> list[str]:
        become_nobody()
        return list(look(plan(directory, *STOPPED), lambda pid: fields(pid, "NoNewPrivs")))

    assert isolated(weak) == ["1"]


@drops
@pytest.mark.parametrize("runas", ["", "nobody", "nobody:daemon"])
@pytest.mark.parametrize("sealed", [None, True, False])
@pytest.mark.parametrize(
    ("bounding", "ambient"),
    [(None, ()), ((), ()), (None, (BIND,)), ((CHOWN, BIND), (BIND,)), ((CHOWN, BIND), ())],
)
def test_capabilities(
    directory: int,
    runas: str,
    sealed: bool | None,
    bounding: tuple[int, ...] | None,
    ambient: tuple[int, ...],
) -> None:
    """The bounding set is what was named; root has all of it, everybody else the ambient ones and no more."""
    before = rights(os.getpid())
    kept = before["Bnd"] if bounding is None else set(bounding)
    wanted = plan(
        directory,
        *STOPPED,
        runas=runas,
        no_new_privs=sealed,
        capabilities=Capabilities(bounding, ambient),
    )
    found = look(wanted, rights)
    assert found["Bnd"] == kept
    assert found["Amb"] == found["Inh"] == set(ambient)
    # What the daemon itself is not permitted root gets by executing, where that may give rights.
    own = kept & before["Prm"] if sealed else kept
    assert found["Prm"] == found["Eff"] == (set(ambient) if runas else own | set(ambient))


@drops
def test_capabilities_of_the_daemon_do_not_stick(directory: int) -> None:
    """With the key, what the daemon has as inheritable and ambient is not the job's unless it is named."""
    from taskmaster import syscalls

    def daemon() -> list[dict[str, list[int]]]:
        have = syscalls.capabilities()
        syscalls.set_capabilities(
            syscalls.CapabilitySets(have.effective, have.permitted, 1 << BIND | 1 << CHOWN)
        )
        for number in (BIND, CHOWN):
            syscalls.raise_ambient(number)
        found = []
        for kept in (Capabilities(None, ()), Capabilities(None, (BIND,))):
            wanted = plan(directory, *STOPPED, runas="nobody", capabilities=kept)
            seen = look(wanted, rights)
            found.append({name: sorted(seen[name]) for name in ("Prm", "Eff", "Inh", "Amb")})
        return found

    assert isolated(daemon) == [
        dict.fromkeys(("Prm", "Eff", "Inh", "Amb"), wanted) for wanted in ([], [BIND])
    ]


@changes_users
@pytest.mark.parametrize("runas", ["", "nobody", "nobody:daemon"])
@pytest.mark.parametrize(
    ("groups", "expected"), [((), set()), ((7, "daemon", 123456), {1, 7, 123456})]
)
def test_groups(directory: int, runas: str, groups: Any, expected: set[int]) -> None:
    """Exactly these, whoever it runs as; the user and the group of runas stay."""
    wanted = plan(directory, *STOPPED, runas=runas, groups=groups)
    found, uids, gids = look(wanted, lambda pid: fields(pid, "Groups", "Uid", "Gid"))
    assert set(map(int, found.split())) == expected
    uid, gid = (NOBODY.pw_uid, NOBODY.pw_gid) if runas else (os.getuid(), os.getgid())
    assert uids.split() == [str(uid)] * 4
    assert gids.split() == [str(1 if ":" in runas else gid)] * 4


def test_priorities_and_limits(directory: int) -> None:
    """What anybody may have of them; limits that are not named stay as the daemon was started with."""
    cpu = min(os.sched_getaffinity(0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = plan(
        directory,
        *STOPPED,
        nice=os.getpriority(os.PRIO_PROCESS, 0) + 1,
        ionice=(2, 7),
        oom_score_adj=700,
        cpu_affinity=(cpu,),
        limits=((resource.RLIMIT_NOFILE, (123, hard)), (resource.RLIMIT_CORE, (0, 0))),
        limits_=(("core", 0, 0), ("cpu", 1000, 2000), ("fsize", 5, 5)),
    )

    def seen(pid: int) -> list[Any]:
        return [
            os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0),
            tuple(__import__("psutil").Process(pid).ionice()),
            int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
            os.sched_getaffinity(pid),
            *(
                resource.prlimit(pid, limit)
                for limit in (
                    resource.RLIMIT_NOFILE,
                    resource.RLIMIT_CORE,
                    resource.RLIMIT_CPU,
                    resource.RLIMIT_FSIZE,
                )
            ),
        ]

    found = look(wanted, seen)
    assert found == [1, (2, 7), 700, {cpu}, (123, hard), (0, 0), (1000, 2000), (5, 5)]


@pytest.mark.parametrize(("asked", "got"), [(None, 0), (0, 0), (300, 300)])
def test_the_oom_score_is_not_inherited(directory: int, asked: int | None, got: int) -> None:
    """A daemon that is not to be the first to go hands that on neither way."""

    def daemon() -> int:
        Path("/proc/self/oom_score_adj").write_text("200")
        wanted = plan(directory, *STOPPED, oom_score_adj=asked)
        return int(look(wanted, lambda pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text())))

    assert isolated(daemon) == got


@pytest.mark.parametrize(
    "limits",
    [
        (("as", 1 << 27, 1 << 27),),
        (("data", 1 << 20, 1 << 20),),
        (("stack", 1 << 16, 1 << 16),),
        (("nofile", 5, 5), ("fsize", 0, 0), ("memlock", 0, 0), ("nproc", 0, 0)),
    ],
    ids=["address space", "data", "stack", "all small"],
)
def test_small_limits_hit_the_program_alone(directory: int, limits: Any) -> None:
    """The way from fork to exec, in Python, still gets there, so that no limit is a failed start by itself."""
    pid = executed(forked(plan(directory, TRUE, limits_=limits)))
    assert ended(pid) == 0


# envFile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("\n \t\n# A=1\n; B=2\n  # C=3\n", {}),
        ("A=1\nB= x y \nC=\n_d9=4\n", {"A": "1", "B": "x y", "C": "", "_d9": "4"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=x\r\nB=y\r\n", {"A": "x", "B": "y"}),
        ("A=a=b # no comment\nB=%n $HOME 'x'", {"A": "a=b # no comment", "B": "%n $HOME 'x'"}),
        ('A=\'a \\ "b\'\nB="a \\\\ \\" \\$ \\` \\n"', {"A": 'a \\ "b', "B": 'a \\ " $ ` \\n'}),
        ("A=''\nB=\"\"\nC=\t' x '", {"A": "", "B": "", "C": " x "}),
        ("A=ü€\n", {"A": "ü€"}),
    ],
)
def test_variables(text: str, found: dict[str, str]) -> None:
    """What a line may be."""
    assert environment.variables(text.encode()) == found


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"A=1\nhunter2\n", "line 2: no =, where NAME=VALUE is accepted"),
        (b"export A=hunter2", "line 1: a name that is not letters, digits and _ (no export, no blanks)"),
        (b"A =hunter2", "line 1: a name that is not letters, digits and _ (no export, no blanks)"),
        (b"=hunter2", "line 1: a name that is not letters, digits and _ (no export, no blanks)"),
        (b"9A=hunter2", "line 1: a name that is not letters, digits and _ (no export, no blanks)"),
        (b"\n\nA=hunter\\2", "line 3: a backslash outside of quotes"),
        (b"A=hunter2\\", "line 1: a backslash outside of quotes"),
        (b"A='hunter2", "line 1: a quote without its end"),
        (b'A="', "line 1: a quote without its end"),
        (b'A="hunter2\\"', "line 1: a quote without its end"),
        (b'A="hunter2\\', "line 1: a quote without its end"),
        (b"A='hunter2' # x", "line 1: something after the closing quote"),
        (b"A=hunter2\0", "line 1: a NUL byte"),
        (b"A=hunter2\xff", "line 1: not UTF-8"),
        (b"\x7fELF\x02\x01\x01\0\0hunter2", "line 1: a NUL byte"),
        (b"A=" + b"h" * 131072, "line 1: over 131071 bytes"),
    ],
)  # fmt: skip
def test_lines_that_are_none(data: bytes, error: str) -> None:
    """The number of the line and what is wrong with it, and nothing of what stands there."""
    with pytest.raises(StepFailed) as caught:
        environment.variables(data)
    assert str(caught.value) == error


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), st.text()))
def test_what_is_quoted_comes_back(wanted: dict[str, str]) -> None:
    """Any value without a line break or NUL can be written, and is read as it was."""
    plain = {
        name: value.translate({10: " ", 13: " ", 0: " "})
        for name, value in wanted.items()
        if not any(0xD800 <= ord(one) < 0xE000 for one in value)
    }
    quoted = str.maketrans({one: f"\\{one}" for one in '"\\`$'})
    text = "".join(f'{name}="{value.translate(quoted)}"\n' for name, value in plain.items())
    assert environment.variables(text.encode()) == plain


@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    """Either variables that can be executed with, or a line that is at fault."""
    try:
        found = environment.variables(data)
    except StepFailed as failed:
        why = str(failed)
    else:
        why = "line 0: none"
        assert all(name and "\0" not in value for name, value in found.items())
    assert re.match("line [0-9]+: ", why)


#: What may be in the place of the file, and what is said.
BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "No such file or directory"),
    "link": (
        lambda path: path.symlink_to("/etc/passwd"),
        "has mode 0644: group or others may use it (chmod 600)",
    ),
    "dangling": (lambda path: path.symlink_to("/nonexistent"), "No such file or directory"),
    "pipe": (lambda path: os.mkfifo(path, 0o600), "is no regular file"),
    "folder": (lambda path: path.mkdir(mode=0o700), "is no regular file"),
    "group": (
        lambda path: written(path, 0o640),
        "has mode 0640: group or others may use it (chmod 600)",
    ),
    "others": (
        lambda path: written(path, 0o602),
        "has mode 0602: group or others may use it (chmod 600)",
    ),
    "set-user-ID": (
        lambda path: written(path, 0o4711),
        "has mode 4711: group or others may use it (chmod 600)",
    ),
    "large": (lambda path: written(path, 0o600, 262145), "is over 262144 bytes"),
    "endless": (lambda path: os.truncate(written(path, 0o600), 1 << 40), "is over 262144 bytes"),
    "open folder": (
        lambda path: (written(path, 0o600), path.parent.chmod(0o777)),
        "others could put another in its place: folder {folder}: mode 0777",
    ),
}


def written(path: Path, mode: int, size: int = 0) -> Path:
    path.write_text("TOKEN=hunter2\n" + "#" * size)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_not_trusted(directory: int, tmp_path: Path, name: str) -> None:
    """Each is named, none is read, a pipe without a writer is not waited for, and nothing runs."""
    make, words = BAD_FILES[name]
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    path = folder / "env"
    make(path)
    text, _ = refused(directory, env_file=str(path))
    assert text == f"envFile {path}: {words.format(folder=folder)}"


@pytest.mark.skipif(not capable(CHOWN), reason="needs CAP_CHOWN")
@pytest.mark.parametrize("what", ["file", "folder", "above"])
def test_files_of_others(directory: int, tmp_path: Path, what: str) -> None:
    """A file or folder of another user is not believed, whatever its mode; that of root is, by everybody."""
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o755)
    path = written(folder / "env", 0o600)
    foreign = {"file": path, "folder": folder, "above": tmp_path}[what]
    os.chown(foreign, NOBODY.pw_uid, -1)
    words = (
        f"it belongs to uid {NOBODY.pw_uid}, not to root or the user of taskmasterd"
        if what == "file"
        else f"others could put another in its place: folder {foreign}: owner uid {NOBODY.pw_uid}"
    )
    text, _ = refused(directory, env_file=str(path))
    assert text == f"envFile {path}: {words}"


@pytest.mark.skipif(not capable(CHOWN), reason="needs CAP_CHOWN")
@pytest.mark.parametrize("theirs", ["home", "target"])
def test_links_to_secrets_of_root(directory: int, tmp_path: Path, theirs: str) -> None:
    """Who has a folder above can put a link to a good file in its place; so can who has where a link leads to."""
    good = tmp_path / "good"
    good.mkdir(mode=0o755)
    written(good / "env", 0o600)
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    if theirs == "home":
        (home / "conf").symlink_to(good)
        path = home / "conf/env"
    else:
        (home / "conf").mkdir()
        written(home / "conf/env", 0o600)
        (good / "link").symlink_to(home / "conf")
        path = good / "link/env"
    os.chown(home, NOBODY.pw_uid, -1)
    text, _ = refused(directory, env_file=str(path))
    assert text == (
        f"envFile {path}: others could put another in its place: "
        f"folder {home}: owner uid {NOBODY.pw_uid}"
    )


@looks_into_users
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_read_before_the_change_of_user(directory: int, tmp_path: Path, mode: int) -> None:
    """The job's user has no right to the file and needs none; it stands over env, and under what is ours."""
    path = written(tmp_path / "env", mode)
    path.write_text("TOKEN=hunter2\nHOME=/secret\nTASKMASTER_JOB=other\n")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    wanted = plan(
        directory, *STOPPED, runas="nobody", env=(("TOKEN", "x"), ("A", "a")), env_file=str(path)
    )
    found = look(wanted, environment_of)
    assert (found["TOKEN"], found["HOME"], found["A"]) == ("hunter2", "/secret", "a")
    assert found["TASKMASTER_JOB"] == "web"
