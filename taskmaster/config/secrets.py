"""Whether a job file has a secret in the clear, so that not everybody who may see the job may see its file.

It judges bytes as they are on the disk, which need not be a usable job file; where they cannot be read as
one, it assumes the worse. Nothing of a value leaves this file.
"""

from __future__ import annotations

import re
from typing import Final

from taskmaster.config import jsonc, keys
from taskmaster.config.jobfile import JOB_KEYS

#: Keys whose values are no variables, whatever they are called.
_KNOWN: Final = frozenset(row.name for row in JOB_KEYS) - {"env"}
#: A name longer than this counts as that of a secret, unlooked at: a search may be cubic in its length.
_MAX_NAME: Final = 128


def holds_secret(data: bytes, pattern: str | re.Pattern[str]) -> bool:
    """Whether ``env`` in the job file ``data`` sets a variable whose name ``pattern`` is found in to anything.

    An empty value is no secret. True as well where ``data`` is no JSON object, and for such a name below a key
    that there is not ("enviroment"): a misspelt file is shown by ``pull`` too.
    """
    try:
        members = jsonc.loads(data, keys.MAX_BYTES)
    except jsonc.JsonError:
        return True
    if not isinstance(members, dict):
        return True
    compiled = re.compile(pattern)
    return any(
        _has(value, compiled)
        or (name not in _KNOWN and name != "env" and _is_secret(name, value, compiled))
        for name, value in members.items()
        # Variables below a key of another meaning ("envFile": {...}) are refused, and are there all the same.
        if name not in _KNOWN or isinstance(value, dict)
    )


def _has(value: object, pattern: re.Pattern[str]) -> bool:
    """In an object of variables, a list of {"name", "value"}, and whatever else people write instead."""
    if isinstance(value, list):
        return any(_has(one, pattern) for one in value)
    if isinstance(value, str):
        # "PASSWORD=x", as other programs write it.
        name, _, content = value.partition("=")
        return _is_secret(name, content, pattern)
    if not isinstance(value, dict):
        return False
    called = value.get("name")
    if isinstance(called, str) and _is_secret(called, value.get("value"), pattern):
        return True
    return any(_is_secret(key, one, pattern) or _has(one, pattern) for key, one in value.items())


def _is_secret(name: str, value: object, pattern: re.Pattern[str]) -> bool:
    if value in ("", None):
        return False
    return len(name) > _MAX_NAME or pattern.search(name) is not None
