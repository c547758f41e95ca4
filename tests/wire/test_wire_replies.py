"""Replies, byte for byte."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.wire import replies
from taskmaster.wire.frames import ClientFrames
from taskmaster.wire.queries import parse_query
from taskmaster.wire.replies import Reply

DETERMINED = settings(deadline=None, derandomize=True)
#: base64 of {"jobs":[{"name":"apache2"},{"name":"nginx"}]}
JOBS = "eyJqb2JzIjpbeyJuYW1lIjoiYXBhY2hlMiJ9LHsibmFtZSI6Im5naW54In1dfQ=="


@pytest.mark.parametrize(
    ("reply", "frame"),
    [
        (replies.success(), b'{"response":"success"};;'),
        (replies.redundant(), b'{"response":"redundant"};;'),
        # The example of the published document, without its white space.
        (
            replies.fail("Invalid job name."),
            b'{"response":"fail","error":"SW52YWxpZCBqb2IgbmFtZS4="};;',
        ),
        (replies.invalid("é"), b'{"response":"invalid","error":"w6k="};;'),
        (replies.fail(""), b'{"response":"fail","error":""};;'),
        (
            replies.status("nginx", b'{"job":"nginx"}'),
            b'{"response":"status","job":"bmdpbng=","data":"eyJqb2IiOiJuZ2lueCJ9"};;',
        ),
        (
            replies.file("nginx", b"\xff;;\0"),
            b'{"response":"file","job":"bmdpbng=","data":"/zs7AA=="};;',
        ),
        (
            replies.job_list(["apache2", "nginx"], old_dialect=False),
            f'{{"response":"list","list":"{JOBS}","data":"{JOBS}"}};;'.encode(),
        ),
    ],
    ids=lambda value: value.response if isinstance(value, Reply) else "",
)
def test_bytes(reply, frame):
    """Each reply is compact, its keys in the documented order; an id comes last, as it was given."""
    assert reply.frame() == frame
    assert reply.frame(b"7") == frame.replace(b"};;", b',"id":7};;')
    assert reply.frame(b'"\\u00e9"') == frame.replace(b"};;", b',"id":"\\u00e9"};;')


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (replies.fail("Job gone."), "failed"),
        (replies.fail("Job gone.", "no-such-job"), "no-such-job"),
        (replies.invalid("What?"), "invalid-query"),
        (replies.success(), None),
        (replies.redundant(), None),
        (replies.file("a", b""), None),
        (replies.status("a", b"{}"), None),
        (replies.job_list([], old_dialect=False), None),
    ],
)
def test_code(reply, code):
    """Who asks for it gets the stable code of a failure beside its sentence; nobody else does."""
    plain, coded = json.loads(reply.frame()[:-2]), json.loads(reply.frame(with_code=True)[:-2])
    assert "code" not in plain
    assert coded == (plain | {"code": code} if code else plain)
    assert (reply.error is not None) == (reply.code is not None) == (code is not None)
    both = reply.frame(b"1", with_code=True)
    assert json.loads(both[:-2]) == coded | {"id": 1}


@pytest.mark.parametrize("names", [[], ["nginx"], ["apache2", "nginx"]])
def test_list_of_both_dialects(names):
    """The same document under both names of its key; for the older dialect with ``processes`` beside ``jobs``."""
    jobs = [{"name": name} for name in names]
    for old_dialect, document in (
        (False, {"jobs": jobs}),
        (True, {"jobs": jobs, "processes": jobs}),
    ):
        reply = json.loads(replies.job_list(names, old_dialect=old_dialect).frame()[:-2])
        assert reply["list"] == reply["data"]
        text = base64.b64decode(reply["data"], validate=True)
        assert text.decode() == json.dumps(document, separators=(",", ":"))


TEXT = st.text()  # lone surrogates too: an error may quote a file name that is no UTF-8


@DETERMINED
@given(
    TEXT,
    st.binary(),
    st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: ";;" not in t),
)
def test_any_content_is_one_frame(text, data, query_id):
    """Whatever a reply carries, a client finds one frame of ASCII fields without blanks, and all of it."""
    written = json.dumps(query_id).encode()
    raw_id = parse_query(b'{"cmd":"list","id":' + written + b"}").id
    safe = text.encode("utf-8", "replace").decode()
    for reply, fields in (
        (replies.fail(text), {"error": safe.encode()}),
        (replies.invalid(text), {"error": safe.encode()}),
        (replies.file(safe, data), {"job": safe.encode(), "data": data}),
        (replies.status(safe, data), {"job": safe.encode(), "data": data}),
    ):
        plain = reply.frame()
        assert plain.isascii()
        assert not set(plain) & set(b" \t\r\n")
        client = ClientFrames(10**6)
        client.receive_data(plain + reply.frame(raw_id))
        expected = {"response": reply.response} | {
            key: base64.b64encode(value).decode() for key, value in fields.items()
        }
        assert json.loads(client.next_frame()) == expected
        assert json.loads(client.next_frame()) == expected | {"id": query_id}
        assert (client.next_frame(), client.pending_bytes()) == (None, 0)


def test_the_words():
    """The seven responses of the protocol."""
    words = (replies.SUCCESS, replies.FAIL, replies.INVALID, replies.STATUS, replies.REDUNDANT,
             replies.FILE, replies.LIST)  # fmt: skip
    assert words == ("success", "fail", "invalid", "status", "redundant", "file", "list")
