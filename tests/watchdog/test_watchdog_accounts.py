"""Users and groups by name or number, from /etc/passwd or from a directory service."""

from __future__ import annotations

import grp
import os
import pwd
import re

import pytest

from taskmaster import accounts
from taskmaster.core.spec import JobSpec
from taskmaster.watchdog import privileges
from taskmaster.watchdog.steps import Step, StepFailed

#: A number that no account of a test host has.
FREE = 4_100_000_000
ACCOUNTS = {
    "CORP\\svc web": pwd.struct_passwd(
        ("CORP\\svc web", "x", 61001, 61002, "", "/home/w", "/bin/sh")
    ),
    "61005": pwd.struct_passwd(("61005", "x", 70001, 70002, "", "/home/n", "/bin/sh")),
    "müller": pwd.struct_passwd(("müller", "x", 61003, 61002, "", "/home/m", "")),
}


@pytest.fixture(autouse=True)
def directory_service(monkeypatch):
    """A few accounts more than the host has."""
    by_name, by_number, group = pwd.getpwnam, pwd.getpwuid, grp.getgrnam

    def named(name):
        return ACCOUNTS.get(name) or by_name(name)

    def numbered(uid):
        found = [one for one in ACCOUNTS.values() if one.pw_uid == uid]
        return found[0] if found else by_number(uid)

    def group_named(name):
        if name == "domain users":
            return grp.struct_group((name, "x", 61002, []))
        return group(name)

    monkeypatch.setattr(pwd, "getpwnam", named)
    monkeypatch.setattr(pwd, "getpwuid", numbered)
    monkeypatch.setattr(grp, "getgrnam", group_named)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid])


def who(runas):
    spec = JobSpec(job="web", argv=("true",), runas=runas)
    return privileges.resolved(spec, Step())


@pytest.mark.parametrize(
    ("runas", "uid", "gid", "home"),
    [
        ("CORP\\svc web", 61001, 61002, "/home/w"),
        ("CORP\\svc web:domain users", 61001, 61002, "/home/w"),
        ("müller:61009", 61003, 61009, "/home/m"),
        ("61003", 61003, 61002, "/home/m"),  # a number that has an account is that account
        ("61005", 70001, 70002, "/home/n"),  # a name of digits is a name
        (f"{FREE}:61002", FREE, 61002, "/"),  # a number needs none, and has no home
    ],
)
def test_who_a_job_becomes(runas, uid, gid, home):
    """By name, by number, and by a number without an account, which needs a group."""
    found = who(runas)
    assert (found.uid, found.gid, found.user.pw_dir) == (uid, gid, home)
    assert found.groups == [gid]


@pytest.mark.parametrize(
    "runas",
    [
        str(FREE),  # no account that would say its group
        *("4294967295", "4294967296", "99999999999999"),  # "no change" to the kernel; too large
        *("nosuchuser", "٣", "0x0", "-0", "1e0"),
        *("root:nosuchgroup", "root:٣", "root:4294967295"),
    ],
)
def test_nobody_by_that_name(runas):
    """What is neither a name nor a number is a failed step, never somebody else."""
    with pytest.raises(StepFailed):
        who(runas)


@pytest.mark.parametrize(
    "name", ["a", "CORP\\svc web", "svc@corp.example", "müller", "x$", "a b c", "0"]
)
def test_names(name):
    """What directory services have is a name to job files, in Python and in the schema."""
    assert re.fullmatch(accounts.NAME, name)


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a:b", "a/b", "-a", "+a", "a\nb", "a\0", "a\x85b", "x" * 257]
)
def test_names_that_are_none(name):
    """Nothing that could be taken for an option, two names, a path, or two lines."""
    assert not re.fullmatch(accounts.NAME, name)
