"""Servers that are broken, hostile or something else: always words, never a traceback or a hang."""

import json
import os
import socket
import threading
import time

import pytest
from cli_servers import DEADLINE_S, Jobs, b64, frames
from hypothesis import given
from hypothesis import strategies as st

from taskmaster.cli import client as client_module
from taskmaster.cli.address import Address, parse
from taskmaster.cli.client import Client, loads
from taskmaster.errors import TaskmasterError, TimedOut, Unavailable

DEEP = b"[" * 100000


def says(reply: bytes):
    """A conversation: read one query, send ``reply``, close."""

    def conversation(connection):
        for _ in frames(connection):
            connection.sendall(reply)
            connection.shutdown(socket.SHUT_RDWR)

    return conversation


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "it closed the connection without answering"),
        (b'{"response":"succ', 'in the middle of a reply (it sent \'{"response":"succ\')'),
        (b'{"response":"success"};', "in the middle of a reply"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not taskmasterd (it sent 'SSH-2.0-OpenSSH_9.6\\r\\n')"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not taskmasterd"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "not taskmasterd (it sent '\\x15\\x03"),
        (b"{\xff\xfe};;", "not taskmasterd"),
        (b"{};;", "not taskmasterd"),
        (b'{"response":1};;', "not taskmasterd"),
        (b'{"response":' + DEEP + b";;", "not taskmasterd"),
        (b'{"response":"success","x":NaN};;', "not taskmasterd"),
        (b'{"response":"success","id":99};;', "do not belong to what was asked"),
        (b'{"response":"\x1b[2J"};;', "not taskmasterd"),
        (b'{"response":"\\u001b[2J"};;', "answered '\\x1b[2J'"),
        (b'{"response":"file","data":""};;', "answered 'file', which answers nothing"),
        (b'{"response":"fail","error":"\xc3\xa9"};;', "no base64 in its 'error'"),
        (b'{"response":"fail","error":7};;', "no base64 in its 'error'"),
    ],
)
def test_unusable_reply(make_server, here, reply, words):
    """What is no reply of a taskmasterd exits 69 and shows, escaped, what came."""
    result = here(make_server(raw=says(reply)), "start", "web")
    assert result.status == 69
    assert result.out == ""
    assert words in result.err
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err


@pytest.mark.parametrize("data", ["", "[]", "{", "7", '{"job":1e999}', '{"a":"\xff'])
def test_unreadable_status_document(make_server, here, data):
    """A status reply without a usable document is one job's failure; the others are shown."""
    good = Jobs(db="RUNNING")

    def answer(query):
        if query["job"] == b64("web"):
            return {"response": "status", "data": b64(data)}
        return good(query)

    result = here(make_server(answer), "status", "web", "db")
    assert result.status == 69
    assert "db   RUNNING" in result.out
    assert result.err.startswith("taskmasterctl: web: its status document")


def test_invalid_without_an_error(make_server, here):
    """``invalid`` may come without a reason."""
    result = here(make_server(lambda query: {"response": "invalid"}), "start", "web")
    assert result == (1, "", "taskmasterctl: web: taskmasterd gave no reason\n")


def test_lost_in_the_middle(make_server, here):
    """What was answered before the loss is reported; every other job is named as unanswered."""

    def conversation(connection):
        for query in frames(connection):
            reply = {"response": "success", "id": query["id"]}
            connection.sendall(json.dumps(reply).encode() + b';;{"resp')
            connection.shutdown(socket.SHUT_RDWR)

    result = here(make_server(raw=conversation), "stop", "a", "b", "c")
    assert (result.status, result.out) == (69, "a: stopped\n")
    assert "b: no usable answer from taskmasterd" in result.err
    assert result.err.endswith("taskmasterctl: c: not answered: see above\n")


def test_oversize_reply(make_server, here, monkeypatch):
    """A reply without an end is given up at the cap."""
    monkeypatch.setattr(client_module, "MAX_REPLY_BYTES", 1 << 20)

    def conversation(connection):
        for _ in frames(connection):
            while True:
                connection.sendall(b'{"response":"' + b"x" * 65536)

    result = here(make_server(raw=conversation), "start", "web")
    assert result.status == 69
    assert "its reply is over 1048576 bytes" in result.err


def test_drip_does_not_extend_the_deadline(make_server):
    """A byte now and then is no progress: only a whole reply is."""
    over = threading.Event()

    def conversation(connection):
        for _ in frames(connection):
            while not over.wait(0.01):
                connection.sendall(b'{"response":"success"'[:1])

    client = Client(parse(make_server(raw=conversation).address), reply_timeout_s=0.3)
    with pytest.raises(TimedOut, match=r"none within 0\.3 s"):
        next(client.ask([{"command": "list"}]))
    over.set()
    with pytest.raises(StopIteration):
        next(client.ask([]))
    assert isinstance(client.lost, TimedOut)


def test_refusal_before_the_close_is_read(make_server):
    """A server that refuses and closes while we still send is heard, not just its reset."""
    refusal = b'{"response":"invalid","error":"' + b64("too long").encode() + b'"};;'

    def conversation(connection):
        connection.recv(1)
        connection.sendall(refusal)
        connection.shutdown(socket.SHUT_RD)
        for _ in iter(lambda: connection.recv(65536), b""):
            pass
        connection.close()

    client = Client(parse(make_server(raw=conversation).address), reply_timeout_s=DEADLINE_S)
    query = {"command": "push", "job": "", "data": "x" * 20_000_000}
    assert next(client.ask([query]))["response"] == "invalid"
    client.close()


