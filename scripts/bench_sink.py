"""What attackers attack in place of a daemon: it reads all that is sent and answers each read with one reply.

    bench_sink.py PORT

It makes the attackers as busy as the readiest of daemons would, and burns a CPU with them: what others wait
for meanwhile, on a server that these do not attack, is what this machine itself costs.
"""

from __future__ import annotations

import selectors
import socket
import sys

_REPLY = b'{"response":"invalid"};;'


def main(port: int) -> None:
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                continue
            connection = key.fileobj  # type: ignore[assignment]
            try:
                received = connection.recv(65536)
                if received:
                    connection.send(_REPLY)
                    continue
            except BlockingIOError:
                continue  # it does not read
            except ConnectionError:
                pass
            selector.unregister(connection)
            connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
