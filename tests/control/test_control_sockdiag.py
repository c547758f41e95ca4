"""Whose a loopback connection is: the socket's user and number, or nobody; never root for want of knowledge."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest
from running import wait_for
from strangers import NOBODY, as_user, needs_root

from taskmaster import sockdiag
from taskmaster.control.holders import Holders
from taskmaster.sockdiag import Owner, SocketDiagnosis

#: Listening host, and the host that a client names.
WAYS = [
    ("127.0.0.1", "127.0.0.1"),
    ("::", "127.0.0.1"),
    ("::", "127.8.9.10"),
    ("::", "::1"),
    ("::", "::ffff:127.0.0.1"),
]


def listening(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, dualstack_ipv6=":" in host, backlog=1024)


def ends(accepted, address):
    return (address[0], address[1], *accepted.getsockname()[:2])


@pytest.fixture(params=["netlink", "proc"])
def diagnosis(request):
    """The kernel asked both ways."""
    made = SocketDiagnosis()
    if request.param == "proc":
        made.close()
    elif not made.by_netlink:
        pytest.skip("no NETLINK_SOCK_DIAG here")
    yield made
    made.close()


@pytest.mark.parametrize(("server", "client"), WAYS)
def test_owner(diagnosis, server, client):
    """A client's socket is found by its addresses in whatever form; after a half close too, after the end not."""
    with listening(server) as listener:
        was = diagnosis.by_netlink
        diagnosis.try_out(listener)
        assert diagnosis.by_netlink is was, "netlink tells of a socket that listens"
        with socket.create_connection((client, listener.getsockname()[1])) as connection:
            accepted, address = listener.accept()
            assert sockdiag.is_loopback(address[0])
            inode = os.fstat(connection.fileno()).st_ino
            owner = Owner(os.geteuid(), inode)
            assert diagnosis.owner(ends(accepted, address)) == owner
            connection.shutdown(socket.SHUT_WR)
            assert diagnosis.owner(ends(accepted, address)) == owner
            assert sockdiag.stands(accepted)
            # Our own end is found too, and is not taken for the other.
            own = diagnosis.owner((*accepted.getsockname()[:2], address[0], address[1]))
            assert own is not None
            assert own.inode == os.fstat(accepted.fileno()).st_ino != inode
        assert diagnosis.owner(ends(accepted, address)) is None
        accepted.close()
        assert diagnosis.owner((address[0], address[1], *listener.getsockname()[:2])) is None


@needs_root
def test_orphans_are_nobody(diagnosis):
    """Whatever state a stranger's socket is in after he closed it, or is reset, it is his or nobody's."""
    with listening("127.0.0.1") as listener:
        port = listener.getsockname()[1]

        def leave() -> None:
            for number in range(60):
                connection = socket.create_connection(("127.0.0.1", port))
                if number % 3:
                    connection.sendall(b'{"command":"shutdown"};;')
                if number % 5 == 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if number % 2:
                    connection.shutdown(socket.SHUT_WR)
                connection.close()

        as_user(NOBODY, leave)
        for _ in range(60):
            accepted, address = listener.accept()
            with accepted:
                assert diagnosis.owner(ends(accepted, address)) is None


def test_the_end_of_ours_is_seen():
    """Once a client is reset another can have its addresses, and is found; that ours is over tells them apart."""
    diagnosis = SocketDiagnosis()
    with listening("127.0.0.1") as listener, contextlib.closing(diagnosis):
        for _ in range(100):
            connection = socket.create_connection(listener.getsockname())
            accepted, address = listener.accept()
            with accepted, socket.socket() as other:
                assert sockdiag.stands(accepted)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(b"x")
                connection.close()
                assert not sockdiag.stands(accepted)
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    other.bind(address)
                except OSError:
                    continue  # some program of this host has got the port meanwhile
                other.connect(listener.getsockname())
                assert diagnosis.owner(ends(accepted, address)) is not None
                assert not sockdiag.stands(accepted)
                return
    pytest.fail("no port could be had twice")


def test_a_listener_is_not_taken_for_a_client(diagnosis):
    """Where no client has these addresses but somebody listens on them, there is no owner."""
    with listening("127.0.0.1") as listener, listening("127.0.0.1") as other:
        host, port = other.getsockname()
        assert diagnosis.owner((host, port, *listener.getsockname())) is None


