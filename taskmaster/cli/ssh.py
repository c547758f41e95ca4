"""``ssh://``: a taskmasterd on another host, by the system's ssh and the taskmasterctl over there.

ssh runs ``taskmasterctl proxy`` there, which copies between its standard input and output and the socket. So
the taskmasterd there sees a client of its own host, the user that ssh logged in as; which socket it has is
found by those who know; and nothing listens anywhere for the while. What ssh has to say, and to ask, goes to
the terminal.

Nothing of an address is ever seen by a shell here, and over there it is one quoted word.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
from typing import Final

from taskmaster.cli.address import Address
from taskmaster.errors import NotPermitted, TaskmasterError, Unavailable

#: Exit status of ssh where it failed itself.
_SSH_FAILED: Final = 255
#: That of a shell which cannot run what it was told to: not executable, not found.
_NO_PROGRAM: Final = (126, 127)
#: How long the other end may take to end in order, once it has nothing more to do, seconds.
_END_S: Final = 1.0


class SshConnection:
    """A connection through ssh, as far as the client needs one to be a socket."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        """Start ssh; raises Unavailable where there is none."""
        self._address = address
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                command(address, timeout_s), stdin=theirs.fileno(), stdout=theirs.fileno()
            )
        except OSError as error:
            self._socket.close()
            raise Unavailable(
                f"cannot run ssh, to reach taskmasterd at {address}: {error.strerror}"
            ) from None
        finally:
            theirs.close()
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Of our end."""
        return self._socket.fileno()

    def send(self, data: bytes | bytearray) -> int:
        """As a socket does."""
        return self._socket.send(data)

    def recv(self, size: int) -> bytes:
        """As a socket does; raises TaskmasterError where ssh ended with a failure."""
        try:
            chunk = self._socket.recv(size)
        except ConnectionResetError:
            chunk = b""  # it ended with something of ours unread
        if not chunk:
            self._check_end()
        return chunk

    def close(self) -> None:
        """End it. ssh is given a moment to do so by itself."""
        self._socket.close()
        if self._ended() is None:
            self._process.terminate()
            if self._ended() is None:
                self._process.kill()
                self._process.wait()

    def _ended(self) -> int | None:
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return None

    def _check_end(self) -> None:
        status = self._ended()
        said = "what it said is above"
        if status == _SSH_FAILED:
            raise Unavailable(f"no taskmasterd at {self._address}: ssh failed, {said}")
        if status in _NO_PROGRAM:
            raise Unavailable(
                f"there is no taskmasterctl on {self._address.host}, or not in the PATH that ssh has there"
            )
        if status == NotPermitted.exit_status:
            raise NotPermitted(f"taskmasterctl on {self._address.host} may not connect: {said}")
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise (Unavailable if status > 0 else TaskmasterError)(
                f"taskmasterctl on {self._address.host} ended with {how}: {said}"
            )


def command(address: Address, timeout_s: float) -> list[str]:
    """The words of the ssh command."""
    remote = [
        "taskmasterctl",
        *(["-c", address.remote_path] if address.remote_path else []),
        "proxy",
    ]
    return [
        *("ssh", "-T", "-o", f"ConnectTimeout={max(1, round(timeout_s))}"),
        # What the user's configuration forwards would fail where another ssh has it, and is of no use here.
        *("-o", "ClearAllForwardings=yes"),
        *(["-l", address.user] if address.user else []),
        *(["-p", str(address.port)] if address.port else []),
        *("--", address.host, shlex.join(remote)),
    ]
