"""The baseline of the status rows: a bare ``selectors`` server that decodes and encodes the same JSON.

One thread, one loop, a Unix socket. For each frame up to ``;;`` it decodes the query (msgspec, as the daemon
does) and the job's name (base64), encodes a status document of the same content as taskmasterd's from its
Python form, puts it (base64) into a reply, encodes that and sends it; the replies to what one read brought
go out in one write. It knows no job, checks nothing, keeps no log: the least that a server in Python that
speaks this protocol can do.

    bench_echo.py SOCKET DOCUMENTS      DOCUMENTS: a JSON file, the document of each job by its name

Where SOCKET is a number, it is a port of the loopback.
"""

from __future__ import annotations

import base64
import selectors
import socket
import sys
from pathlib import Path

import msgspec


def main(path: str, documents_file: str) -> None:
    documents = msgspec.json.decode(Path(documents_file).read_bytes())
    decode = msgspec.json.Decoder().decode
    encode = msgspec.json.Encoder().encode
    b64encode, b64decode = base64.b64encode, base64.b64decode

    if path.isdigit():
        listener = socket.create_server(("127.0.0.1", int(path)), backlog=16)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                connection, _ = listener.accept()
                selector.register(connection, selectors.EVENT_READ, bytearray())
                continue
            connection = key.fileobj  # type: ignore[assignment]
            chunk = connection.recv(65536)
            if not chunk:
                selector.unregister(connection)
                connection.close()
                continue
            buffer = key.data
            buffer += chunk
            replies = []
            while (end := buffer.find(b";;")) >= 0:
                query = decode(buffer[:end])
                del buffer[: end + 2]
                job = b64decode(query["job"])
                data = b64encode(encode(documents[job.decode()])).decode()
                reply = {"response": query["command"], "job": b64encode(job).decode(), "data": data}
                replies.append(encode(reply) + b";;")
            connection.sendall(b"".join(replies))


if __name__ == "__main__":
    main(*sys.argv[1:])
