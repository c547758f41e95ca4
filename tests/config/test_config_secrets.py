"""Whether a job file has a secret in it: by the names in its env, and where in doubt, yes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.config.jobfile import JOB_KEYS
from taskmaster.config.keys import Key
from taskmaster.config.kinds import Refused
from taskmaster.config.secrets import holds_secret

PATTERN = r"(?i)pass|secret|token|key"


@pytest.mark.parametrize(
    ("members", "holds"),
    [
        ({}, False),
        ({"cmd": "keytool -storepass x", "envFile": "/etc/secrets/token"}, False),
        ({"env": {}}, False),
        ({"env": {"PATH": "/bin", "LANG": "C"}}, False),
        ({"env": {"DB_PASSWORD": "x"}}, True),
        ({"env": {"db_passwd": "x"}}, True),
        ({"env": {"MONKEY": "x"}}, True),
        ({"env": {"API_TOKEN": ""}}, False),
        ({"env": {"API_TOKEN": 5}}, True),
        ({"env": [{"name": "A", "value": "x"}]}, False),
        ({"env": [{"name": "A", "value": "x"}, {"name": "secretA", "value": "y"}]}, True),
        ({"env": [{"name": "secretA", "value": ""}]}, False),
        ({"env": ["API_TOKEN=x"]}, True),
        ({"env": ["API_TOKEN"]}, False),
        ({"env": [{"API_TOKEN": "x"}]}, True),
        ({"env": "SECRET=x"}, True),
        ({"enviroment": {"SECRET": "x"}}, True),
        ({"environment": {"production": {"SECRET": "x"}}}, True),
        ({"apiKey": "x"}, True),
        ({"limits": {"nofile": 5}}, False),
        ({"envFile": {"API_KEY": "x"}}, True),
        ({"dir": {"API_KEY": "x"}}, True),
        ([], True),
        ("x", True),
        (None, True),
    ],
)
def test_by_name(members: object, holds: bool) -> None:
    """A name that matches and has a value is one, in every form that people give their variables."""
    assert holds_secret(json.dumps(members).encode(), PATTERN) is holds


def refusal(row: Key, value: object) -> str:
    """What the error says of a value that is not of the key's kind; empty where it is."""
    try:
        row.kind.parse(value)
    except Refused as refused:
        return refused.found + refused.accepted
    return ""


@pytest.mark.parametrize("row", JOB_KEYS, ids=lambda row: row.name)
def test_variables_under_a_wrong_key_are_not_told(row: Key) -> None:
    """Whatever key somebody puts his variables under, the error does not show them."""
    for value in (
        {"API_KEY": "LEAKED"},
        ["API_KEY=LEAKED"],
        [{"name": "API_KEY", "value": "LEAKED"}],
    ):
        assert "LEAKED" not in refusal(row, value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"cmd":"a","cmd":"b"}', b" " * 2_000_000])
def test_what_cannot_be_read(data: bytes) -> None:
    """Bytes that are no job file may hold anything."""
    assert holds_secret(data, PATTERN)


def test_the_pattern_decides() -> None:
    """Another pattern, other names; comments and trailing commas are as in any job file."""
    data = b'{"cmd": "a", // the front\n"env": {"PIN": "1", "TOKEN": "x",},}'
    assert holds_secret(data, PATTERN)
    assert holds_secret(data, "^PIN$")
    assert not holds_secret(data, "^PI$")
    assert not holds_secret(data, "(?!)")


@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    """Any bytes have an answer."""
    assert holds_secret(data, PATTERN) in (True, False)
