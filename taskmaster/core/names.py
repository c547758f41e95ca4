"""Job names: the one definition of what a valid one is.

A name becomes a file name, a directory name and a word in log lines, so the alphabet is closed:
no slash, no leading dot, no blank, nothing that a shell or a terminal would act on.
"""

from __future__ import annotations

import re
from typing import Final

from taskmaster.errors import InvalidJobName

FILE_SUFFIX = ".tm.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def is_valid(name: str) -> bool:
    """Whether ``name`` may name a job."""
    return _NAME.fullmatch(name) is not None and not name.endswith(FILE_SUFFIX)


def checked(name: str) -> str:
    """Return ``name``; raises InvalidJobName where it may not name a job."""
    if not is_valid(name):
        raise InvalidJobName
    return name


#: Left in a job's log folder by a watchdog that met something it does not expect.
CRASH_FILE: Final = "watchdog.crash"
