"""Queries: from one frame to one checked Query, or the right kind of refusal."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.errors import InvalidQuery
from taskmaster.wire import queries
from taskmaster.wire.frames import ClientFrames
from taskmaster.wire.queries import (
    MAX_WAIT_S,
    NEEDS,
    READING,
    Command,
    Needs,
    Query,
    UnusableQuery,
    parse_query,
    shown,
)

DETERMINED = settings(deadline=None, derandomize=True)
WITH_JOB = ["start", "stop", "kill", "repair", "status", "pull", "push", "delete", "reload"]
ALL = [*WITH_JOB, "list", "restart"]
NGINX = "bmdpbng="


def frame(**fields):
    return json.dumps(fields, separators=(",", ":")).encode()


def refused(query):
    """The refusal of a query that leaves the connection alone."""
    with pytest.raises(UnusableQuery) as caught:
        parse_query(query)
    assert not caught.value.fatal
    assert str(caught.value).isprintable()
    return caught.value


def fatal(query):
    """The refusal of a frame that ends the connection."""
    with pytest.raises(InvalidQuery) as caught:
        parse_query(query)
    assert caught.value.fatal
    assert not isinstance(caught.value, UnusableQuery)
    assert str(caught.value).isprintable()
    return caught.value


def test_the_documented_example():
    """The two queries of the published document, white space and all."""
    decoder = ClientFrames(1000)
    decoder.receive_data(b'{\n\t"command" : "kill",\n\t"job" : "bmdpbng="\n};;')
    assert parse_query(decoder.next_frame()) == Query(Command.KILL, job="nginx")
    decoder.receive_data(b'{\n\t"command" : "push",\n\t"job" : "bmdpbng=",\n\t"data" : "e30="\n};;')
    assert parse_query(decoder.next_frame()) == Query(Command.PUSH, job="nginx", data=b"{}")


def test_the_table_of_commands():
    """The eleven commands of the protocol, each with its needs; of them, three only read."""
    assert set(ALL) <= {command.value for command in Command}
    assert len(ALL) == 11
    needs = {command.value: NEEDS[command] for command in Command}
    assert {word for word in ALL if needs[word] is Needs.JOB} == set(WITH_JOB)
    assert needs["list"] is Needs.NOTHING
    assert needs["restart"] is Needs.MAYBE_JOB
    assert {"status", "pull", "list"} == {word for word in ALL if Command(word) in READING}


@pytest.mark.parametrize("key", ["command", "cmd"])
@pytest.mark.parametrize("word", ALL)
def test_both_dialects(key, word):
    """Each command means the same under both keys, and the older one is remembered."""
    query = parse_query(frame(**{key: word, "job": NGINX, "data": "AA=="}))
    assert query == Query(
        Command(word),
        job=None if word == "list" else "nginx",
        data=b"\0" if word == "push" else None,
        old_dialect=key == "cmd",
    )


@pytest.mark.parametrize(
    ("query", "command", "old"),
    [
        (b'{"command":"list","cmd":"restart"}', "list", False),
        (b'{"cmd":"restart","command":"list"}', "list", False),
        (b'{"command":null,"cmd":"list"}', "list", True),
        (b'{"command":"list","cmd":5}', "list", False),
        (b'{"\\u0063ommand":"l\\u0069st"}', "list", False),
        (b' {\r\n"cmd"\t:"list" } ', "list", True),
    ],
)
def test_which_key_counts(query, command, old):
    """``command`` goes before ``cmd``, however the two are written."""
    assert parse_query(query) == Query(Command(command), old_dialect=old)


@pytest.mark.parametrize("key", ["command", "cmd"])
@pytest.mark.parametrize("word", WITH_JOB)
@pytest.mark.parametrize("job", [{}, {"job": None}], ids=["absent", "null"])
def test_missing_job(key, word, job):
    """A command that needs a job says so by name, and the id and the command are kept for the reply."""
    error = refused(frame(**{key: word, "data": "AA==", "id": 7, **job}))
    assert f'"{word}"' in str(error)
    assert '"job"' in str(error)
    assert (error.query_id, error.command) == (b"7", word)


def test_missing_data():
    """Push without data is no query; other commands do not look at it."""
    for fields in ({}, {"data": None}):
        error = refused(frame(command="push", job=NGINX, **fields))
        assert str(error) == 'Command "push" needs the field "data".'
    assert parse_query(frame(command="stop", job=NGINX, data=5)).data is None


def test_what_takes_no_job():
    """List ignores a job; restart takes one or none, and an empty one, which the D client sends, is none."""
    assert parse_query(frame(command="list", job=5)) == Query(Command.LIST)
    assert parse_query(frame(command="restart")) == Query(Command.RESTART)
    assert parse_query(frame(command="restart", job="")) == Query(Command.RESTART)
    assert parse_query(frame(cmd="restart", job="")) == Query(Command.RESTART, old_dialect=True)
    assert parse_query(frame(command="restart", job=NGINX)) == Query(Command.RESTART, job="nginx")
    assert '"job"' in str(refused(frame(command="restart", job=5)))


NOT_BASE64 = ["Y", "YQ", "YQ=", "YQ===", "=", "YQ==YQ==", "Y Q=", "YQ==\n", " YQ==", "-_8=", "YQ==;",
              "é", "YQ\0=", "YQ\u2028=="]  # fmt: skip
NOT_STRINGS = [5, 1.5, True, False, [], ["YQ=="], {}, {"a": "YQ=="}]


@pytest.mark.parametrize("key", ["job", "data"])
@pytest.mark.parametrize("value", NOT_BASE64 + NOT_STRINGS, ids=repr)
def test_not_base64(key, value):
    """What is not base64, or not even a string, is named by its key; nothing lenient is guessed."""
    error = refused(
        frame(**{"command": "push", "job": NGINX, "data": NGINX, "id": "x", key: value})
    )
    assert f'"{key}"' in str(error)
    assert error.query_id == b'"x"'


@pytest.mark.parametrize("raw", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_job_is_utf_8(raw):
    """A job name that is base64 of something else than UTF-8 is no query; data is any bytes."""
    text = base64.b64encode(raw).decode()
    assert "UTF-8" in str(refused(frame(command="stop", job=text)))
    assert parse_query(frame(command="push", job=NGINX, data=text)).data == raw


@DETERMINED
@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_job_and_data_come_through(job, data):
    """Whatever the name, it is decoded and left to the check of names; the file comes byte for byte."""
    encoded = [base64.b64encode(raw).decode() for raw in (job.encode(), data)]
    query = parse_query(frame(command="push", job=encoded[0], data=encoded[1]))
    assert (query.job, query.data) == (job, data)


def test_an_end_mark_inside_a_file_is_safe():
    """``;;`` in a job file does not end the frame that carries it."""
    data = b'{"cmd": "sh -c \'case x in x) ;; esac\'"} // ;;\n'
    decoder = ClientFrames(1000)
    decoder.receive_data(
        frame(command="push", job=NGINX, data=base64.b64encode(data).decode()) + b";;"
    )
    assert parse_query(decoder.next_frame()).data == data
    assert decoder.next_frame() is None


@pytest.mark.parametrize("value", [5, 1.5, True, False, [], ["list"], {}])
def test_a_command_is_a_string(value):
    """A command of another type is no query."""
    for key in ("command", "cmd"):
        assert str(refused(frame(**{key: value, "job": NGINX}))) == '"command" is not a string.'


@pytest.mark.parametrize(
    "word", ["", "List", "LIST", " list", "list ", "lis", "list\0", "__class__", "START", "value", "é", "x" * 9999,
             "\x1b[2J", "\u202e", "list;;"],
)  # fmt: skip
def test_unknown_command(word):
    """A word outside the table is quoted as plain ASCII, cut, with the words there are."""
    error = refused(frame(command=word, job=NGINX, id=1))
    assert str(error).isascii()
    assert len(str(error)) < 250
    assert all(known in str(error) for known in ALL)
    assert (error.query_id, error.command) == (b"1", word[:64])


@pytest.mark.parametrize(
    "query", [b"{}", b'{"Command":"list"}', b'{"cmds":"list"}', b'{"command":null}']
)
def test_no_command(query):
    """An object without either key is no query."""
    assert str(refused(query)) == 'Missing field "command".'


IDS = ['""', '"a"', '"\\u00e9\\n\\"\\\\"', '"é"', '"\\ud83d\\ude00"', "0", "-0", "12", "-1.50", "1e3", "1E+2",
       "1e999", "-0.0E-7", "123456789012345678901234567890", '"' + "x" * 254 + '"', '"null"']  # fmt: skip


@pytest.mark.parametrize("text", IDS, ids=lambda text: text[:20])
@pytest.mark.parametrize("around", ['{{"id":{},"cmd":"list"}}', '{{ "cmd":"list", "id" :\n {} }}'])
def test_id_is_kept_as_it_was_written(text, around):
    """Any JSON string or number is kept, to the letter, and goes with a refusal as well."""
    assert parse_query(around.format(text).encode()).id == text.encode()
    assert refused(around.replace("list", "stop").format(text).encode()).query_id == text.encode()


@DETERMINED
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_any_id(value, ascii_only):
    """Whatever the client's library writes for a string or a number is what it gets back."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert parse_query(b'{"command":"list","id":' + text + b"}").id == text


@pytest.mark.parametrize("text", ['"' + "x" * 255 + '"', "9" * 257, '"' + "é" * 128 + '"'])
def test_a_long_id(text):
    """An id of more than 256 bytes is refused, and not kept."""
    error = refused(b'{"command":"list","id":' + text.encode() + b"}")
    assert str(error) == f'"id" has {len(text.encode())} bytes; accepted: up to 256.'
    assert error.query_id == b""


#: Every key that means something in a query, with two values for it.
VALUES = {
    "command": ('"list"', '"stop"'), "cmd": ('"list"', '"stop"'), "job": ('"bmdpbng="', '"d2Vi"'),
    "data": ('""', '"eHg="'), "id": ("1", "2"), "wait": ("1", "1"), "codes": ("true", "false"),
    "leaveJobs": ("true", "true"), "reason": ('"a"', '"b"'), "ifHash": ('""', '""'), "version": ("1", "2"),
    "cursor": ('"a"', '"b"'), "force": ("true", "false"),
}  # fmt: skip


def test_every_key_has_values():
    """The table above knows every key."""
    assert set(VALUES) == set(queries._Wire.__struct_encode_fields__)


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("spelling", ["plain", "blank", "escaped", "between"])
def test_a_key_twice(key, spelling):
    """No key that means something may stand in a query twice, however it is written: whose value would count?"""
    one, other = VALUES[key]
    again = "".join(f"\\u{ord(c):04X}" for c in key) if spelling == "escaped" else key
    text = f'"{key}":{one},'
    text += '"x":{"y":[{"z":1}]},' if spelling == "between" else ""
    text += f'"{again}"' + (" \n" if spelling == "blank" else "") + f":{other}"
    head = "" if key in ("command", "cmd") else '"command":"list",'
    error = refused(("{" + head + text + "}").encode())
    assert str(error) == f'The key "{key}" stands in the query twice.'


@pytest.mark.parametrize(
    "more",
    [
        '"x":1,"x":2',
        '"x":{"command":"stop","command":"stop"}',
        '"x":[{"id":1,"id":2}],"y":{"job":{"job":"a"}}',
        '"id":"\\"command\\":\\"stop\\""',
        '"reason":"\\"id\\":1, \\"id\\":2"',
        '"\\u0078":1',
    ],
)
def test_what_is_no_key_twice(more):
    """Unknown keys, keys of other objects and what looks like one within a string may stand anywhere."""
    assert parse_query(('{"command":"list",' + more + "}").encode()).command is Command.LIST


@pytest.mark.parametrize("text", ["null", "true", "false", "[]", "{}", '["a"]', '{"id":1}'])
def test_no_id(text):
    """Anything else is no id, and is not echoed."""
    error = refused(b'{"command":"list","id":' + text.encode() + b"}")
    assert '"id"' in str(error)
    assert error.query_id == b""


@pytest.mark.parametrize(
    "text", ["01", "1.", ".5", "+1", "-", "1e", "0x1", '"\\q"', '"\\u12"', '"a\nb"', "nul", "NaN"]
)
def test_a_malformed_id_is_no_json(text):
    """An id is checked like everything else, since it becomes part of the reply."""
    fatal(b'{"command":"list","id":' + text.encode() + b"}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0.0", 0),
        ("1", 1),
        ("2.5", 2.5),
        ("1e2", 100),
        ("604800", MAX_WAIT_S),
        ("null", None),
    ],
)
def test_wait(text, seconds):
    """From nothing to a week, whole or not."""
    query = parse_query(b'{"command":"start","job":"bmdpbng=","wait":' + text.encode() + b"}")
    assert query.wait_s == seconds
    assert seconds is None or isinstance(query.wait_s, float)
    assert MAX_WAIT_S == 7 * 24 * 3600


