"""The keys that decide who may do what: rules, secretPattern, socketMode, requireReason, and open networks."""

from __future__ import annotations

import json
import os
import pwd
import re
import time

import pytest
from config_disk import UID, written

from taskmaster.config.access import Role, Rule
from taskmaster.config.daemon import load
from taskmaster.config.secretnames import DEFAULT_PATTERN, pattern
from taskmaster.config.secrets import holds_secret
from taskmaster.errors import FileError
from taskmaster.wire.queries import READING, Command


def loaded(tmp_path, **members):
    return load(written(tmp_path / "config.json", json.dumps(members).encode()), {}, UID)


def refused(tmp_path, **members):
    with pytest.raises(FileError) as caught:
        loaded(tmp_path, **members)
    assert caught.value.file == str(tmp_path / "config.json")
    return caught.value


NOBODY = pwd.getpwnam("nobody")
RULE = {"role": "viewer", "users": ["nobody"]}


def test_rules(tmp_path):
    """A rule's names become numbers; what is not given is everything for jobs, and nobody else for runAs."""
    config = loaded(
        tmp_path,
        access=[
            RULE,
            {"role": "operator", "users": [12345], "groups": ["root", 7], "jobs": ["web-*", "db"]},
            {"role": "admin", "certificates": ["ops-1"], "jobs": ["[!x]?.*"], "runAs": ["nobody", "root:root"]},
        ],
    )  # fmt: skip
    assert config.access == (
        Rule(role=Role.VIEWER, users=frozenset({NOBODY.pw_uid})),
        Rule(
            role=Role.OPERATOR,
            users=frozenset({12345}),
            groups=frozenset({0, 7}),
            jobs=("web-*", "db"),
        ),
        Rule(
            role=Role.ADMIN,
            certificates=frozenset({"ops-1"}),
            jobs=("[!x]?.*",),
            run_as=("nobody", "root:root"),
        ),
    )
    assert loaded(tmp_path).access == ()


@pytest.mark.parametrize(
    ("rules", "found", "accepted"),
    [
        ({}, "an object", "a list of rules"),
        (["x"], "in rule 1: a string", "a list of rules"),
        ([RULE, {"users": [0]}], "in rule 2: no role", "viewer, operator, admin"),
        ([RULE | {"role": "operater"}], 'the role "operater"', 'the nearest is "operator"'),
        ([RULE | {"role": 3}], "the role 3", "viewer, operator, admin"),
        ([RULE | {"user": []}], 'an unknown key "user"', 'the nearest is "users"'),
        ([RULE | {"runas": []}], 'an unknown key "runas"', 'the nearest is "runAs"'),
        ([{"role": "viewer"}], "nobody whom it is for", "users, groups, certificates"),
        ([{"role": "viewer", "users": []}], "nobody whom it is for", "at least one"),
        ([RULE | {"users": "nobody"}], "a string as users", "a list"),
        ([RULE | {"users": ["no.such.user"]}], '"no.such.user" in users, which no user', "getent passwd"),
        ([RULE | {"groups": ["no.such.group"]}], "which no group is called", "getent group"),
        ([RULE | {"users": [-1]}], "-1 in users", "numbers from 0"),
        ([RULE | {"users": [True]}], "true in users", "names of users"),
        ([RULE | {"users": [4294967295]}], "4294967295", "numbers from 0"),
        ([RULE | {"users": [""]}], '"" in users', "not empty"),
        ([RULE | {"certificates": ["a\0"]}], "NUL", "without NUL"),
        ([RULE | {"jobs": []}], "an empty list as jobs", '"*"'),
        ([RULE | {"jobs": ["web/*"]}], '"web/*" in jobs', "globs of job names"),
        ([RULE | {"jobs": ["web-[1"]}], "in jobs", "globs of job names"),
        ([RULE | {"jobs": [".hidden"]}], '".hidden" in jobs', "names that a job can have"),
        ([RULE | {"jobs": ["x.tm.json"]}], "in jobs", "names that a job can have"),
        ([RULE | {"runAs": ["nobody"]}], "runAs with the role viewer", "the role admin"),
        ([RULE | {"role": "admin", "runAs": ["no.such.user"]}], "no.such.user", "getent passwd"),
        ([RULE | {"role": "admin", "runAs": ["nobody:no.such.group"]}], "no.such.group", "getent group"),
        ([RULE | {"role": "admin", "runAs": ["nobody:"]}], '"nobody:" in runAs', '"user:group"'),
        ([RULE] * 300, "300 rules", "at most"),
        ([RULE | {"users": [1] * 300}], "300 entries in users", "at most"),
    ],
)  # fmt: skip
def test_wrong_rules(tmp_path, rules, found, accepted):
    """Whatever is wrong with a rule is an error that says in which, what, and what is accepted."""
    error = refused(tmp_path, access=rules)
    assert error.key == "access"
    assert found in error.found
    assert accepted in error.accepted


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((one, True) for one in ("DB_PASSWORD", "passwd", "API_TOKEN", "key", "MySecretThing")),
        *((one, False) for one in ("PATH", "HOME", "PORT", "LANG", "")),
        ("X" * 200, True),
    ],
)
def test_default_names_of_secrets(name, secret):
    """What the default takes for the name of a secret; a name that is too long to look at is one."""
    compiled = re.compile(DEFAULT_PATTERN)
    for env in ({name: "v"}, [{"name": name, "value": "v"}]):
        data = json.dumps({"cmd": "x", "env": env}).encode() + b"// a comment"
        assert holds_secret(data, compiled) is secret


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"{" * 99])
def test_what_cannot_be_read_holds_a_secret(data):
    """Bytes that are no usable job file count as holding a secret."""
    assert holds_secret(data, re.compile(DEFAULT_PATTERN))


