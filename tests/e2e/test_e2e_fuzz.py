"""A hundred thousand random and mutated frames: the daemon stays up, its memory flat, other clients served."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Daemon, query

FRAMES = 100_000
#: Between two questions of the other client.
BATCH = 500
#: In one write. Every sixth or so ends the connection, and what follows it is not looked at.
AT_ONCE = 12
END = b";;"
#: After so many the daemon has met everything that it remembers; its memory is compared with that.
WARM = 20_000
#: What may come on top in the eighty thousand frames after that, bytes: caches, fragments, one garbage
#: collection that has not been. A leak of 100 bytes a frame would be as much.
FLAT = 8 << 20

#: Well-formed queries to mutate: all that may be done to a job that is not there, and what reads.
SEEDS = [
    query(command, job, **fields)
    for command, job, fields in (
        ("status", "web", {}),
        ("status", "web", {"id": 7, "codes": True}),
        ("list", None, {}),
        ("pull", "web", {"id": "x"}),
        ("start", "nobody", {"wait": 1}),
        ("stop", "nobody", {}),
        ("kill", "nobody", {}),
        ("repair", "nobody", {}),
        ("reload", "nobody", {}),
        ("delete", "nobody", {}),
        ("push", "bad name", {"data": '{"cmd":"true"'}),
        ("push", "nobody", {"data": '{"cmd":'}),
    )
]
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
#: What JSON, base64, UTF-8 and the framing may trip over.
SPICES = [
    *(
        b"{",
        b"}",
        b"[" * 50,
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\xff",
        b"\xc3",
        b"\0",
        b";",
        b";;",
    ),
    *(
        b"1e999",
        b"-0",
        b"9" * 400,
        b"null",
        b"true",
        b",",
        b":",
        b"=",
        b"\r\n\r\n",
        b"\n",
        b" " * 100,
    ),
    *(b"HTTP/1.1", b"\x16\x03\x01", b"A" * 3000),
]


def frames(chance: random.Random) -> Iterator[bytes]:
    """Frames without end: mutated ones, and some that are noise altogether."""
    while True:
        seed = bytearray(chance.choice(SEEDS))
        if chance.randrange(5):
            # Most stay JSON: what they mean is another, and what comes behind them is looked at as well.
            letters = [at for at, byte in enumerate(seed) if chr(byte).isalnum()]
            for _ in range(chance.randrange(1, 4)):
                seed[chance.choice(letters)] = chance.choice(LETTERS)
            yield bytes(seed)
            continue
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(seed))
            kind = chance.randrange(5)
            if kind == 0:
                seed[at] = chance.randrange(256)
            elif kind == 1:
                del seed[at : at + chance.randrange(1, 6)]
            elif kind == 2:
                seed[at:at] = chance.choice(SPICES)
            elif kind == 3:
                seed[at:at] = seed[: chance.randrange(len(seed) + 1)]
            else:
                seed[at : at + 8] = chance.choice(SPICES)
            if not seed:
                seed += b"x"
        yield (
            bytes(seed)
            if chance.randrange(10)
            else chance.randbytes(chance.randrange(1, 60)) + b";;"
        )


def resident(daemon: Daemon) -> int:
    """Resident set of the control plane, bytes."""
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * 4096


def send(path: Path, stream: bytes) -> int:
    """Have all frames of the stream looked at; how many they were.

    One that is no query cuts the connection: what came behind it is sent again on the next one.
    """
    left = [frame + END for frame in stream.split(END)[:-1]]
    count = len(left)
    while left:
        answered = 0
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"".join(left[:AT_ONCE]))
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while received := connection.recv(1 << 20):
                    answered += received.count(END)
        del left[: max(answered, 1)]
    return count


@pytest.mark.timeout(240)
def test_random_and_mutated_frames(make_daemon):
    """Seeded, so that what fails once fails again; each batch is followed by a question of another client."""
    daemon = make_daemon()
    daemon.job("web", ["sleep", "1000"])
    daemon.start()
    status = daemon.wait_state("web", "RUNNING")
    other = daemon.client(tcp=True)
    source = frames(random.Random(20_26))
    sent = warm = 0
    while sent < FRAMES:
        sent += send(daemon.socket, b"".join(next(source) for _ in range(BATCH)) + END)
        assert other.status("web")["processes"][0]["pid"] == status["processes"][0]["pid"]
        if not warm and sent >= WARM:
            warm = resident(daemon)
    assert resident(daemon) - warm < FLAT
    assert other.ask("list")["data"] == b'{"jobs":[{"name":"web"}]}'
    assert daemon.running
    looked_at = len(daemon.events("command.requested")) + len(daemon.events("client.rejected"))
    assert looked_at > FRAMES // 2