TOO_LARGE = ["1e999", "-1e999", "9" * 400, "9" * 5000]


@pytest.mark.parametrize(
    "text", ["-1", "-0.001", "604800.001", "604801", "1e300", "9" * 30, "true", "false", '"5"', "[5]", "{}", '""',
             *TOO_LARGE],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_no_wait(text):
    """Negative, over a week, or no number: no query, and the key is named."""
    error = refused(b'{"id":3,"command":"start","job":"bmdpbng=","wait":' + text.encode() + b"}")
    assert '"wait"' in str(error)
    assert error.query_id == b"3"


@pytest.mark.parametrize("key", ["command", "cmd", "job", "data", "codes", "leaveJobs", "unknown"])
def test_a_number_out_of_range_is_still_json(key):
    """A number that no machine holds is a wrong value of a JSON object, and does not end the connection."""
    for text in TOO_LARGE:
        fields = {"command": '"push"', "job": '"bmdpbng="', "data": '"AA=="', key: text}
        if key == "cmd":
            del fields["command"]
        query = ",".join(f'"{name}":{value}' for name, value in fields.items()).join("{}").encode()
        if key in ("codes", "leaveJobs", "unknown"):
            assert parse_query(query) == Query(Command.PUSH, "nginx", b"\0")
        else:
            refused(query)


@pytest.mark.parametrize("command", [command for command in Command if NEEDS[command] is Needs.JOB])
def test_an_empty_job_is_a_name_where_one_is_needed(command):
    """It is left to the check of names, which says that no job can have it."""
    assert parse_query(frame(command=command.value, job="", data="")).job == ""


@pytest.mark.parametrize(
    ("key", "field"), [("codes", "codes"), ("leaveJobs", "leave_jobs"), ("force", "force")]
)
@pytest.mark.parametrize(
    ("value", "wanted"),
    [("true", True), ("false", False), ("null", False), ("1", False), ('"true"', False)],
)
def test_switches(key, field, value, wanted):
    """What a client may ask for beside is off until it says ``true``."""
    query = parse_query(f'{{"command":"list","{key}":{value}}}'.encode())
    assert getattr(query, field) is wanted
    assert query == Query(Command.LIST, **{field: wanted})


@pytest.mark.parametrize(
    ("command", "key", "field", "accepted", "refused_ones"),
    [
        (
            "kill",
            "reason",
            "reason",
            ["", "it leaks", "é" * 1024, "a;; b"],
            [5, [], "x" * 1025, "a\nb", "\x1b[2J", "\u202e", "\x7f"],
        ),
        ("push", "ifHash", "if_hash", ["", "0f" * 32], [5, "0F" * 32, "0f" * 31, "g" * 64, "0f" * 33]),
        ("rollback", "ifHash", "if_hash", [""], [True, "x"]),
        ("rollback", "version", "version", [1, 10**12 - 1, "0f" * 4, "0f" * 32],
         [0, -1, 1.5, True, "1", "", 10**12, 1 << 70, "0f" * 33, "XY" * 4]),
        ("pull", "version", "version", [3], [0, "٣٣٣٣٣٣٣٣"]),
        ("history", "version", "version", [3], [0, "0f" * 4]),
        ("audit", "cursor", "cursor", ["", "end", "x" * 128], [5, "x" * 129, "a b", "a\n", "é", {}]),
    ],
)  # fmt: skip
def test_keys_of_some_commands(command, key, field, accepted, refused_ones):
    """Each is taken as it is, or the refusal names it; a command that has no use for one ignores it."""
    rest = {"command": command, "job": NGINX, "data": "AA=="}
    for value in accepted:
        query = frame(**rest, **{key: value}).replace(b";;", b";\\u003b")
        assert getattr(parse_query(query), field) == value
    for value in refused_ones:
        assert f'"{key}"' in str(refused(frame(**rest, **{key: value})))
        if key != "reason":
            other = {**rest, "command": "start", key: value}
            assert parse_query(frame(**other)) == Query(Command.START, job="nginx")


@DETERMINED
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
            lambda key: (
                key
                not in (
                    "command",
                    "cmd",
                    "job",
                    "data",
                    "id",
                    "wait",
                    "codes",
                    "leaveJobs",
                    "force",
                    "reason",
                )
            )
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("command"), inner),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_unknown_keys_are_ignored(more, first):
    """Whatever else stands in the object, before or after, changes nothing."""
    known = {"command": "kill", "job": NGINX, "id": 1, "wait": 5}
    query = frame(**({**more, **known} if first else {**known, **more}))
    assert parse_query(query) == Query(Command.KILL, job="nginx", id=b"1", wait_s=5.0)


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b"}", b"[]", b"[{}]", b"null", b"1", b'"{}"', b"{}{}", b"{} x", b"{}\0", b"{,}",
        b'{"command":"list",}', b"{'command':'list'}", b'{"command" "list"}', b'{command:"list"}',
        b'{"command":"list"', b'{"command":"list"}}', b'{"command":"list"} // x', b'/**/{"command":"list"}',
        b'{"command":"list","x":01}', b'{"command":"list","x":"\\q"}', b'{"command":"list","x":NaN}',
        b'{"command":"list","x":[1,]}', b'{"command":"list","x":Infinity}', b'{"command":"list","x":tru}',
        b'{"command":"li\nst"}', b'{"command":"list\0"}', b'\xef\xbb\xbf{"command":"list"}',
        b'{"command":"list"}\x0c', b"GET / HTTP/1.1",
    ],
)  # fmt: skip
def test_no_json_object(text):
    """What is no JSON object, to the last byte, ends the connection: also in a key that nobody reads."""
    assert "JSON object" in str(fatal(text))