def test_many_sockets_do_not_slow_it_down():
    """With 4000 connections more, a question takes no longer by netlink."""
    diagnosis = SocketDiagnosis()
    if not diagnosis.by_netlink:
        pytest.skip("no NETLINK_SOCK_DIAG here")
    with listening("127.0.0.1") as listener, contextlib.ExitStack() as kept:
        kept.callback(diagnosis.close)
        client = kept.enter_context(socket.create_connection(listener.getsockname()))
        accepted, address = listener.accept()
        kept.enter_context(accepted)
        assert client

        def best_us() -> float:
            times = []
            for _ in range(200):
                began = time.perf_counter()
                assert diagnosis.owner(ends(accepted, address))
                times.append(time.perf_counter() - began)
            return sorted(times)[20] * 1e6

        few_us = best_us()
        crowd = subprocess.Popen(
            [sys.executable, "-c", CROWD, str(listener.getsockname()[1])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            for _ in range(2000):
                kept.enter_context(listener.accept()[0])
            assert crowd.stdout.readline() == b"there\n"
            many_us = best_us()
        finally:
            crowd.communicate(b"\n")
    assert many_us < 4 * few_us + 100, (few_us, many_us)


CROWD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(2000)]
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *((one, True) for one in ("127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1")),
        *((one, False) for one in ("10.0.0.1", "::ffff:10.0.0.1", "fe80::1%lo", "::", "0.0.0.0")),
    ],
)
def test_loopback(host, loopback):
    """Loopback is told in every form that the kernel gives addresses in."""
    assert sockdiag.is_loopback(host) is loopback


def test_the_process_is_found_and_remembered():
    """Who holds a socket is found; 200 of one process cost little; searches are few, and then there are none."""
    now = [100.0]
    holders = Holders(lambda: now[0])
    with contextlib.ExitStack() as kept:
        sockets = [kept.enter_context(socket.socket()) for _ in range(200)]
        first = os.fstat(sockets[0].fileno()).st_ino

        def found():
            # Where there are many processes, each search gets a little further.
            now[0] += 1
            return holders.find(os.geteuid(), first)

        assert wait_for(found) == os.getpid()
        began = time.perf_counter()
        for one in sockets:
            assert holders.find(os.geteuid(), os.fstat(one.fileno()).st_ino) == os.getpid()
        assert time.perf_counter() - began < 2.0
        # Not by another user's processes, and not after so many searches in vain.
        inode = os.fstat(sockets[0].fileno()).st_ino
        assert Holders(lambda: now[0]).find(os.geteuid() + 1, inode) is None
        for _ in range(50):
            assert holders.find(os.geteuid() + 1, inode) is None
    assert not holders._may_search()
    now[0] += 1
    assert holders._may_search()


def server_ends(connection):
    return (*connection.getpeername()[:2], *connection.getsockname()[:2])


@pytest.mark.parametrize(("server", "client"), WAYS)
def test_whose_the_server_is(diagnosis, server, client):
    """Before it has accepted and after; once it has closed its end, or half of it; of another host not."""
    with listening(server) as listener:
        diagnosis.try_out(listener)
        with socket.create_connection((client, listener.getsockname()[1])) as connection:
            asked = server_ends(connection)
            assert diagnosis.server(asked) == os.geteuid()
            accepted, _ = listener.accept()
            with accepted:
                assert diagnosis.server(asked) == os.geteuid()
                accepted.shutdown(socket.SHUT_WR)
                assert diagnosis.server(asked) == os.geteuid()
            assert diagnosis.server(asked) == sockdiag.NOBODY
        assert diagnosis.server(asked) is None


@needs_root
def test_whose_an_accepted_connection_is(diagnosis):
    """The one who accepted it has it, whoever listens: a stranger may listen, and root's daemon come after."""
    with listening("127.0.0.1") as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as connection:
            listener.setblocking(True)

            def accept() -> int | None:
                accepted, _ = listener.accept()
                with accepted:
                    return diagnosis.server(server_ends(connection))

            assert as_user(NOBODY, accept).result == NOBODY
