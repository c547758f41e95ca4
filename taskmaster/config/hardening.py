"""The kinds of the keys that say what a job may do: limits, priorities, capabilities, groups, memory.

It checks form alone. Whether the kernel knows a capability, the host a group and the daemon has the right
is found out when a process is started, and is a failed start then.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Final

from taskmaster import accounts
from taskmaster.config.kinds import Kind, Refused, Schema, noun, shown, whole_in
from taskmaster.core import kernelnames
from taskmaster.core.spec import MAX_CPU, UNLIMITED, Capabilities

#: The largest value that is not "unlimited" already.
_MAX_LIMIT: Final = 2**63 - 1
#: The largest number of a user or group; the one above it is the kernel's own "none".
_MAX_ID: Final = 2**32 - 2
_IO_CLASSES: Final = {"realtime": 1, "best-effort": 2, "idle": 3}
_IO_LEVEL: Final = 4  # what the kernel gives a process that has asked for nothing
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,16})([KMGT]?)", re.ASCII | re.IGNORECASE)
_CPUS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


def _nearest(name: str, known: Iterable[str]) -> str:
    # First what it is the beginning of: by letters alone NET_ADMIN is nearer to NET_BIND than what was meant.
    longer = [one for one in known if name and one.startswith(name)]
    near = longer or difflib.get_close_matches(name[:64], list(known), n=1, cutoff=0.0)
    return f'the nearest is "{near[0]}"'


def _named(value: object, folded: str, known: dict[str, int], what: str) -> int:
    """What ``known`` has under ``folded``, the name as it is compared; else Refused, with the nearest there is."""
    found = known.get(folded)
    if found is None:
        raise Refused(f"{shown(value)}, no {what}", f"{what} by name; {_nearest(folded, known)}")
    return found


def _only(value: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in keys:
            raise Refused(f"{shown(key)} in {where}", " and ".join(f'"{one}"' for one in keys))


# resource limits ----------------------------------------------------------------------------------


def limits() -> Kind:
    """rlimits; gives (name, soft, hard) sorted by name, UNLIMITED for no limit."""
    words = (
        'an object of resource limits by name (without RLIMIT_), {"nofile": 1024}; each a number, '
        '"unlimited" (null), or {"soft": …, "hard": …}'
    )

    def parse(value: object) -> tuple[tuple[str, int, int], ...]:
        if not isinstance(value, dict):
            raise Refused(shown(value))
        found: dict[str, tuple[int, int]] = {}
        for key, given in value.items():
            name = _limit_name(key)
            if name in found:
                raise Refused(f"{shown(name)} twice", "each limit once")
            found[name] = _limit(name, given)
        return tuple((name, soft, hard) for name, (soft, hard) in sorted(found.items()))

    one: Schema = {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": _MAX_LIMIT},
            {"type": "null"},
            {"enum": ["unlimited"]},
        ]
    }
    pair = {
        "type": "object",
        "properties": {"soft": one, "hard": one},
        "required": ["soft", "hard"],
        "additionalProperties": False,
    }
    schema = {"type": "object", "additionalProperties": {"anyOf": [*one["anyOf"], pair]}}
    return Kind(words, parse, schema)


def _limit_name(key: str) -> str:
    name = key.lower().removeprefix("rlimit_")
    since = kernelnames.DEAD_LIMITS.get(name)
    if since is not None:
        raise Refused(
            f"{shown(key)}, which Linux does not enforce since {since}",
            "limits that are enforced (for memory: memoryMax)",
        )
    if name not in kernelnames.LIMITS:
        raise Refused(
            f"{shown(key)}, no resource limit",
            f"resource limits by name; {_nearest(name, kernelnames.LIMITS)}",
        )
    return name


def _limit(name: str, given: object) -> tuple[int, int]:
    if not isinstance(given, dict):
        value = _limit_value(name, given)
        return value, value
    _only(given, ("soft", "hard"), name)
    if len(given) != 2:
        raise Refused(f'{name} without "{"hard" if "soft" in given else "soft"}"', "both of them")
    soft, hard = _limit_value(name, given["soft"]), _limit_value(name, given["hard"])
    if hard != UNLIMITED and (soft == UNLIMITED or soft > hard):
        raise Refused(f"{name} with soft over hard", "soft up to hard")
    return soft, hard


def _limit_value(name: str, given: object) -> int:
    if given is None or given == "unlimited":
        return UNLIMITED
    number = whole_in(given, 0, _MAX_LIMIT)
    if number is None:
        raise Refused(
            f"{shown(given)} for {name}", f'a whole number from 0 to {_MAX_LIMIT}, or "unlimited"'
        )
    return number


# priorities ---------------------------------------------------------------------------------------


def io_priority() -> Kind:
    """Class and level of I/O; gives the two numbers of ioprio_set(2)."""
    words = (
        '"idle", "best-effort" or "realtime", the last two with a level as in "best-effort:0" '
        '(0 first, 7 last), or {"class": …, "level": …}'
    )

    def parse(value: object) -> tuple[int, int]:
        level: object
        if isinstance(value, dict):
            _only(value, ("class", "level"), "ionice")
            name, level = value.get("class"), value.get("level")
            if not isinstance(name, str):
                raise Refused(f'{noun(name)} as "class"', '"class" and "level"')
        elif isinstance(value, str):
            name, colon, digits = value.partition(":")
            # Not int(): it takes "+1", "1_0" and digits of other scripts.
            level = {str(n): n for n in range(8)}.get(digits, digits) if colon else None
        else:
            raise Refused(shown(value))
        number = _named(name, name, _IO_CLASSES, "I/O class")
        if level is None and name == "realtime":
            raise Refused('"realtime" without a level', 'a level with it, "realtime:4"')
        if name == "idle":
            if level is not None:
                raise Refused('a level for "idle"', '"idle" alone: it has no levels')
            return _IO_CLASSES["idle"], 0
        found = _IO_LEVEL if level is None else whole_in(level, 0, 7)
        if found is None:
            raise Refused(f"{shown(level)} as a level", "a level from 0 (first) to 7 (last)")
        return number, found

    schema = {
        "anyOf": [
            {"type": "string", "pattern": "^(?:idle|best-effort(?::[0-7])?|realtime:[0-7])$"},
            {
                "type": "object",
                "properties": {
                    "class": {"enum": list(_IO_CLASSES)},
                    "level": {
                        "anyOf": [
                            {"type": "integer", "minimum": 0, "maximum": 7},
                            {"type": "null"},
                        ]
                    },
                },
                "required": ["class"],
                "additionalProperties": False,
            },
        ]
    }
    return Kind(words, parse, schema)


def cpus() -> Kind:
    """A set of CPUs; gives their numbers in order."""
    words = f'CPU numbers from 0 to {MAX_CPU}: a list, or a string as in "0-3,5"'

    def parse(value: object) -> tuple[int, ...]:
        if isinstance(value, str):
            found = {cpu for part in value.split(",") for cpu in _cpu_range(part.strip())}
        elif isinstance(value, list):
            found = {_cpu(one) for one in value}
        else:
            raise Refused(shown(value))
        if not found:
            raise Refused("an empty list", "at least one CPU")
        return tuple(sorted(found))

    number = {"type": "integer", "minimum": 0, "maximum": MAX_CPU}
    listed = {"type": "array", "items": number, "minItems": 1}
    text = {"type": "string", "pattern": "^[0-9, -]+$"}
    return Kind(words, parse, {"anyOf": [listed, text]})


def _cpu(value: object) -> int:
    number = whole_in(value, 0, MAX_CPU)
    if number is None:
        raise Refused(f"{shown(value)} as a CPU")
    return number


def _cpu_range(part: str) -> range:
    match = _CPUS.fullmatch(part)
    if match is None:
        raise Refused(f"{shown(part)} as a CPU or a range of them")
    first, last = _cpu(int(match[1])), _cpu(int(match[2] or match[1]))
    if last < first:
        raise Refused(f"{shown(part)}, which ends before it begins")
    return range(first, last + 1)


# rights -------------------------------------------------------------------------------------------


def capabilities() -> Kind:
    """Bounding and ambient set; gives Capabilities."""
    words = (
        'names of capabilities, with or without CAP_: {"bounding": […], "ambient": […]}, '
        "or a list for both"
    )
    known = {name.removeprefix("CAP_"): n for n, name in enumerate(kernelnames.CAPABILITIES)}

    def names(value: object, where: str) -> tuple[int, ...]:
        if not isinstance(value, list):
            raise Refused(f"{noun(value)}{where}", "a list of capabilities")
        return tuple(sorted({one(each) for each in value}))

    def one(value: object) -> int:
        if not isinstance(value, str):
            raise Refused(f"{noun(value)} as a capability", "names of capabilities, as strings")
        return _named(value, value.upper().removeprefix("CAP_"), known, "capability")

    def parse(value: object) -> Capabilities:
        if not isinstance(value, dict):
            both = names(value, "")
            return Capabilities(both, both)
        _only(value, ("bounding", "ambient"), "capabilities")
        bounding, ambient = value.get("bounding"), value.get("ambient")
        found = Capabilities(
            None if bounding is None else names(bounding, ' for "bounding"'),
            () if ambient is None else names(ambient, ' for "ambient"'),
        )
        if found.bounding is not None and not set(found.ambient) <= set(found.bounding):
            beyond = min(set(found.ambient) - set(found.bounding))
            raise Refused(
                f"{kernelnames.capability(beyond)} in ambient and not in bounding",
                "ambient capabilities that are in bounding too",
            )
        return found

    listed = {"type": "array", "items": {"type": "string", "minLength": 1}}
    absent = {"anyOf": [listed, {"type": "null"}]}
    both = {
        "type": "object",
        "properties": {"bounding": absent, "ambient": absent},
        "additionalProperties": False,
    }
    return Kind(words, parse, {"anyOf": [listed, both]})


def groups() -> Kind:
    """Supplementary groups by name or number, in the order given."""
    words = f"a list of groups, by name or by number (0 to {_MAX_ID})"
    name = re.compile(accounts.NAME)

    def one(value: object) -> str | int:
        if isinstance(value, str) and name.fullmatch(value):
            return value
        number = whole_in(value, 0, _MAX_ID)
        if number is None:
            raise Refused(f"{shown(value)} as a group")
        return number

    def parse(value: object) -> tuple[str | int, ...]:
        if not isinstance(value, list):
            raise Refused(shown(value))
        return tuple(dict.fromkeys(one(each) for each in value))

    item = {
        "anyOf": [
            {"type": "string", "pattern": f"^(?:{name.pattern})$"},
            {"type": "integer", "minimum": 0, "maximum": _MAX_ID},
        ]
    }
    return Kind(words, parse, {"type": "array", "items": item})


def size(low: int, high: int) -> Kind:
    """A number of bytes, as a number or with a unit; ``low`` and ``high`` in bytes."""
    words = f'bytes: a whole number from {low} to {high}, or with a unit of 1024 as in "512M" (K, M, G, T)'

    def parse(value: object) -> int:
        number = whole_in(value, low, high)
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            if match is None:
                raise Refused(shown(value))
            number = whole_in(int(match[1]) * _UNITS[match[2].upper()], low, high)
        if number is None:
            raise Refused(shown(value))
        return number

    text = {"type": "string", "pattern": "^[0-9]+[KMGTkmgt]?$"}
    schema = {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, text]}
    return Kind(words, parse, schema)