@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"]
)
@pytest.mark.parametrize(
    "where",
    [
        b'{"command":"%s"}',
        b'{"command":"list","%s":1}',
        b'{"command":"list","x":"%s"}',
        b'{"command":"list","id":"%s"}',
    ],
)
def test_not_utf_8(bad, where):
    """Bytes that are not UTF-8 anywhere in the frame end the connection."""
    error = fatal(where.replace(b"%s", bad))
    assert str(error) == f"Not UTF-8: byte {where.index(b'%s')} of the frame."


@pytest.mark.parametrize("key", ["command", "job", "data", "id", "wait", "x"])
@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["list", "object"]
)
@pytest.mark.parametrize("closed", [True, False])
def test_nesting_bomb(key, opening, closing, closed):
    """Four megabytes of brackets are refused like any nonsense: no crash, no deep recursion."""
    depth = 4194304 // len(opening) // 2
    bomb = opening * depth + (b"1" + closing * depth if closed else b"")
    fatal(b'{"command":"list","%s":%s}' % (key.encode(), bomb))


def test_shown():
    """Foreign text is shown in quotes, in ASCII, and cut."""
    assert shown("abc") == "'abc'"
    assert shown("\x1b[31mé\n") == r"'\x1b[31m\xe9\n'"
    assert shown("x" * 60) == "'" + "x" * 60 + "'"
    assert shown("x" * 61) == "'" + "x" * 57 + "...'"


