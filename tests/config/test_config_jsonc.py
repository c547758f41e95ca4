"""JSON with comments and trailing commas, and everything that is not."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.config.jsonc import MAX_DEPTH, JsonError, loads

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, // one\n "b": [1, 2,], // two\n}', {"a": 1, "b": [1, 2]}),
        ('"http://host//path" // not // a comment', "http://host//path"),
        ('{"a": "\\"//\\\\"}', {"a": '"//\\'}),
        ("// only\r\n// comments\r\n{}\r\n//", {}),
        ("[// after a bracket\n]", []),
        ("[1,// after a comma\n]", [1]),
        ("-0.5e-3", -0.5e-3),
        ('"\\ud83d\\ude00 \\u00e9"', "\U0001f600 é"),
        (" [true, false, null] ", [True, False, None]),
    ],
)
def test_accepted(text, value):
    """Comments, trailing commas and plain JSON give the value that they say."""
    assert loads(text.encode(), MIB) == value


@pytest.mark.parametrize(
    ("text", "line", "column", "found"),
    [
        (b"", 1, 1, "the end of the file"),
        (b"{", 1, 2, "the end of the file"),
        (b'{"a": 1,\n "b" 2}', 2, 6, "'2'"),
        (b'{"a": 1,\n "b": 2 "c": 3}', 2, 9, "'\"'"),
        (b"[1,,2]", 1, 4, "','"),
        (b"[,]", 1, 2, "','"),
        (b"{,}", 1, 2, "','"),
        (b"[1}", 1, 3, "'}'"),
        (b"{'a': 1}", 1, 2, '"\'"'),
        (b"[1] 2", 1, 5, "'2'"),
        (b"/* a */ 1", 1, 1, "'/'"),
        (b"# a\n1", 1, 1, "'#'"),
        (b"01", 1, 2, "'1'"),
        (b"+1", 1, 1, "'+'"),
        (b".5", 1, 1, "'.'"),
        (b"-", 1, 1, "'-'"),
        (b"NaN", 1, 1, "NaN"),
        (b"[Infinity]", 1, 2, "Infinity"),
        (b"-Infinity", 1, 1, "'-'"),
        (b"truex", 1, 1, "'t'"),
        (b"True", 1, 1, "True"),
        (b"1e999", 1, 1, "a number too large"),
        (b"9" * 5000, 1, 1, "a number of 5000 characters"),
        (b'"a\nb"', 1, 3, "a line break inside a string"),
        (b'"a\x1bb"', 1, 3, "the character U+001B inside a string"),
        (b'"a', 1, 3, "the end of the file inside a string"),
        (b'"a\\', 1, 3, "an unknown escape"),
        (b'"\\x41"', 1, 2, "an unknown escape"),
        (b'"\\u00g1"', 1, 2, "an unknown escape"),
        (b'{"a":\n"\\udcff"}', 2, 1, "half of a surrogate pair"),
        (b'\n"\xc3\xa9\xff"', 2, 3, "byte 0xff"),
        (b"\xed\xa0\x80", 1, 1, "byte 0xed"),
        ("\ufeff{}".encode(), 1, 1, "a byte order mark"),
        ("\u00a0{}".encode(), 1, 1, "the character U+00A0"),
    ],
)
def test_refused(text, line, column, found):
    """What is no such JSON is refused with line, column, and what stands there."""
    with pytest.raises(JsonError) as caught:
        loads(text, MIB)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.found.startswith(found)
    assert f"line {line}, column {column}" in str(caught.value)


def test_duplicate_key():
    """A key twice in one object, however it is spelled, is an error that names it; elsewhere it is fine."""
    with pytest.raises(JsonError) as caught:
        loads(b'{"ab": 1,\n "x": 2,\n "\\u0061b": 3}', MIB)
    assert (caught.value.key, caught.value.line, caught.value.column) == ("ab", 3, 2)
    assert loads(b'[{"a": 1}, {"a": {"a": 2}}]', MIB) == [{"a": 1}, {"a": {"a": 2}}]


def test_depth():
    """Nesting is accepted up to the cap and is an ordinary error above it, brackets or braces."""
    assert loads(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, MIB)
    for bomb in (b"[" * (MAX_DEPTH + 1), b"[" * MIB, b'{"a":' * (MIB // 5)):
        with pytest.raises(JsonError, match="nesting"):
            loads(bomb, MIB)


def test_size():
    """The cap is in bytes and inclusive."""
    assert loads(b'"abc"', 5) == "abc"
    with pytest.raises(JsonError, match="6 bytes; accepted: at most 5"):
        loads(b'"abcd"', 5)


@pytest.mark.parametrize(
    "unit", [b"0,", b'\\"', b"//\n", b" ", b"[],", b'"",', b"//", b",", b"{},", b"\\", b"\\u0041"]
)
@pytest.mark.parametrize("opening", [b"[", b'"', b"["[:0]])
def test_linear(unit, opening):
    """A megabyte of anything repeated takes seconds at most; anything quadratic would take minutes."""
    text = opening + unit * ((MIB - 1) // len(unit))
    before = time.process_time()
    try:
        loads(text, MIB)
    except JsonError:
        pass
    assert time.process_time() - before < 20


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_same_as_json(value, ascii_only, indent):
    """Every JSON text means what it means to Python's own reader."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    if "\\ud" in text:  # half surrogates in keys are refused, and tested above
        return
    assert loads(data, MIB) == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:/\\u0eE-.1tn \n', max_size=40))
def test_nothing_but_json_error(text):
    """Whatever comes in, there is a value, or a JsonError that a terminal can be given."""
    data = text if isinstance(text, bytes) else text.encode()
    message = ""
    try:
        loads(data, MIB)
    except JsonError as error:
        message = str(error)
    assert message.isprintable()
