"""The keys that say what a job may do: each form of a value, and exactly what is said of a wrong one."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from taskmaster.config.jobfile import parse_job
from taskmaster.core import kernelnames
from taskmaster.core.spec import UNLIMITED, Capabilities
from taskmaster.errors import FileError
from taskmaster.watchdog import confinement

BASE = Path("/srv/base")
MIB = 1024 * 1024
BIND, CHOWN, KILL = 10, 0, 5


def parsed(**members: Any) -> Any:
    return parse_job("web", json.dumps({"cmd": "prog", **members}).encode(), BASE)


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("envFile", None, "env_file", None),
        ("envFile", "secrets/../web.env", "env_file", "/srv/base/secrets/../web.env"),
        ("envFile", "/etc//web.env", "env_file", "/etc/web.env"),
        ("limits", {}, "limits", ()),
        ("limits", {"nofile": 1024}, "limits", (("nofile", 1024, 1024),)),
        ("limits", {"RLIMIT_NOFILE": 2.0}, "limits", (("nofile", 2, 2),)),
        ("limits", {"Core": None}, "limits", (("core", UNLIMITED, UNLIMITED),)),
        ("limits", {"core": "unlimited"}, "limits", (("core", UNLIMITED, UNLIMITED),)),
        ("limits", {"as": {"soft": 1, "hard": None}}, "limits", (("as", 1, UNLIMITED),)),
        ("limits", {"cpu": {"hard": 2, "soft": 2}}, "limits", (("cpu", 2, 2),)),
        (
            "limits",
            {"nproc": 0, "fsize": 2**63 - 1},
            "limits",
            (("fsize", 2**63 - 1, 2**63 - 1), ("nproc", 0, 0)),
        ),
        ("nice", None, "nice", None),
        ("nice", -20, "nice", -20),
        ("nice", 19, "nice", 19),
        ("ionice", None, "ionice", None),
        ("ionice", "idle", "ionice", (3, 0)),
        ("ionice", "best-effort", "ionice", (2, 4)),
        ("ionice", "best-effort:0", "ionice", (2, 0)),
        ("ionice", "realtime:7", "ionice", (1, 7)),
        ("ionice", {"class": "best-effort", "level": 7}, "ionice", (2, 7)),
        ("ionice", {"class": "idle", "level": None}, "ionice", (3, 0)),
        ("ionice", {"class": "best-effort"}, "ionice", (2, 4)),
        ("oomScoreAdj", None, "oom_score_adj", None),
        ("oomScoreAdj", 0, "oom_score_adj", 0),
        ("oomScoreAdj", -1000, "oom_score_adj", -1000),
        ("cpuAffinity", None, "cpu_affinity", None),
        ("cpuAffinity", [3, 1, 1], "cpu_affinity", (1, 3)),
        ("cpuAffinity", "0-3,5", "cpu_affinity", (0, 1, 2, 3, 5)),
        ("cpuAffinity", " 8191 , 2-2 ", "cpu_affinity", (2, 8191)),
        ("noNewPrivileges", None, "no_new_privs", None),
        ("noNewPrivileges", False, "no_new_privs", False),
        ("capabilities", None, "capabilities", None),
        ("capabilities", [], "capabilities", Capabilities((), ())),
        (
            "capabilities",
            ["cap_net_bind_service", "CHOWN", "CAP_CHOWN"],
            "capabilities",
            Capabilities((CHOWN, BIND), (CHOWN, BIND)),
        ),
        ("capabilities", {}, "capabilities", Capabilities(None, ())),
        ("capabilities", {"ambient": ["KILL"]}, "capabilities", Capabilities(None, (KILL,))),
        (
            "capabilities",
            {"bounding": ["KILL", "CHOWN"], "ambient": ["KILL"]},
            "capabilities",
            Capabilities((CHOWN, KILL), (KILL,)),
        ),
        ("groups", None, "groups", None),
        ("groups", [], "groups", ()),
        ("groups", ["audio", 7, "audio", 7], "groups", ("audio", 7)),
        ("memoryMax", None, "memory_max", None),
        ("memoryMax", MIB, "memory_max", MIB),
        ("memoryMax", "512M", "memory_max", 512 * MIB),
        ("memoryMax", "2g", "memory_max", 2048 * MIB),
        ("memoryMax", "2048K", "memory_max", 2 * MIB),
        ("memoryMax", "1T", "memory_max", 2**40),
        ("memoryMax", "1048576", "memory_max", MIB),
    ],
)
def test_accepted(key: str, value: object, field: str, expected: object) -> None:
    """Each form of a value gives the field that it stands for."""
    assert getattr(parsed(**{key: value}), field) == expected


LIMIT = f'a whole number from 0 to {2**63 - 1}, or "unlimited"'
NICE = "a whole number from -20 to 19 (-20: first, 19: last), or null: that of taskmasterd"
CPUS = 'CPU numbers from 0 to 8191: a list, or a string as in "0-3,5", or null: as taskmasterd'
GROUPS = "a list of groups, by name or by number (0 to 4294967294), or null: those of the user"
SIZE = (
    "bytes: a whole number from 1048576 to 1125899906842624, or with a unit of 1024 as in "
    '"512M" (K, M, G, T), or null: no limit'
)
OOM = "a whole number from -1000 to 1000 (-1000: never), or null: 0, as far as that may be set"
NAMES = "capability by name; the nearest is"


@pytest.mark.parametrize(
    ("key", "value", "found", "accepted"),
    [
        ("envFile", "", '""', "a path, or null: none"),
        ("envFile", 5, "5", "a path, or null: none"),
        ("envFile", "a\0b", "a NUL character", "text without NUL"),
        (
            "limits",
            {"nofiles": 5},
            '"nofiles", no resource limit',
            'resource limits by name; the nearest is "nofile"',
        ),
        (
            "limits",
            {"": 5},
            '"", no resource limit',
            'resource limits by name; the nearest is "stack"',
        ),
        (
            "limits",
            {"rss": 5},
            '"rss", which Linux does not enforce since 2.4.30',
            "limits that are enforced (for memory: memoryMax)",
        ),
        (
            "limits",
            {"RLIMIT_LOCKS": 5},
            '"RLIMIT_LOCKS", which Linux does not enforce since 2.4.25',
            "limits that are enforced (for memory: memoryMax)",
        ),
        ("limits", {"core": 1, "CORE": 2}, '"core" twice', "each limit once"),
        ("limits", {"core": -1}, "-1 for core", LIMIT),
        ("limits", {"core": 2**63}, f"{2**63} for core", LIMIT),
        ("limits", {"core": True}, "true for core", LIMIT),
        ("limits", {"core": "1G"}, '"1G" for core', LIMIT),
        ("limits", {"core": [1, 2]}, "a list for core", LIMIT),
        ("limits", {"core": {"soft": 1}}, 'core without "hard"', "both of them"),
        ("limits", {"core": {}}, 'core without "soft"', "both of them"),
        ("limits", {"core": {"max": 1}}, '"max" in core', '"soft" and "hard"'),
        ("limits", {"core": {"soft": 2, "hard": 1}}, "core with soft over hard", "soft up to hard"),
        (
            "limits",
            {"core": {"soft": None, "hard": 1}},
            "core with soft over hard",
            "soft up to hard",
        ),
        ("nice", 20, "20", NICE),
        ("nice", -21, "-21", NICE),
        ("nice", 1.5, "1.5", NICE),
        ("nice", "5", '"5"', NICE),
        (
            "ionice",
            "besteffort",
            '"besteffort", no I/O class',
            'I/O class by name; the nearest is "best-effort"',
        ),
        (
            "ionice",
            "Idle",
            '"Idle", no I/O class',
            'I/O class by name; the nearest is "idle"',
        ),
        ("ionice", "realtime", '"realtime" without a level', 'a level with it, "realtime:4"'),
        ("ionice", "idle:3", 'a level for "idle"', '"idle" alone: it has no levels'),
        (
            "ionice",
            "best-effort:8",
            '"8" as a level',
            "a level from 0 (first) to 7 (last)",
        ),
        ("ionice", "best-effort:", '"" as a level', "a level from 0 (first) to 7 (last)"),
        ("ionice", "realtime:+1", '"+1" as a level', "a level from 0 (first) to 7 (last)"),
        (
            "ionice",
            {"level": 3},
            'null as "class"',
            '"class" and "level"',
        ),
        ("ionice", {"class": "idle", "prio": 1}, '"prio" in ionice', '"class" and "level"'),
        ("oomScoreAdj", 1001, "1001", OOM),
        ("oomScoreAdj", "0", '"0"', OOM),
        ("cpuAffinity", [], "an empty list", "at least one CPU"),
        ("cpuAffinity", "", '"" as a CPU or a range of them', CPUS),
        ("cpuAffinity", "0-3,", '"" as a CPU or a range of them', CPUS),
        ("cpuAffinity", "3-0", '"3-0", which ends before it begins', CPUS),
        ("cpuAffinity", "0-8192", "8192 as a CPU", CPUS),
        ("cpuAffinity", "0-99999999", '"0-99999999" as a CPU or a range of them', CPUS),
        ("cpuAffinity", "٣", '"٣" as a CPU or a range of them', CPUS),
        ("cpuAffinity", [-1], "-1 as a CPU", CPUS),
        ("cpuAffinity", [True], "true as a CPU", CPUS),
        ("cpuAffinity", 3, "3", CPUS),
        ("noNewPrivileges", "yes", '"yes"', None),
        ("capabilities", "ALL", "a string", "a list of capabilities"),
        (
            "capabilities",
            ["CAP_NET_BIND"],
            '"CAP_NET_BIND", no capability',
            f'{NAMES} "NET_BIND_SERVICE"',
        ),
        ("capabilities", ["chwon"], '"chwon", no capability', f'{NAMES} "CHOWN"'),
        (
            "capabilities",
            [10],
            "a number as a capability",
            "names of capabilities, as strings",
        ),
        (
            "capabilities",
            {"effective": []},
            '"effective" in capabilities',
            '"bounding" and "ambient"',
        ),
        ("capabilities", {"bounding": "x"}, 'a string for "bounding"', "a list of capabilities"),
        (
            "capabilities",
            {"bounding": ["CHOWN"], "ambient": ["KILL"]},
            "CAP_KILL in ambient and not in bounding",
            "ambient capabilities that are in bounding too",
        ),
        ("groups", "audio", '"audio"', GROUPS),
        ("groups", ["a:b"], '"a:b" as a group', GROUPS),
        ("groups", ["7\n"], '"7\\n" as a group', GROUPS),
        ("groups", [-1], "-1 as a group", GROUPS),
        ("groups", [2**32 - 1], "4294967295 as a group", GROUPS),
        ("memoryMax", 0, "0", SIZE),
        ("memoryMax", "1023K", '"1023K"', SIZE),
        ("memoryMax", "512MB", '"512MB"', SIZE),
        ("memoryMax", "1.5G", '"1.5G"', SIZE),
        ("memoryMax", "-1M", '"-1M"', SIZE),
        ("memoryMax", "9999999999999999T", '"9999999999999999T"', SIZE),
        ("memoryMax", True, "true", SIZE),
    ],
)
def test_refused(key: str, value: object, found: str, accepted: str | None) -> None:
    """Each wrong value is named with what is accepted, in these words."""
    with pytest.raises(FileError) as caught:
        parsed(**{key: value})
    error = caught.value
    assert (error.key, error.found) == (key, found)
    assert error.accepted == (accepted or error.accepted) != ""


def test_names_are_the_kernels() -> None:
    """Every resource limit that can be written can be set, and every one that Python knows can be written."""
    assert tuple(confinement.RESOURCES) == kernelnames.LIMITS
    python = {name[7:].lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    assert python - {"ofile"} == {*kernelnames.LIMITS, *kernelnames.DEAD_LIMITS} - {"locks"}
    assert len(set(confinement.RESOURCES.values())) == len(kernelnames.LIMITS)


def test_capabilities_are_the_kernels() -> None:
    """The names stand at their numbers (capability.h), and a number beyond them still has words."""
    places = {"CHOWN": 0, "KILL": 5, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_ADMIN": 21}
    places |= {"SETFCAP": 31, "SYSLOG": 34, "AUDIT_READ": 37, "CHECKPOINT_RESTORE": 40}
    assert {name: kernelnames.CAPABILITIES.index(f"CAP_{name}") for name in places} == places
    assert len(set(kernelnames.CAPABILITIES)) == 41
    assert kernelnames.capability(63) == "capability 63"