def outcome(text):
    """The query, or the refusal; any other exception is one too many."""
    try:
        return parse_query(text)
    except InvalidQuery as error:
        return error


def json_object(text):
    """What Python's reader makes of ``text``: the object, or None where it is none."""

    def refuse(constant):
        raise ValueError(constant)

    try:
        value = json.loads(text.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


TOKENS = st.sampled_from(
    ['"command"', '"cmd"', '"job"', '"data"', '"id"', '"wait"', '"list"', '"push"', '"stop"', '"YQ=="', '"é"',
     '"\\u00e9"', "{", "}", "[", "]", ":", ",", "1", "-1.5e3", "null", "true", " ", '"', "\\", "0", "e", "x"]
)  # fmt: skip
NEARLY = st.dictionaries(
    st.sampled_from(["command", "cmd", "job", "data", "id", "wait", "codes", "x"]),
    st.none()
    | st.booleans()
    | st.integers(-3, 700000)
    | st.sampled_from([*ALL, NGINX, "YQ", "é", ""])
    | st.lists(st.integers(), max_size=2),
).map(lambda value: json.dumps(value).encode())


@settings(DETERMINED, max_examples=600)
@given(
    st.binary(max_size=60)
    | st.lists(TOKENS, max_size=14).map(lambda t: "".join(t).encode())
    | NEARLY,
    st.integers(0, 200),
    st.sampled_from([None, b"", b'"', b"\xff", b"\0", b"{"]),
)
def test_a_query_or_a_refusal_for_any_bytes(text, place, damage):
    """Any bytes give a Query or InvalidQuery, fatal exactly where Python's reader sees no JSON object."""
    if damage is not None:
        place %= len(text) + 1
        text = text[:place] + damage + text[place + 1 :]
    value = json_object(text)
    query = outcome(text)
    if isinstance(query, InvalidQuery):
        assert str(query).isprintable()
        assert query.fatal == (value is None)
        assert query.fatal or isinstance(query, UnusableQuery)
        return
    assert isinstance(query, Query)
    word = value.get("command") if value.get("command") is not None else value.get("cmd")
    assert query.command == word
    assert query.wait_s == value.get("wait")
    assert (query.job is not None) or NEEDS[query.command] is not Needs.JOB
    assert (query.data is not None) is (query.command is Command.PUSH)
    if "id" in value:
        assert json.loads(query.id) == value["id"]
    else:
        assert query.id == b""
