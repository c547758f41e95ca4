"""Users and groups by name or number, as ``chown`` reads them: a name first, whatever it looks like.

One place for daemon and watchdog, since what a rule allows and what a job becomes must be the same user.
Names come from directory services too: with blanks, as ``DOMAIN\\user``, as ``user@domain``. A number needs no
account. It never guesses: what is neither a name that there is nor a number is None.
"""

from __future__ import annotations

import grp
import os
import pwd
from typing import Final

#: The largest number of a user or group: the one above means "no change" to the kernel.
MAX_ID: Final = (1 << 32) - 2
_EDGE: Final = r"[^:/\u0000-\u0020\u007f-\u00a0\u2028\u2029]"
#: A name, in a regular expression of Python and of JSON schemas: no colon, no slash, blanks only within.
NAME: Final = rf"(?![-+]){_EDGE}(?:[^:/\u0000-\u001f\u007f-\u009f\u2028\u2029]{{0,254}}{_EDGE})?"


def user(name: str) -> pwd.struct_passwd | None:
    """The account of this name or number; None where there is none."""
    try:
        return pwd.getpwnam(name)
    except (KeyError, UnicodeEncodeError):
        pass
    number = _number(name)
    if number is None:
        return None
    try:
        return pwd.getpwuid(number)
    except KeyError:
        return None


def user_number(name: str) -> int | None:
    """The uid of this name or number, which needs no account."""
    found = user(name)
    return _number(name) if found is None else found.pw_uid


def group_number(name: str) -> int | None:
    """The gid of this name or number, which needs no entry."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, UnicodeEncodeError):
        return _number(name)


def without_account(uid: int, gid: int) -> pwd.struct_passwd:
    """What a user has that no account says anything of."""
    return pwd.struct_passwd((str(uid), "x", uid, gid, "", "/", "/bin/sh"))


def groups(account: pwd.struct_passwd, gid: int) -> list[int]:
    """The groups of a user whose main group is ``gid``."""
    return os.getgrouplist(account.pw_name, gid)


def _number(text: str) -> int | None:
    # isdigit alone admits other scripts' digits; ten characters hold the largest number.
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID:
        return int(text)
    return None
