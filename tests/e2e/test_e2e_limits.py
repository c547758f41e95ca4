"""How much a client may use: connections, commands a second, time without a question; root is not counted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time

import pytest
from running import Client, b64, query, wait_for
from strangers import NOBODY, as_user, needs_root

VIEWER = [{"role": "viewer", "users": ["nobody"]}]


@pytest.fixture
def shared(open_folder, make_daemon):
    """A daemon whose socket everybody can reach, with one job."""

    def make(ulimit=None, **config):
        path = open_folder / "control.sock"
        daemon = make_daemon(
            **{"socket": str(path), "socketMode": "0666", "access": VIEWER, **config}
        )
        daemon.socket = path
        daemon.job("web", ["sleep", "1000"])
        if ulimit is None:
            daemon.start()
        else:
            argv = ["/bin/sh", "-c", f'ulimit -n {ulimit}; exec "$@"', "sh", sys.executable]
            argv += ["-m", "taskmaster.control", "-c", str(daemon.config)]
            daemon.pid = daemon.host.start(argv, daemon.messages)
            wait_for(daemon.serves)
        daemon.wait_state("web", "RUNNING")
        return daemon

    return make


@needs_root
@pytest.mark.parametrize("tcp", [False, True])
def test_slow_down(shared, tcp):
    """Over the rate nothing is read, on any connection of that user, until there are commands again."""
    daemon = shared(commandsPerSecond=20, commandsBurst=30)
    address = ("127.0.0.1", daemon.port) if tcp else daemon.socket

    def flood():
        with Client(address) as client, Client(address) as second:
            began = time.monotonic()
            client.send(b"".join(query("status", "web", id=n) for n in range(60)))
            second.send(b"".join(query("status", "web", id=n) for n in range(10)))
            replies = [client.reply() for _ in range(60)]
            again = [second.reply() for _ in range(10)]
            return replies, again, time.monotonic() - began

    replies, again, took_s = as_user(NOBODY, flood).result
    assert [one["id"] for one in replies] == list(range(60))
    assert [one["id"] for one in again] == list(range(10))
    assert {one["response"] for one in (*replies, *again)} == {"status"}
    assert took_s > 1.5, "another connection is not another user"
    assert daemon.events("client.rejected") == []
    # Root is not slowed down.
    with daemon.client() as client:
        client.send(query("status", "web") * 500)
        assert {client.reply()["response"] for _ in range(500)} == {"status"}


@needs_root
@pytest.mark.parametrize(
    ("access", "frame", "answer"),
    [
        ([], query("stop", "web", codes=True), "fail"),
        ([], query("\1" * 64, codes=True), "invalid"),
        (VIEWER, query("\\" * 80), "invalid"),
        (VIEWER, query("start", "web", wait=-1, reason="because" * 99), "invalid"),
    ],
)
def test_a_flood_of_refusals_does_not_fill_the_log(shared, access, frame, answer):
    """Ten thousand commands that are refused or invalid are answered at their rate, and leave few records."""
    daemon = shared(access=access)

    def flood():
        with Client(daemon.socket) as client:
            with contextlib.suppress(TimeoutError):
                client.socket.settimeout(2)
                client.send(frame * 10_000)
            return [client.reply()["response"] for _ in range(60)]

    before = daemon.audit_file.stat().st_size
    assert set(as_user(NOBODY, flood).result) == {answer}
    assert daemon.audit_file.stat().st_size - before < 250_000
    assert len(daemon.events("command.requested")) < 200
    assert max(len(line) for line in daemon.audit_file.read_bytes().splitlines()) < 1300
    with Client(daemon.socket) as client:  # root is not slowed down
        client.send(query("dance") * 500)
        assert {client.reply()["response"] for _ in range(500)} == {"invalid"}
        assert client.ask("status", "web", reason="to see")["response"] == "status"
    assert daemon.events("command.requested", command="dance")
    assert "reason" not in daemon.events("command.requested", command="status")[-1]


@needs_root
@pytest.mark.parametrize("access", [[], VIEWER, [{"role": "admin", "users": ["nobody"]}]])
def test_foreign_text_is_cut(shared, access):
    """Whatever a client makes up is short in the log, in messages and in what it is told."""
    daemon = shared(access=access, verbosity=3)
    long = "\u2028\x1b" * 3_000
    frames = [
        *(query(command, long) for command in ("status", "start", "delete", "history", "reload")),
        query("push", long, data="{}"),
        query("rollback", long, version=3),
        query(long, "web"),
        query("push", "new", data=json.dumps({long: 1})),
        query("push", "new", data=json.dumps({"cmd": "true", "runas": long})),
        query("push", "new", data=json.dumps({"cmd": "true", "stopSig": long})),
        query("pull", "web", version=long),
        query("audit", cursor=long),
        query("push", "web", data="{}", ifHash=long),
    ]

    def asked():
        with Client(daemon.socket) as client:
            return [
                reply.get("error", "")
                for frame in frames
                for reply in [client.send(frame) or client.reply()]
            ]

    errors = as_user(NOBODY, asked).result
    assert len(errors) == len(frames)
    assert max(map(len, errors)) < 1000
    assert not any("\x1b" in error for error in errors)
    for file in (daemon.audit_file, daemon.messages):
        lines = file.read_bytes().splitlines()
        assert max(map(len, lines)) < 2500, file
    for record in daemon.audit():
        assert len(record.get("job") or "") <= 128
        assert len(record.get("command") or "") <= 128
        assert len(record.get("error") or "") < 1000


@needs_root
@pytest.mark.parametrize(("access", "cut"), [(VIEWER, 4), ([], 20)])
def test_unfinished_frames_do_not_keep_root_out(shared, access, cut):
    """While others hold all the unfinished input there may be, root pushes a large file all the same."""
    daemon = shared(access=access)
    address, root = ("127.0.0.1", daemon.port), daemon.client()
    root.ask("list")
    job = json.dumps({"cmd": "true", "autoStart": False}) + " " * 900_000
    frame = b'{"command":"push","job":"' + b64("x").encode() + b'","data":"'
    frame += b"A" * (4 * 1024 * 1024 - 1024 - len(frame))

    def crowd():
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(Client(address).socket) for _ in range(20)]
            for one in kept:
                with contextlib.suppress(OSError):
                    one.sendall(frame)
            wait_for(lambda: len(select.select(kept, [], [], 0.1)[0]) >= cut, "cut off")
            return root.ask("push", "large", data=job)

    assert as_user(NOBODY, crowd).result["response"] == "success"


@needs_root
def test_unfinished_frames_of_one_user(shared):
    """While one user holds all the unfinished input that they may, another one pushes a large file."""
    admin = {"role": "admin", "runAs": ["nobody"]}
    daemon = shared(access=[admin | {"users": ["nobody"]}, admin | {"users": ["bin"]}])
    address = ("127.0.0.1", daemon.port)
    job = json.dumps({"cmd": "true", "runas": "nobody", "autoStart": False}) + " " * 900_000
    frame = b'{"command":"push","job":"' + b64("x").encode() + b'","data":"'
    frame += b"A" * (4 * 1024 * 1024 - 1024 - len(frame))
    read_end, write_end = os.pipe()
    told, tell = os.pipe()

    def hold():
        with contextlib.ExitStack() as stack:
            kept = [stack.enter_context(Client(address).socket) for _ in range(16)]
            for one in kept:
                with contextlib.suppress(OSError):
                    one.sendall(frame)
            wait_for(lambda: len(select.select(kept, [], [], 0.1)[0]) >= 12, "cut off")
            os.write(tell, b"x")
            os.read(read_end, 1)
            return len(select.select(kept, [], [], 0)[0])

    def push():
        with Client(daemon.socket) as client:
            return client.ask("push", "large", data=job)

    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.read(told, 1)
            assert as_user(2, push).result == {"response": "success"}
            status = 0
        finally:
            os.write(write_end, b"x")
            os._exit(status)
    assert as_user(NOBODY, hold).result < 16, "those within their share are kept"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (read_end, write_end, told, tell):
        os.close(fd)


def test_list_before_a_rollback_does_not_see_it(make_daemon):
    """Of a deleted job that a later command on the same connection rolls back, a list shows nothing."""
    daemon = make_daemon()
    daemon.job("slow", ["sleep", "1000"], startTime=1000)
    daemon.start()
    with daemon.client() as client:
        assert client.ask("push", "gone", data='{"cmd":"true"}')["response"] == "success"
        assert client.ask("delete", "gone", wait=60)["response"] == "success"
        client.send(
            query("status", "slow", wait=1)
            + query("list")
            + query("rollback", "gone")
            + query("list")
        )
        replies = [client.reply() for _ in range(4)]
    assert [one["response"] for one in replies] == ["fail", "list", "success", "list"], replies
    before, after = (
        [job["name"] for job in json.loads(replies[number]["data"])["jobs"]] for number in (1, 3)
    )
    assert (before, sorted(after)) == (["slow"], ["gone", "slow"])


@needs_root
def test_connections_of_one_user(shared):
    """A user over maxClientsPerUser is told so, over both ways together; others and root are let in."""
    daemon = shared(
        maxClientsPerUser=5, maxClients=8,
        access=[*VIEWER, {"role": "viewer", "users": ["bin"]}],
    )  # fmt: skip
    address = ("127.0.0.1", daemon.port)
    read_end, write_end = os.pipe()
    told, tell = os.pipe()

    def crowd():
        kept = [Client(address if number % 2 else daemon.socket) for number in range(5)]
        answers = [one.ask("list")["response"] for one in kept]
        over = []
        for where in (daemon.socket, address):
            with Client(where) as client:
                over.append(client.reply())
                assert client.frame() == b""
        os.write(tell, b"x")
        os.read(read_end, 1)
        kept.pop().close()
        for _ in range(1000):
            with contextlib.suppress(OSError, AssertionError), Client(daemon.socket) as client:
                reply = client.ask("list")
                if reply["response"] == "list":
                    return answers, over, True
        return answers, over, False

    def meanwhile():
        os.read(told, 1)
        with Client(daemon.socket) as client:
            assert client.ask("list")["response"] == "list"
        (other,) = as_user(2, lambda: [Client(daemon.socket).ask("list")]).result
        assert other["response"] == "list"
        os.write(write_end, b"x")

    pid = os.fork()
    if not pid:
        status = 1
        try:
            meanwhile()
            status = 0
        finally:
            os.write(write_end, b"x")
            os._exit(status)
    answers, over, again = as_user(NOBODY, crowd).result
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (read_end, write_end, told, tell):
        os.close(fd)
    assert answers == ["list"] * 5
    assert again
    for reply in over:
        assert reply["code"] == "too-many-clients"
        assert "user nobody has 5 connections (maxClientsPerUser)" in reply["error"]


@needs_root
def test_strangers_do_not_lock_root_out(shared):
    """However many connections others hold on the socket that all can reach, root gets in."""
    daemon = shared(maxClients=4)

    def crowd():
        kept = [Client(daemon.socket) for _ in range(4)]
        for one in kept:
            one.ask("list")
        with Client(daemon.socket) as over:
            return over.reply()["code"]

    assert as_user(NOBODY, crowd).result == "too-many-clients"
    with Client(daemon.socket) as client:
        assert client.ask("list")["response"] == "list"


@needs_root
@pytest.mark.parametrize("descriptors", [80, 300])
def test_few_descriptors_do_not_lock_root_out(shared, descriptors):
    """Other users do not take all descriptors, however few: root gets in both ways, and so does a new user."""
    daemon = shared(maxClients=512, ulimit=descriptors)
    ways = (daemon.socket, ("127.0.0.1", daemon.port))

    told, tell = os.pipe()
    go, end = os.pipe()
    crowds = []
    for uid in (NOBODY, 1, 2):
        pid = os.fork()
        if not pid:

            def crowd():
                with contextlib.ExitStack() as stack:
                    for number in range(128):
                        with contextlib.suppress(OSError):
                            stack.enter_context(Client(ways[number % 2]))
                    os.write(tell, b"x")
                    os.read(go, 1)

            try:
                as_user(uid, crowd)
            finally:
                os._exit(0)
        crowds.append(pid)
    for _ in crowds:
        os.read(told, 1)
    for way in ways:
        with Client(way) as client:
            assert client.status("web")["state"] == "RUNNING"
            assert client.ask("pull", "web")["response"] == "file"
    (other,) = as_user(3, lambda: [Client(ways[0]).ask("list", codes=True)]).result
    assert other["code"] == "not-permitted", "there is a seat for one who has none"
    os.write(end, b"xxx")
    for pid in crowds:
        os.waitpid(pid, 0)
    for fd in (told, tell, go, end):
        os.close(fd)
    wait_for(daemon.serves)


def test_idle_connections_end(make_daemon):
    """A connection on which nothing is asked ends; one that asks, or waits for an answer, does not."""
    daemon = make_daemon(idleTimeout=3)
    daemon.job("slow", ["sleep", "1000"], startTime=8)
    daemon.start()
    quiet, half, busy, waiting = (daemon.client(tcp=bool(number % 2)) for number in range(4))
    assert quiet.ask("list")["response"] == "list"
    half.send(b'{"command":"li')
    began = time.monotonic()
    waiting.send(query("status", "slow", wait=60))
    ended = {}
    while len(ended) < 2:
        assert time.monotonic() - began < 60
        assert busy.ask("list")["response"] == "list"
        for name, client in (("quiet", quiet), ("half", half)):
            client.socket.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                if name not in ended and client.frame() == b"":
                    ended[name] = time.monotonic() - began
    assert min(ended.values()) > 2
    assert busy.ask("list")["response"] == "list"
    assert waiting.reply()["response"] == "status"
