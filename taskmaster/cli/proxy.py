"""``taskmasterctl proxy``: standard input to the server, what it says to standard output; for ``ssh://``.

It looks at nothing of what it copies, and ends with the server's last word.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Final

from taskmaster.cli.address import Address
from taskmaster.cli.client import connect_plain
from taskmaster.errors import TaskmasterError

#: Read ahead of what the other side takes.
_BYTES: Final = 65536
#: What can be written to a pipe without waiting, once poll says that something can (PIPE_BUF: pipe(7)).
_ATOMIC_BYTES: Final = 4096


def run(address: Address) -> int:
    """Copy until the server ends the connection; the exit status. Raises what ``connect_plain`` does."""
    server = connect_plain(address)
    try:
        _copy(server)
    except OSError as error:
        # The server, or whoever reads us, is gone: that is the end, and nobody is left to be told.
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise TaskmasterError(f"proxy: {error.strerror}") from None
    finally:
        server.close()
    return 0


def _copy(server: socket.socket) -> None:
    """Both directions at once: two ends that both only write would wait for each other for ever."""
    to_server, to_client = bytearray(), bytearray()
    client_ended = server_ended = told = False
    while not (server_ended and not to_client):
        poll = select.poll()
        if not client_ended and len(to_server) < _BYTES:
            poll.register(0, select.POLLIN)
        if to_client:
            poll.register(1, select.POLLOUT)
        events = 0 if server_ended or len(to_client) >= _BYTES else select.POLLIN
        if to_server:
            events |= select.POLLOUT
        if not server_ended:
            poll.register(server.fileno(), events)
        for fd, event in poll.poll():
            if fd == 0:
                data = os.read(0, _BYTES)
                to_server += data
                client_ended = not data
            elif fd == 1:
                del to_client[: os.write(1, to_client[:_ATOMIC_BYTES])]
            else:
                if to_server and event & select.POLLOUT:
                    del to_server[: server.send(to_server)]
                if event & ~select.POLLOUT and len(to_client) < _BYTES:
                    data = server.recv(_BYTES)
                    to_client += data
                    server_ended = not data
        if client_ended and not to_server and not told and not server_ended:
            told = True
            server.shutdown(socket.SHUT_WR)
