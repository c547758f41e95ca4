"""Schemas and parsers say the same, and no input gets anything but a value or a FileError out of them."""

import json
from pathlib import Path

import pytest
from config_schema_reader import valid
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.config.daemon import DAEMON_KEYS, daemon_schema
from taskmaster.config.jobfile import JOB_KEYS, job_schema, parse_job
from taskmaster.config.keys import read
from taskmaster.core.spec import JobSpec
from taskmaster.errors import FileError

BASE = Path("/srv")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 70)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=6)
    | st.sampled_from(
        ["TERM", "sigint", "RTMIN+1", "always", "stdout", "0022", "a/../b", "u:g", "/a"]
    )
)
#: Half surrogates included, as JSON escapes can spell them.
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "value", "A", "B=", ""]), inner, max_size=3)
        | st.fixed_dictionaries({"name": inner, "value": inner})
    ),
    max_leaves=6,
)


def documents(table):
    """Objects with keys of the table, right and wrong values, and now and then a key it has not."""
    names = st.sampled_from([row.name for row in table])
    return st.dictionaries(names | st.sampled_from(["xyz", "CMD"]), VALUES, max_size=5)


def accepted(parse):
    try:
        return parse()
    except FileError as error:
        refused = error
    assert refused.accepted
    assert str(refused).isprintable()
    return None


@settings(max_examples=400)
@given(documents(JOB_KEYS), st.sampled_from(["prog -x", ["prog", "%n"], None]))
def test_job_schema_covers_the_parser(document, cmd):
    """Every job file that is accepted is valid by the schema; nothing but a FileError comes out."""
    if cmd is not None:
        document["cmd"] = cmd
    data = json.dumps(document).encode()
    spec = accepted(lambda: parse_job("web", data, BASE))
    if spec is not None:
        assert valid(document, job_schema())
        assert spec.dir.startswith("/")
        assert spec.argv


@settings(max_examples=300)
@given(documents(DAEMON_KEYS))
def test_daemon_schema_covers_the_parser(document):
    """Every daemon file that is accepted is valid by the schema."""
    values = accepted(lambda: read("config.json", json.dumps(document).encode(), DAEMON_KEYS))
    if values is not None:
        assert valid(document, daemon_schema())


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    """Bytes of any sort give a FileError, or in theory a job."""
    spec = accepted(lambda: parse_job("web", data, BASE))
    assert spec is None or isinstance(spec, JobSpec)


@given(VALUES)
def test_arbitrary_json(value):
    """Any JSON value as a whole file gives a FileError or a job."""
    accepted(lambda: parse_job("web", json.dumps(value).encode(), BASE))


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"cmd": ""},
        {"cmd": []},
        {"cmd": [""]},
        {"cmd": ["a"], "shell": True},
        {"cmd": "a\0"},
        {"cmd": "a", "xyz": 1},
        {"cmd": "a", "procNr": 0},
        {"cmd": "a", "procNr": True},
        {"cmd": "a", "restart": True},
        {"cmd": "a", "umask": "0888"},
        {"cmd": "a", "stopSig": 0},
        {"cmd": "a", "normalExitCode": [256]},
        {"cmd": "a", "env": {"A": 1}},
        {"cmd": "a", "env": {"A=": "x"}},
        {"cmd": "a", "env": [{"name": "A"}]},
        {"cmd": "a", "runas": ":g"},
        {"cmd": "a", "stdout": ""},
    ],
)
def test_both_refuse(document):
    """What is plainly wrong is so by the schema too."""
    assert not valid(document, job_schema())
    with pytest.raises(FileError):
        parse_job("web", json.dumps(document).encode(), BASE)


@pytest.mark.parametrize(
    ("schema", "table"), [(job_schema(), JOB_KEYS), (daemon_schema(), DAEMON_KEYS)]
)
def test_schema_is_whole(schema, table):
    """A schema is JSON, has every key with its words, and refuses others."""
    schema = json.loads(json.dumps(schema))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == [row.name for row in table]
    assert schema["additionalProperties"] is False
    for row in table:
        described = schema["properties"][row.name]
        assert row.kind.accepted in described["description"]
        if "default" in described:
            assert valid(described["default"], described)
