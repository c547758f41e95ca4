"""Messages of a watchdog's link: each comes back as it went, and hostile bytes are one kind of error."""

import enum
import json
import types
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.core.spec import MAX_PROCESSES
from taskmaster.core.states import Desired, State
from taskmaster.errors import InvalidQuery
from taskmaster.wire import link
from taskmaster.wire.frames import MAX_LINK_FRAME, LinkFrames
from taskmaster.wire.link import (
    ProcessStatus,
    Published,
    decode_for_control,
    decode_for_watchdog,
    encode,
)

DETERMINED = settings(deadline=None, derandomize=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
PLAIN = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXT,
    type(None): st.none(),
    typing.Any: JSON,
}


def any_of(kind):
    """A strategy for every value of a type that a message may have in it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin in (typing.Union, types.UnionType):
        return st.one_of(map(any_of, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(any_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(any_of, arguments))
    if origin is dict:
        return st.dictionaries(*map(any_of, arguments), max_size=3)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    assert issubclass(kind, msgspec.Struct), kind
    hints = typing.get_type_hints(kind)
    return st.builds(
        kind,
        **{name: any_of(hint) for name, hint in hints.items() if name in kind.__struct_fields__},
    )


def outcome(decode, frame):
    """The message, or the refusal; any other exception is one too many."""
    try:
        return decode(frame)
    except InvalidQuery as error:
        return error


DIRECTIONS = [
    *((kind, decode_for_watchdog, decode_for_control) for kind in typing.get_args(link.ToWatchdog)),
    *((kind, decode_for_control, decode_for_watchdog) for kind in typing.get_args(link.ToControl)),
]
each_message = pytest.mark.parametrize(
    ("kind", "decode", "other_way"), DIRECTIONS, ids=[kind.__name__ for kind, _, _ in DIRECTIONS]
)


def unframed(message):
    """The one frame that the receiving end finds in the bytes of a message."""
    decoder = LinkFrames()
    decoder.receive_data(encode(message))
    frame = decoder.next_frame()
    assert decoder.next_frame() is None
    return frame


def refused(decode, frame):
    """The refusal of a frame; it ends the link."""
    with pytest.raises(InvalidQuery) as caught:
        decode(frame)
    assert caught.value.fatal
    return caught.value


@each_message
def test_round_trip(kind, decode, other_way):
    """Every value of every message is the same at the other end, and nonsense in the other direction."""

    @DETERMINED
    @given(any_of(kind))
    def comes_back(message):
        frame = unframed(message)
        assert decode(frame) == message
        assert json.loads(frame)["type"] == kind.__struct_config__.tag
        refused(other_way, frame)

    comes_back()


def test_every_message_has_a_direction():
    """Each message of the module is in exactly one direction, under a name of its own."""
    defined = {
        thing
        for thing in vars(link).values()
        if isinstance(thing, type)
        and issubclass(thing, msgspec.Struct)
        and thing.__struct_config__.tag
    }
    kinds = [kind for kind, _, _ in DIRECTIONS]
    assert defined == set(kinds)
    assert len(defined) == len(kinds) == len({kind.__struct_config__.tag for kind in kinds})


def simplest(kind):
    """One message of this kind as the object that JSON has for it."""
    values = {bool: True, int: 1, float: 1.5, str: "x"}
    fields = {"type": kind.__struct_config__.tag} if kind.__struct_config__.tag else {}
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            fields[field.name] = next(iter(hint)).value
        elif hint is link.JobSpec:
            fields[field.name] = {"job": "web", "argv": ["/bin/web"]}
        elif typing.get_origin(hint) is tuple:
            fields[field.name] = []
        elif typing.get_origin(hint) is dict:
            fields[field.name] = {}
        else:
            fields[field.name] = values[(typing.get_args(hint) or (hint,))[0]]
    return fields


@each_message
def test_fields_are_checked(kind, decode, other_way):
    """A required field that is missing, or any of another type, is refused; nothing is converted."""
    good = simplest(kind)
    assert isinstance(decode(json.dumps(good).encode()), kind)
    for field in msgspec.structs.fields(kind):
        wrong = (
            [["x", {"y": []}], {"z": 1}]
            if not isinstance(good[field.name], (list, dict))
            else [1, "x"]
        )
        if not isinstance(good[field.name], str):
            wrong.append("1")
        if type(good[field.name]) is int:
            wrong += [1.5, True]
        for value in wrong:
            refused(decode, json.dumps({**good, field.name: value}).encode())
        if field.required:
            refused(decode, json.dumps({k: v for k, v in good.items() if k != field.name}).encode())
    for tag in (None, 1, "", "nonsense", kind.__name__ + "x"):
        refused(decode, json.dumps({**good, "type": tag}).encode())
    refused(decode, json.dumps({k: v for k, v in good.items() if k != "type"}).encode())


@pytest.mark.parametrize("kind", [ProcessStatus, *(kind for kind, _, _ in DIRECTIONS)])
def test_values_and_their_defaults(kind):
    """What is left out of a message is nothing: no number, no text, no time; and no message can be changed."""
    message = msgspec.convert(simplest(kind), kind)
    for field in msgspec.structs.fields(kind):
        assert field.required or not field.default
        with pytest.raises(AttributeError):
            setattr(message, field.name, getattr(message, field.name))


def test_a_status_says_only_what_there_is():
    """A process of which there is nothing to tell takes three fields, one with an exit code of 0 a fourth."""
    status = ProcessStatus(0, State.STOPPED, Desired.DOWN)
    plain = {"number": 0, "state": "STOPPED", "desired": "DOWN"}
    assert msgspec.to_builtins(status) == plain
    assert msgspec.to_builtins(msgspec.structs.replace(status, exit_code=0)) == {
        **plain,
        "exit_code": 0,
    }


@pytest.mark.parametrize("decode", [decode_for_watchdog, decode_for_control])
@pytest.mark.parametrize(
    "frame",
    [
        b"", b"{}", b"[]", b"null", b"1", b'"ping"', b"\x80\x04N.", b"\xff", b'{"type":"ping","id":1}x',
        b'{"type":"ping","id":1e999}', b'{"type":"ping","id":%s}' % (b"9" * 5000), b'{"type":"ping","id":NaN}',
        b'{"type":"act","id":1,"verb":"\xff"}', b'{"type":"act","id":1,"verb":"\\ud800"}',
        b'{"type":"hello","job":"\xff","pid":1,"sha256":""}', b'{"type":"\xff"}',
        b'{"type":"configure","id":1,"sha256":"","spec":{"job":"x","argv":["x"],"unknown":1}}',
        b'{"type":"configure","id":1,"sha256":"","spec":{"job":"x","argv":"x"}}',
        b'{"type":"configure","id":1,"sha256":"","spec":{"job":"x","argv":["x"],"restart":"sometimes"}}',
        b'{"type":"published","full":true,"processes":[{"number":0,"state":"DEAD","desired":"UP"}]}',
        b'{"type":"notice","number":1,"event":"x","at_s":1,"fields":{"a":%s}}' % (b"[" * 100000),
        b'{"type":"notice","number":1,"event":"x","at_s":1,"fields":{"a":%s}}' % (b'{"a":' * 100000),
        b'{"type":"notice","number":1,"event":"x","at_s":1,"fields":{"a":%s1%s}}' % (b"[" * 100000, b"]" * 100000),
        b'{"type":"ping","id":1,"x":%s}' % (b"[" * 100000), b"[" * 100000,
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else value.__name__,
)  # fmt: skip
def test_hostile_frames(decode, frame):
    """Pickles, wrong types, bad text, nesting bombs: the same fatal error, never another exception."""
    refused(decode, frame)


VALID = st.one_of(any_of(kind) for kind, _, _ in DIRECTIONS).map(unframed)


@settings(DETERMINED, max_examples=300)
@given(
    VALID | st.binary(max_size=40),
    st.lists(st.tuples(st.integers(0, 10**4), st.binary(max_size=2)), max_size=3),
)
def test_damaged_frames(frame, damages):
    """A frame with bytes changed, lost or put in is a message of its direction or the fatal error."""
    for place, new in damages:
        place %= len(frame) + 1
        frame = frame[:place] + new + frame[place + 1 :]
    for decode, direction in (
        (decode_for_watchdog, link.ToWatchdog),
        (decode_for_control, link.ToControl),
    ):
        message = outcome(decode, frame)
        if isinstance(message, InvalidQuery):
            assert message.fatal
        else:
            assert isinstance(message, typing.get_args(direction))
            assert decode(unframed(message)) == message


def test_the_largest_job_fits():
    """What a job of 1000 processes publishes at once is far below the cap, even if each tells a long story."""
    long_story = "process 999: exec /opt/" + "x" * 4000 + ": No such file or directory"
    processes = tuple(
        ProcessStatus(
            number, State.BACKOFF, Desired.UP, 4194303, 10**12, 1.8e9 + 1 / 3, 1e8 / 3, 10**6, 255, None, True,
            failures=10**6, retry_at=1e8 / 3, kill_at=1e8 / 3, error=long_story,
        )
        for number in range(MAX_PROCESSES)
    )  # fmt: skip
    published = Published(True, processes, tuple(range(MAX_PROCESSES)), 2**62)
    assert decode_for_control(unframed(published)) == published
    assert len(encode(published)) < MAX_LINK_FRAME / 2
    plain = [msgspec.structs.replace(process, error="") for process in processes]
    assert len(encode(Published(True, tuple(plain)))) <= 400_000  # "about 350 kB"
