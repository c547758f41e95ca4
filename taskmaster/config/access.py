"""The key ``access`` of the daemon's file: roles, and the rules that give them.

Here are the rules as they are written and what is wrong with them; ``control/access.py`` decides by them.
Names of users and groups become numbers when the file is read, so a mistyped one is an error at once and
not a door that stays shut, or opens when somebody makes a user of that name.
"""

from __future__ import annotations

import difflib
import enum
import re
from typing import Any, Final

import msgspec

from taskmaster import accounts
from taskmaster.config import kinds
from taskmaster.config.kinds import Kind, Refused, noun, shown
from taskmaster.core import names
from taskmaster.wire.queries import READING, Command

#: Rules, and entries of each list in one; both far over what anybody writes by hand.
_MAX_RULES: Final = 256
_MAX_ENTRIES: Final = 256
_MAX_TEXT: Final = 256
_MAX_ID: Final = 2**32 - 2
_LISTS: Final = ("users", "groups", "certificates", "jobs", "runAs")
_KEYS: Final = ("role", *_LISTS)
_GLOB = re.compile(r"(?:[A-Za-z0-9._*?-]|\[!?[A-Za-z0-9._-]+\])+", re.ASCII)


class Role(enum.IntEnum):
    """What a peer may do; each includes those below it."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As the configuration and the audit log have it."""
        return self.name.lower()


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: ``role`` for these users (uids), groups (gids) and certificates, on jobs of these globs.

    ``run_as``: whom the jobs that they push may run as, ``user`` or ``user:group``; None: themselves alone.
    """

    role: Role
    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    certificates: frozenset[str] = frozenset()
    jobs: tuple[str, ...] = ("*",)
    run_as: tuple[str, ...] | None = None


def rules() -> Kind:
    """A list of rules; gives a tuple of Rule."""
    words = (
        'a list of rules {"role": "viewer", "operator" or "admin", "users": [names or numbers], '
        '"groups": [names or numbers], "certificates": [names], "jobs": [globs], "runAs": [users]}'
    )

    def parse(value: object) -> tuple[Rule, ...]:
        if not isinstance(value, list):
            raise Refused(noun(value))
        if len(value) > _MAX_RULES:
            raise Refused(f"{len(value)} rules", f"at most {_MAX_RULES} rules")
        found = []
        for number, item in enumerate(value, 1):
            try:
                found.append(_rule(item))
            except Refused as refused:
                raise Refused(f"in rule {number}: {refused.found}", refused.accepted) from None
        return tuple(found)

    texts = {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": _MAX_ENTRIES}
    ids = {
        "type": "array",
        "items": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "integer", "minimum": 0, "maximum": _MAX_ID},
            ]
        },
        "maxItems": _MAX_ENTRIES,
    }
    item = {
        "type": "object",
        "properties": {
            "role": {"enum": [role.word for role in Role]},
            **dict.fromkeys(("users", "groups"), ids),
            **dict.fromkeys(("certificates", "jobs", "runAs"), texts),
        },
        "required": ["role"],
        "additionalProperties": False,
    }
    return Kind(words, parse, {"type": "array", "items": item, "maxItems": _MAX_RULES})


def _rule(item: object) -> Rule:
    if not isinstance(item, dict):
        raise Refused(noun(item))
    for key in item:
        if key not in _KEYS:
            raise Refused(f"an unknown key {shown(key)}", f"{_listed(_KEYS)}{_nearest(key, _KEYS)}")
    lists = {key: _list(key, item[key]) for key in _LISTS if key in item}
    rule = Rule(
        role=_role(item.get("role")),
        users=frozenset(_id("users", one) for one in lists.get("users", ())),
        groups=frozenset(_id("groups", one) for one in lists.get("groups", ())),
        certificates=frozenset(_text("certificates", one) for one in lists.get("certificates", ())),
        jobs=tuple(_glob(one) for one in lists.get("jobs", ("*",))),
        run_as=tuple(_user(one) for one in lists["runAs"]) if "runAs" in lists else None,
    )
    if not (rule.users or rule.groups or rule.certificates):
        raise Refused("nobody whom it is for", "at least one of users, groups, certificates")
    if not rule.jobs:
        raise Refused("an empty list as jobs", 'at least one glob; "*" or no key: all jobs')
    if rule.run_as is not None and rule.role is not Role.ADMIN:
        raise Refused(
            f"runAs with the role {rule.role.word}", "runAs with the role admin, which may push"
        )
    return rule


def _role(value: object) -> Role:
    words = {role.word: role for role in Role}
    if value is None:
        raise Refused("no role", _listed(words))
    if not isinstance(value, str) or value not in words:
        near = _nearest(value, words) if isinstance(value, str) else ""
        raise Refused(f"the role {shown(value)}", f"{_listed(words)}{near}")
    return words[value]


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(f"{noun(value)} as {key}", "a list")
    if len(value) > _MAX_ENTRIES:
        raise Refused(f"{len(value)} entries in {key}", f"at most {_MAX_ENTRIES}")
    return value


def _text(key: str, value: object) -> str:
    try:
        return kinds.text(value, _MAX_TEXT)
    except Refused as refused:
        accepted = refused.accepted or "strings that are not empty"
        raise Refused(f"{refused.found} in {key}", accepted) from None


def _id(key: str, value: object) -> int:
    """A uid or gid by its number or its name."""
    number = kinds.whole_in(value, 0, _MAX_ID)
    if number is not None:
        return number
    what = "user" if key == "users" else "group"
    if not isinstance(value, str):
        raise Refused(f"{shown(value)} in {key}", f"names of {key}, or numbers from 0 to {_MAX_ID}")
    name = _text(key, value)
    found = accounts.user_number(name) if key == "users" else accounts.group_number(name)
    if found is None:
        raise Refused(
            f"{shown(name)} in {key}, which no {what} is called",
            f"names that the system knows (id, getent {'passwd' if key == 'users' else 'group'}), or numbers",
        )
    return found


def _glob(value: object) -> str:
    text = _text("jobs", value)
    if not _GLOB.fullmatch(text):
        raise Refused(
            f"{shown(text)} in jobs",
            "globs of job names: letters, digits, . _ -, and * ? [abc] [!abc]",
        )
    if not any(c in text for c in "*?[") and not names.is_valid(text):
        raise Refused(f"{shown(text)} in jobs", "names that a job can have, or globs of such")
    return text


def _user(value: object) -> str:
    """``user`` or ``user:group``, both of which there must be."""
    text = _text("runAs", value)
    user, colon, group = text.partition(":")
    if colon and not group:
        raise Refused(f"{shown(text)} in runAs", '"user" or "user:group"')
    _id("users", user)
    if group:
        _id("groups", group)
    return text


def _listed(words: Any) -> str:
    return ", ".join(words)


def _nearest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word[:64].lower(), {one.lower(): one for one in known}, n=1)
    folded = {one.lower(): one for one in known}
    return f'; the nearest is "{folded[near[0]]}"' if near else ""


def socket_mode() -> Kind:
    """The mode of a socket in octal digits; gives the number."""
    kind = kinds.pattern("0?[2367][0-7][0-7]", 'octal digits in a string, "0600" to "0777"')
    return Kind(kind.accepted, lambda value: int(kind.parse(value), 8), kind.schema)


def changing_commands() -> Kind:
    """A list of commands that change something; gives a frozenset."""
    known = {command.value: command for command in Command if command not in READING}
    words = f"a list of commands: {_listed(known)}"

    def parse(value: object) -> frozenset[Command]:
        if not isinstance(value, list):
            raise Refused(noun(value))
        for item in value:
            if not isinstance(item, str) or item not in known:
                near = _nearest(item, known) if isinstance(item, str) else ""
                raise Refused(shown(item), f"{words}{near}" if near else "")
        return frozenset(known[item] for item in value)

    return Kind(words, parse, {"type": "array", "items": {"enum": list(known)}})


def idle_time() -> Kind:
    """Seconds, or 0 for no end."""
    kind = kinds.seconds(1, 31_536_000)

    def parse(value: object) -> float:
        return 0.0 if kinds.is_number(value) and value == 0 else float(kind.parse(value))

    schema = {"anyOf": [{"const": 0}, kind.schema]}
    return Kind(f"{kind.accepted}, or 0: for ever", parse, schema)
