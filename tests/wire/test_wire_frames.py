"""Frames: the same whichever pieces the bytes come in, capped, and over for good at the first wrong byte."""

import contextlib
import json
import multiprocessing
import os
import struct
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.errors import InvalidQuery
from taskmaster.wire.frames import MAX_LINK_FRAME, ClientFrames, LinkFrames, link_frame

DETERMINED = settings(deadline=None, derandomize=True)
CAP = 4194304

HIDDEN = b'{"command":"kill","job":"bmdpbng="};;'


def read(decoder, pieces):
    """All frames that come out, and the error that ended it (None without)."""
    frames = []
    for piece in pieces:
        decoder.receive_data(piece)
        try:
            while (frame := decoder.next_frame()) is not None:
                frames.append(frame)
        except InvalidQuery as error:
            return frames, error
    return frames, None


def cut(stream, places):
    """``stream`` in pieces, cut at these places; empty pieces are no bytes and stay out."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges) if a < b]


def byte_by_byte(stream):
    return [stream[at : at + 1] for at in range(len(stream))]


BLANK = st.text(alphabet=" \t\r\n", max_size=3).map(str.encode)
OBJECT = (
    st.dictionaries(
        st.text(max_size=4), st.text(max_size=4) | st.integers() | st.none(), max_size=3
    )
    .map(lambda value: json.dumps(value, ensure_ascii=False))
    .filter(lambda text: ";;" not in text)
    .map(lambda text: text.encode("utf-8", "replace"))
)
CUTS = st.lists(st.integers(0, 10**6), max_size=12)


@DETERMINED
@given(st.lists(st.tuples(BLANK, OBJECT, BLANK), max_size=8), BLANK, CUTS)
def test_any_fragmentation_of_a_pipeline(parts, last, cuts):
    """Many frames with white space around them come out one for one, in order, however they are cut."""
    stream = b"".join(before + frame + after + b";;" for before, frame, after in parts) + last
    expected = [frame + after for _, frame, after in parts]
    for pieces in (cut(stream, cuts), byte_by_byte(stream), [stream]):
        decoder = ClientFrames(CAP)
        assert read(decoder, pieces) == (expected, None)
        assert decoder.pending_bytes() == 0
        assert decoder.next_frame() is None


PIPELINE = b'{"a":";"};; {"b":"\xc3\xa9;}{"}\t;;\r\n{};;{"c":1}'


@pytest.mark.parametrize("size", range(1, len(PIPELINE) + 1))
def test_every_size_of_piece(size):
    """Pieces of every size give the same frames, and what is unfinished is kept and counted."""
    decoder = ClientFrames(CAP)
    pieces = [PIPELINE[at : at + size] for at in range(0, len(PIPELINE), size)]
    assert read(decoder, pieces) == ([b'{"a":";"}', b'{"b":"\xc3\xa9;}{"}\t', b"{}"], None)
    assert decoder.pending_bytes() == len(b'{"c":1}')
    decoder.receive_data(b";;")
    assert decoder.next_frame() == b'{"c":1}'


UNITS = st.sampled_from([b"{}", b"{a}", b"{;a}", b"{aa", b";;", b";;", b";;", b";", b" \n", b"x"])


@settings(DETERMINED, max_examples=500)
@given(st.lists(UNITS, max_size=8).map(b"".join), st.integers(1, 5), CUTS)
def test_any_fragmentation_of_anything(stream, cap, cuts):
    """Also wrong bytes and frames at the cap: what comes out, and whether it dies, is not up to the cuts."""
    frames, error = read(ClientFrames(cap), [stream])
    for pieces in (cut(stream, cuts), byte_by_byte(stream)):
        cut_frames, cut_error = read(ClientFrames(cap), pieces)
        assert (cut_frames, cut_error is None) == (frames, error is None)


def frame_of(size):
    return b'{"x":"' + b"y" * (size - 8) + b'"}'


@pytest.mark.parametrize("cap", [8, 9, 1000])
@pytest.mark.parametrize(
    "split", ["one piece", "byte by byte", "in the end mark", "before the end mark"]
)
def test_cap(cap, split):
    """A frame of exactly the cap passes, its end mark not counted; one byte more ends the stream."""

    def pieces(size):
        stream = frame_of(size) + b";;" + frame_of(8) + b";;"
        if split == "one piece":
            return [stream]
        if split == "byte by byte":
            return byte_by_byte(stream)
        return cut(stream, [size + (split == "in the end mark")])

    assert read(ClientFrames(cap), pieces(cap)) == ([frame_of(cap), frame_of(8)], None)
    frames, error = read(ClientFrames(cap), pieces(cap + 1))
    assert frames == []
    assert error.fatal
    assert str(cap) in str(error)


def test_cap_of_what_has_no_end():
    """A frame over the cap ends the stream before its end comes, and nothing of it is held."""
    decoder = ClientFrames(1000)
    assert read(decoder, [frame_of(1000)]) == ([], None)
    assert decoder.pending_bytes() == 1000
    assert read(decoder, [b"ab"])[1].fatal
    assert decoder.pending_bytes() == 0
    assert read(ClientFrames(1000), [b" " * 10000 + frame_of(1000) + b";;"]) == (
        [frame_of(1000)],
        None,
    )


@DETERMINED
@given(st.lists(OBJECT, max_size=4), CUTS, st.integers(0, 10**6))
def test_another_decoder_goes_on(parts, cuts, place):
    """What is unread when a connection changes hands, and what comes after, give the rest of its frames."""
    stream = b"".join(frame + b";;" for frame in parts)
    place %= len(stream) + 1
    for taken in range(len(parts) + 1):  # frames that the first one still hands out
        first, frames = ClientFrames(CAP), []
        for piece in cut(stream[:place], cuts):
            first.receive_data(piece)
            while len(frames) < taken and (frame := first.next_frame()) is not None:
                frames.append(frame)
        unread = first.unread()
        assert len(unread) == first.pending_bytes()
        rest, error = read(ClientFrames(CAP), [unread, stream[place:]])
        assert (frames + rest, error) == (parts, None)


HTTP, TLS, NONE = "an HTTP request", "a TLS hello", "Not a JSON object"
FOREIGN = [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HTTP),
    (b"POST / HTTP/1.1\r\n", HTTP),
    (b"OPTIONS * HTTP/1.1\r\n", HTTP),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP),
    (b"Host: 127.0.0.1:7777\r\n", HTTP),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", TLS),
    (b"\x16\x03\x03\x00\xf4", TLS),
    (b"SSH-2.0-OpenSSH_9.2\r\n", NONE),
    (b"\x00\x00\x00\x02{}", NONE),
    (b"\xef\xbb\xbf{};;", NONE),
    (b"\xff\xfe{\x00", NONE),
    (b"[];;", NONE),
    (b"null;;", NONE),
    (b'"x";;', NONE),
    (b"1 2;;", NONE),
    (b"abcdefghijklmnopqrstuvw", NONE),
    (b";;", NONE),
    (b";", NONE),
    (b"}", NONE),
    (b"\x00", NONE),
    (b"\x0b{};;", NONE),
    (b"\xc2\xa0{};;", NONE),
]


@pytest.mark.parametrize(("start", "word"), FOREIGN, ids=lambda value: repr(value)[:24])
@pytest.mark.parametrize("blank", [b"", b" \r\n\t"], ids=["", "blank"])
@pytest.mark.parametrize("before", [[], [b'{"command":"list"}', b"{}"]], ids=["first", "later"])
def test_the_first_byte_decides(before, blank, start, word):
    """What is no frame ends the stream at its first byte; what came before it came out."""
    good = b"".join(frame + b";;" for frame in before)
    frames, error = read(ClientFrames(CAP), [good + blank + start + HIDDEN])
    assert frames == before
    assert error.fatal
    assert word in str(error)
    assert str(error).isprintable()
    decoder = ClientFrames(CAP)
    assert read(decoder, [good + blank]) == (before, None)
    assert read(decoder, [start[:1]])[1].fatal  # no byte more is waited for


@pytest.mark.parametrize(
    "wrong", [b"x", b"GET ", b"{" + b"y" * 40], ids=["wrong", "http", "too long"]
)
def test_dead_is_dead(wrong):
    """After the first error nothing is kept and nothing comes out, whatever comes in."""
    decoder = ClientFrames(32)
    [], first = read(decoder, [wrong])
    for more in (b"", HIDDEN, b"{};;", b";;{};;", b"\n{};;"):
        decoder.receive_data(more)
        with pytest.raises(InvalidQuery) as again:
            decoder.next_frame()
        assert again.value.fatal
        assert str(again.value) == str(first)
        assert decoder.pending_bytes() == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + HIDDEN + b" HTTP/1.1\r\nHost: localhost:7777\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: x=" + HIDDEN + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HIDDEN + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 37\r\n\r\n" + HIDDEN,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n25\r\n" + HIDDEN + b"\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\na;;" + HIDDEN,
        b"POST / HTTP/1.1\r\n\r\n;;\n" + HIDDEN * 3,
        b"\r\n\r\nPOST / HTTP/1.1\r\n\r\n" + HIDDEN,
        b"--boundary\r\nContent-Disposition: form-data\r\n\r\n" + HIDDEN,
        b"\x16\x03\x01\x00\x40" + HIDDEN,
    ],
)
def test_a_frame_hidden_in_another_protocol_never_comes_out(request_bytes):
    """What a web page makes a browser send is never executed, however the network cuts it."""
    for pieces in ([request_bytes], byte_by_byte(request_bytes), cut(request_bytes, [5, 20, 30])):
        decoder = ClientFrames(CAP)
        for piece in pieces:
            decoder.receive_data(piece)
            with contextlib.suppress(InvalidQuery):
                assert decoder.next_frame() is None
        with pytest.raises(InvalidQuery):
            decoder.next_frame()


@DETERMINED
@given(st.binary(min_size=1, max_size=20), CUTS)
def test_nothing_comes_out_after_anything_else(start, cuts):
    """Behind any first byte but an opening brace, a valid frame is never found."""
    stream = start + HIDDEN
    frames, error = read(ClientFrames(CAP), cut(stream, cuts))
    if start.strip(b" \t\r\n")[:1] not in (b"", b"{"):
        assert frames == []
        assert error.fatal


def cost(stream, size, frames):
    """Processor time, seconds, to read a stream in pieces of this size; the least of three."""
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    seconds = []
    for _ in range(3):
        before = time.process_time()
        found, error = read(ClientFrames(CAP), pieces)
        seconds.append(time.process_time() - before)
        assert (len(found), error) == (frames, None)
    return min(seconds)


def test_cost_of_many_frames():
    """Many small frames in one piece cost what they cost in small pieces: no copy of the rest for each."""
    count = 512 * 1024 // 4
    stream = b"{};;" * count
    at_once, in_pieces = cost(stream, len(stream), count), cost(stream, 4096, count)
    assert at_once < 4 * in_pieces


def test_cost_of_a_frame_that_drips():
    """A megabyte in small pieces is searched once, not once a piece: one long frame costs what 64 short do."""
    long, short = frame_of(1024 * 1024) + b";;", frame_of(16 * 1024) + b";;"
    one, many = cost(long, 64, 1), cost(short * 64, 64, 64)
    assert one < 6 * many


PAYLOADS = st.lists(st.binary(max_size=40), max_size=6)


@DETERMINED
@given(PAYLOADS, CUTS)
def test_link_any_fragmentation(payloads, cuts):
    """Link frames of any bytes, empty ones too, come out as they went in, however they are cut."""
    stream = b"".join(map(link_frame, payloads))
    for pieces in (cut(stream, cuts), byte_by_byte(stream), [stream]):
        assert read(LinkFrames(), pieces) == (payloads, None)


@DETERMINED
@given(st.binary(max_size=60), CUTS)
def test_link_hostile_bytes(stream, cuts):
    """Any bytes give frames under the cap or the one fatal error, and never depend on the cuts."""
    frames, error = read(LinkFrames(50), [stream])
    cut_frames, cut_error = read(LinkFrames(50), cut(stream, cuts))
    assert (cut_frames, cut_error is None) == (frames, error is None)
    assert all(len(frame) <= 50 for frame in frames)
    assert error is None or error.fatal


def test_link_cap():
    """Exactly the cap passes; over it the four bytes of the length are enough to be refused, again and again."""
    assert read(LinkFrames(10), [link_frame(b"x" * 10)]) == ([b"x" * 10], None)
    assert MAX_LINK_FRAME == 16 * 1024 * 1024
    for decoder, length in (
        (LinkFrames(10), 11),
        (LinkFrames(), MAX_LINK_FRAME + 1),
        (LinkFrames(), 2**32 - 1),
    ):
        decoder.receive_data(struct.pack("!I", length)[:3])
        assert decoder.next_frame() is None
        frames, error = read(decoder, [struct.pack("!I", length)[3:]])
        assert (frames, error.fatal) == ([], True)
        assert str(length) in str(error)
        decoder.receive_data(link_frame(b"x"))
        with pytest.raises(InvalidQuery):
            decoder.next_frame()


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 50000])
def test_link_frames_are_those_of_multiprocessing(size):
    """A real multiprocessing pipe writes and reads the same frames, in both ways it writes them."""
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    one, other = multiprocessing.Pipe()
    with one, other:
        one.send_bytes(payload)
        decoder, frame = LinkFrames(), None
        while frame is None:
            decoder.receive_data(os.read(other.fileno(), 65536))
            frame = decoder.next_frame()
        assert frame == payload
        framed = link_frame(payload)
        assert os.write(other.fileno(), framed) == len(framed)
        assert one.recv_bytes() == payload
