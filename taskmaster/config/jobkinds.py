"""The kinds of values that only job files have: commands, signals, output files, environments.

It checks form alone; whether a program, user or folder exists is found out when a process is spawned.
Values of ``env`` are secrets and never get into an error.
"""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

from taskmaster import accounts
from taskmaster.config import kinds, signals
from taskmaster.config.kinds import Kind, Refused, noun, one_or_list, shown, whole_in
from taskmaster.core.spec import NO_INPUT, OPEN_INPUT, RestartPolicy, StopTo

#: Bytes of a command given as a string. shlex is quadratic in the length of a word: 64 KiB take 0.08 s.
MAX_COMMAND: Final = 65536
#: Bytes of one argument or NAME=VALUE: MAX_ARG_STRLEN less its NUL (linux/binfmts.h).
MAX_ARGUMENT: Final = 131071

_POLICIES: Final = tuple(RestartPolicy)
#: Names that a process has for its own standard output and error: for the daemon's, where a job's go there.
_OURS: Final = {
    f"{folder}{name}": stream
    for stream, number in (("/dev/stdout", 1), ("/dev/stderr", 2))
    for folder, name in (("/dev/", stream[5:]), ("/dev/fd/", number), ("/proc/self/fd/", number))
}
_LAST_DOTS = re.compile(r"(?:^|/)\.\.?$")


def command() -> Kind:
    """A string, or a tuple of words; what becomes of a string depends on ``shell``."""

    def parse(value: object) -> str | tuple[str, ...]:
        if not isinstance(value, list):
            return kinds.text(value, MAX_COMMAND)
        if not value:
            raise Refused("an empty list")
        if value[0] == "":
            raise Refused('"" as word 0 of the list', "a program as the first word")
        return tuple(_word(number, word) for number, word in enumerate(value))

    words = "a command as a string, or as a list of words (strings, the first one not empty)"
    line = {**kinds.NO_NUL, "minLength": 1}
    rest = {"type": "array", "items": kinds.NO_NUL, "minItems": 1, "prefixItems": [line]}
    return Kind(words, parse, {"anyOf": [line, rest]})


def _word(number: int, word: object) -> str:
    if word == "":
        return ""
    try:
        return kinds.text(word, MAX_ARGUMENT)
    except Refused as refused:
        raise Refused(f"{refused.found} as word {number} of the list", refused.accepted) from None


def argv(value: str | tuple[str, ...], shell: bool) -> tuple[str, ...]:
    """The argument vector of a parsed command; raises Refused."""
    if shell:
        if not isinstance(value, str):
            raise Refused("a list, with shell true", "a string (a list needs no shell)")
        if not value.strip():
            raise Refused(shown(value), "a command for /bin/sh")
        # exec: the shell becomes the program, so that signals and exit status are the program's own. Before
        # a list, a loop or an assignment it would mean something else: "exec cd /x && run" runs nothing.
        return ("/bin/sh", "-c", f"exec {value}" if _is_simple(value) else value)
    return value if isinstance(value, tuple) else _split(value)


_COMPOUND = re.compile(
    r"[;&|\n(){}]|^\s*(?:[A-Za-z_]\w*=|(?:!|if|for|while|until|case|cd|exec|export|ulimit|umask|set|\.)(?:\s|$))",
    re.ASCII,
)


def _is_simple(line: str) -> bool:
    """Whether a shell line is one program with its arguments, as far as can be seen without a shell."""
    # "2>&1" and "&>" are redirections, "${x}" is an expansion.
    return _COMPOUND.search(re.sub(r"[<>]&|&>|\$\{\w+\}", "", line)) is None


def _split(value: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(value, posix=True))
    except ValueError as error:
        # Its two messages are "No closing quotation" and "No escaped character".
        raise Refused(f"{shown(value)}: {error}", "a command with balanced quotes") from None
    if not words or not words[0]:
        raise Refused(shown(value), "a command whose first word is a program")
    return words


def restart_policy() -> Kind:
    """A RestartPolicy by its word, or by its number in the older format."""

    def parse(value: object) -> RestartPolicy:
        number = whole_in(value, 0, len(_POLICIES) - 1)
        if number is not None:
            return _POLICIES[number]
        for policy in _POLICIES:
            if value == policy.value:
                return policy
        raise Refused(shown(value))

    words = " or ".join(f'"{policy.value}" ({n})' for n, policy in enumerate(_POLICIES))
    return Kind(words, parse, {"enum": [*(p.value for p in _POLICIES), 0, 1, 2]})


def stop_to() -> Kind:
    """A StopTo by its word."""

    def parse(value: object) -> StopTo:
        for one in StopTo:
            if value == one.value:
                return one
        raise Refused(shown(value))

    words = " or ".join(f'"{one.value}"' for one in StopTo)
    return Kind(words, parse, {"enum": [one.value for one in StopTo]})


def exit_codes() -> Kind:
    """One exit code or a list; gives a sorted tuple."""
    words = "a whole number from 0 to 255, or a list of such"

    def one(value: object) -> int:
        number = whole_in(value, 0, 255)
        if number is None:
            raise Refused(shown(value))
        return number

    parse, schema = one_or_list(words, one, {"type": "integer", "minimum": 0, "maximum": 255})
    return Kind(words, lambda value: tuple(sorted(set(parse(value)))), schema)


def _signal(value: object) -> int:
    if isinstance(value, str):
        number = signals.named(value)
    else:
        number = whole_in(value, 1, 64)
        number = number if number is not None and signals.is_valid(number) else None
    if number is None:
        raise Refused(shown(value))
    return number