@pytest.mark.parametrize(
    "text",
    [
        DEFAULT_PATTERN, "^(?:DB|API)_", "pass(word)?$", "[A-Z]+_KEY", r"\bkey\b", "a.*b", "x{2,3}",
        "(?i)tok(en)?|cred[a-z]*", r"a\+\+\*", "[+*(]x", ".",
    ],
)  # fmt: skip
def test_patterns(tmp_path, text):
    """Patterns as people write them are taken as they are."""
    assert loaded(tmp_path, secretPattern=text).secret_pattern == text


@pytest.mark.parametrize(
    "text",
    [
        "", "(", "[", "a{2", "*" , "(a+)+$", "(a|a)*$", "(?:x{2,9}){3,}y", "a*b*c*d*", r"(a)\1", "(?=a)b",
        "(?P<n>a)", "(?x)(a+)#\n+", "a?" * 30 + "a" * 30, "x" * 257, 5, None, "(" * 200,
    ],
)  # fmt: skip
def test_wrong_patterns(tmp_path, text):
    """A pattern that is none, or over which a search could take long, is refused."""
    if text == "a{2":
        assert (
            loaded(tmp_path, secretPattern=text).secret_pattern == text
        )  # braces alone are letters
        return
    assert refused(tmp_path, secretPattern=text).key == "secretPattern"


def test_accepted_patterns_are_quick():
    """The worst patterns that are accepted take no time worth naming over the worst names."""
    for text in ("a*a*b", "(?:a|a)a*a*b", "a?a?a?a?a?a?a*a*b", ".*.*b", "(a?a?a?)?a*.*b"):
        compiled = re.compile(pattern().parse(text))
        began = time.perf_counter()
        holds_secret(json.dumps({"cmd": "x", "env": {"a" * 128: "v"}}).encode(), compiled)
        assert time.perf_counter() - began < 2


def test_the_rest(tmp_path):
    """socketMode is octal, requireReason names changing commands, idleTimeout 0 is for ever."""
    config = loaded(
        tmp_path,
        socketMode="0666",
        requireReason=["kill", "push"],
        idleTimeout=0,
        pushEnabled=False,
    )
    assert config.socket_mode == 0o666
    assert config.require_reason == {Command.KILL, Command.PUSH}
    assert config.idle_timeout_s == 0
    assert not config.push_enabled
    every = [command.value for command in Command if command not in READING]
    assert len(loaded(tmp_path, requireReason=every).require_reason) == len(every)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("socketMode", v) for v in (666, "0999", "0466", "00666", "", None, "rw")),
        *(("requireReason", v) for v in ("kill", ["status"], ["kil"], [1], None, [["kill"]])),
        *(("idleTimeout", v) for v in (-1, 0.5, "5", None, True)),
        *(("maxClientsPerUser", v) for v in (0, 100_001, None)),
        *(("commandsPerSecond", v) for v in (-1, "9", 1_000_001)),
        *(("commandsBurst", v) for v in (0, None)),
        *(("pushEnabled", v) for v in (0, "no", None)),
        *(("allowInsecureRemote", v) for v in (1, None)),
    ],
)
def test_refused_values(tmp_path, key, value):
    """A wrong value is an error that names the key and what is accepted."""
    error = refused(tmp_path, **{key: value})
    assert error.key == key
    assert error.found
    assert error.accepted


def test_the_nearest_command_is_named(tmp_path):
    """A mistyped command of requireReason is answered with the nearest."""
    assert '"kill"' in refused(tmp_path, requireReason=["kil"]).accepted


def test_open_to_a_network(tmp_path):
    """remoteConnections alone is refused, with both ways out; with allowInsecureRemote it is taken."""
    error = refused(tmp_path, remoteConnections=True)
    assert error.key == "remoteConnections"
    assert '"tls"' in error.accepted
    assert '"allowInsecureRemote": true' in error.accepted
    assert loaded(tmp_path, remoteConnections=True, allowInsecureRemote=True).remote_connections
    assert not loaded(tmp_path, allowInsecureRemote=True).remote_connections


def test_a_surrogate_is_no_name(tmp_path):
    """A name that cannot be written as UTF-8 is an error like any other."""
    file = written(
        tmp_path / "config.json", b'{"access": [{"role": "viewer", "users": ["\\ud800"]}]}'
    )
    with pytest.raises(FileError):
        load(file, dict(os.environ), UID)