def test_both_directions_full(make_server):
    """Large queries and large replies at once do not make both ends wait for each other."""
    client = Client(
        parse(make_server(lambda query: {"response": "success", "x": query["data"]}).address),
        reply_timeout_s=DEADLINE_S,
    )
    queries = [{"command": "push", "data": chr(97 + i % 26) * 400_000} for i in range(60)]
    replies = list(client.ask(queries))
    client.close()
    assert [reply["x"][0] for reply in replies] == [query["data"][0] for query in queries]


def test_window(make_server):
    """No more queries are unanswered at a time than the window says."""
    most = 0

    def conversation(connection):
        nonlocal most
        buffer, received, answered = b"", 0, 0
        while received < 70:
            buffer += connection.recv(65536)
            received = buffer.count(b";;")
            most = max(most, received - answered)
            if received - answered >= 32 or received == 70:
                connection.sendall(b'{"response":"success"};;' * (received - answered))
                answered = received

    client = Client(parse(make_server(raw=conversation).address), reply_timeout_s=DEADLINE_S)
    assert len(list(client.ask([{"command": "status"}] * 70, window=32))) == 70
    client.close()
    assert most == 32


def packets(timeout_s=DEADLINE_S, clock=time.monotonic):
    """A client, and the other end of its connection: what one send there gives, one receive gets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    client = Client(Address(path="/x"), timeout_s, clock)
    client._socket = ours
    return client, theirs


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_replies_in_any_pieces(size):
    """Replies may be cut anywhere, and blanks may stand between them."""
    stream = b' {"response" : "success"};;\r\n{"response":"fail;","error":"eA=="};; '
    client, server = packets()
    with server:
        for at in range(0, len(stream), size):
            server.send(stream[at : at + size])
        replies = list(client.ask([{"command": "list"}] * 2))
        client.close()
    assert [reply["response"] for reply in replies] == ["success", "fail;"]


def test_slow_reader_of_our_output_costs_no_deadline():
    """Time spent between two replies by whoever takes them is not the server's."""
    now, calls_until_reply = 0.0, 0

    def clock():
        nonlocal calls_until_reply
        calls_until_reply -= 1
        if calls_until_reply == 0:
            server.send(b'{"response":"redundant"};;')
        return now

    client, server = packets(0.05, clock)
    with server:
        server.send(b'{"response":"success"};;')
        replies = client.ask([{"command": "kill"}] * 2)
        assert next(replies)["response"] == "success"
        # The reply is sent when the client looks at the clock for the third time: it has to have
        # begun a new wait by then.
        now, calls_until_reply = 100.0, 3
        assert next(replies)["response"] == "redundant"
        client.close()


def test_long_socket_path(make_server, here, tmp_path):
    """A socket deeper than the 107 bytes of an address is reached, and no descriptor is left."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_PATH)
    server = make_server(Jobs(web="RUNNING"), path=f"/proc/self/fd/{fd}/control.sock")
    server.address = str(folder / "control.sock")
    client = Client(Address(path=server.address), reply_timeout_s=DEADLINE_S)
    assert next(client.ask([{"command": "list"}]))["response"] == "list"
    client.close()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    opened = [link for link in links if os.path.lexists(link) and os.readlink(link) == str(folder)]
    assert opened == [f"/proc/self/fd/{fd}"]
    os.close(fd)
    assert here(server, "list").out == "web\n"


def test_long_socket_name(here, make_server, tmp_path):
    """A name that no address can hold is said to be too long."""
    server = make_server(Jobs())
    server.address = str(tmp_path / ("n" * 200))
    assert "File name too long" in here(server, "list").err


def test_full_queue_is_no_hang(tmp_path):
    """A daemon that accepts nobody is given up after the connect deadline."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(Unavailable, match="its queue is full"):
            client_module.connect(Address(path=path), timeout_s=0.1)


@pytest.mark.parametrize("host", ["host.invalid", "x" * 70, "é" * 70])
def test_unknown_host(host):
    """A name that resolves to nothing, or cannot be a name, is the server's fault, in words."""
    with pytest.raises(Unavailable, match="cannot reach taskmasterd at"):
        client_module.connect(Address(host=host))


@given(st.binary(max_size=200))
def test_any_json_or_value_error(data):
    """Parsing foreign bytes gives a value that can be printed as JSON, or ValueError."""
    try:
        value = loads(data)
    except ValueError:
        return
    json.dumps(value, allow_nan=False)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_any_bytes_are_a_reply_or_an_error(chunks):
    """Whatever a server sends, asking ends in a reply or in one of our own errors."""
    client, theirs = packets()
    with theirs:
        for chunk in chunks:
            theirs.send(chunk or b" ")
        theirs.shutdown(socket.SHUT_WR)
        said = []
        try:
            said += [reply["response"] for reply in client.ask([{"command": "list"}] * 2)]
        except TaskmasterError as error:
            said.append(str(error))
        client.close()
        assert all(isinstance(text, str) for text in said)
        assert client.lost is None or said[-1].isprintable()