def _signal_schema(minimum: int) -> kinds.Schema:
    name = {"type": "string", "pattern": f"^{signals.NAME}$"}
    return {"anyOf": [name, {"type": "integer", "minimum": minimum, "maximum": 64}]}


def stop_signal() -> Kind:
    """One real signal; gives its number."""
    return Kind(signals.ACCEPTED, _signal, _signal_schema(1))


def exit_signals() -> Kind:
    """A signal, a list of signals, or 0 for none; gives a sorted tuple of numbers."""
    words = f"{signals.ACCEPTED}, or a list of such; 0: none"

    def one(value: object) -> int:
        return 0 if whole_in(value, 0, 0) is not None else _signal(value)

    parse, schema = one_or_list(words, one, _signal_schema(0))
    return Kind(words, lambda value: tuple(sorted(set(parse(value)) - {0})), schema)


def output(inherited: str, special: str = "") -> Kind:
    """A path for output, or None; one of INHERITED for the daemon's own, ``inherited`` being the stream's.
    ``special`` is what the words say of a further value."""
    words = (
        "a file: a relative path without .. (below the job's log directory) or an absolute one; "
        'null: discard; "inherit": that of taskmasterd, "/dev/stdout" or "/dev/stderr": '
        f"this one of its two{special}"
    )

    def parse(value: object) -> str | None:
        if value is None:
            return None
        if value == "inherit":
            return inherited
        path = kinds.text(value, kinds.MAX_PATH)
        names_folder = path.endswith("/") or _LAST_DOTS.search(path)
        if names_folder or (not path.startswith("/") and ".." in path.split("/")):
            raise Refused(shown(value))
        named = plain(path)
        return _OURS.get(named, named)

    schema = {"anyOf": [{**kinds.NO_NUL, "minLength": 1}, {"type": "null"}]}
    return Kind(words, parse, schema)


def plain(path: str) -> str:
    """``path`` without doubled slashes and ``.``; what ``..`` means only the kernel can tell."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts)


def standard_input() -> Kind:
    """NO_INPUT, OPEN_INPUT or a path."""
    words = (
        f'"{NO_INPUT}" (or null): at its end at once; "{OPEN_INPUT}": a pipe that nobody writes to and '
        "that never ends; else a file"
    )

    def parse(value: object) -> str:
        return NO_INPUT if value is None else kinds.text(value, kinds.MAX_PATH)

    schema = {"anyOf": [{**kinds.NO_NUL, "minLength": 1}, {"type": "null"}]}
    return Kind(words, parse, schema)


def environment() -> Kind:
    """Environment variables; gives (name, value) pairs sorted by name, as their order means nothing."""
    words = (
        'an object of strings, {"NAME": "value"}, or a list of {"name": "NAME", "value": "value"}'
    )

    def parse(value: object) -> tuple[tuple[str, str], ...]:
        pairs: dict[str, str] = {}
        for name, content in _pairs(value):
            if name in pairs:
                raise Refused(f"{shown(name)} twice", "each name once")
            pairs[name] = _content(name, content)
        return tuple(sorted(pairs.items()))

    name = {"type": "string", "minLength": 1, "pattern": "^[^=\\u0000]+$"}
    item = {
        "type": "object",
        "properties": {"name": name, "value": kinds.NO_NUL},
        "required": ["name", "value"],
        "additionalProperties": False,
    }
    as_object = {"type": "object", "propertyNames": name, "additionalProperties": kinds.NO_NUL}
    return Kind(words, parse, {"anyOf": [as_object, {"type": "array", "items": item}]})


def _pairs(value: object) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(_name(name), content) for name, content in value.items()]
    if not isinstance(value, list):
        raise Refused(noun(value))
    pairs = []
    for number, item in enumerate(value):
        if not isinstance(item, dict) or set(item) != {"name", "value"}:
            # Not even the keys of a wrong item are shown: {"PASSWORD": "x"} the wrong way round.
            found = "an object with other keys" if isinstance(item, dict) else noun(item)
            raise Refused(f"{found} as item {number}", 'items {"name": "NAME", "value": "value"}')
        pairs.append((_name(item["name"]), item["value"]))
    return pairs


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise Refused(f"{noun(name)} as a name", "names that are strings")
    if not name:
        raise Refused("an empty name", "names that are not empty")
    if "=" in name:
        # What follows the sign is most likely the value, so only what stands before it is shown.
        before = name.partition("=")[0]
        raise Refused(f"a name with = after {shown(before)}", "names without =")
    if "\0" in name:
        raise Refused("a name with a NUL character", "names without NUL")
    return name


def _content(name: str, content: object) -> str:
    if not isinstance(content, str):
        raise Refused(
            f"{noun(content)} for {shown(name)}",
            'strings as values (a number or boolean goes in quotes: "1", "true")',
        )
    if "\0" in content:
        raise Refused(f"a NUL character in the value of {shown(name)}", "values without NUL")
    size = len(name.encode()) + len(content.encode()) + 1
    if size > MAX_ARGUMENT:
        raise Refused(
            f"{size} bytes for {shown(name)}", f"at most {MAX_ARGUMENT} bytes for NAME=VALUE"
        )
    return content


def umask() -> Kind:
    """File mode mask in octal digits; gives the number."""
    kind = kinds.pattern("0?[0-7]{1,3}", 'octal digits in a string, "0000" to "0777"')
    return Kind(kind.accepted, lambda value: int(kind.parse(value), 8), kind.schema)


def user() -> Kind:
    """``user`` or ``user:group``, or empty for whoever runs taskmasterd."""
    name = accounts.NAME
    return kinds.pattern(
        f"(?:{name}(?::{name})?)?",
        'a user, "user:group" (names or numbers), or "": whoever runs taskmasterd',
    )
