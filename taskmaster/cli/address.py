"""Where taskmasterd is looked for: the text of ``-c`` to an address, and the default server.

Only names and ``stat``: never opens a connection (client.py does).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7777
SERVER_VARIABLE = "TASKMASTER_SERVER"
_FORMS = "accepted: HOST, HOST:PORT, [IPV6]:PORT, or the path of a socket (with a /)"


class BadAddress(ValueError):
    """Text that names no server; the message quotes it and says what is accepted."""


class Address:
    """A Unix socket (``path``) or a TCP port (``host``, ``port``).

    ``origin`` says how it was arrived at, for error messages: an administrator who named no server
    has to be told which one was tried. Empty where ``-c`` named it.
    """

    __slots__ = ("host", "origin", "path", "port")

    def __init__(
        self, *, path: str = "", host: str = "", port: int = DEFAULT_PORT, origin: str = ""
    ) -> None:
        self.path, self.host, self.port, self.origin = path, host, port, origin

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str, origin: str = "") -> Address:
    """The address that ``text`` names; raises BadAddress.

    A slash makes it a path, so a socket in the working directory is ``./control.sock``.
    """
    if "\0" in text:
        raise BadAddress(f"{text!r} is no address; {_FORMS}")
    if "/" in text:
        return Address(path=text, origin=origin)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadAddress(f"{text!r} is no address; {_FORMS}")
        port = rest[1:] if rest else None
    elif text.count(":") > 1:
        # ::1:7777 could be either; guessing would connect to a machine nobody named.
        raise BadAddress(f"{text!r}: an IPv6 address is written in brackets, [::1]; {_FORMS}")
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
    if not host or not host.isprintable() or " " in host:
        raise BadAddress(f"{text!r} names no host; {_FORMS}")
    return Address(host=host, port=_port(text, port), origin=origin)


def _port(text: str, digits: str | None) -> int:
    if digits is None:
        return DEFAULT_PORT
    # isdigit alone admits other scripts' digits; five characters hold 65535.
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536:
        return int(digits)
    raise BadAddress(f"{text!r}: {digits!r} is no port; accepted: 1 to 65535")


def socket_candidates(environ: Mapping[str, str], euid: int) -> list[str]:
    """Paths at which a daemon of this user would have its socket, most likely first."""
    if euid == 0:
        return ["/run/taskmaster/control.sock"]
    found = []
    # The XDG base directory specification has relative values ignored.
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        found.append(f"{runtime}/taskmaster/control.sock")
    # Also where the variable is set: cron and ssh commands differ from a login session in it.
    state = environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local/state")
    found.append(f"{state}/taskmaster/run/control.sock")
    return found


def choose(named: str | None, environ: Mapping[str, str], euid: int) -> Address:
    """The server to ask: ``named`` by -c, else $TASKMASTER_SERVER, else the default.

    Raises BadAddress. The default is the first socket that is there, else 127.0.0.1:7777.
    """
    if named is not None:
        return parse(named)
    if environ.get(SERVER_VARIABLE):
        try:
            return parse(environ[SERVER_VARIABLE], f"from {SERVER_VARIABLE}")
        except BadAddress as error:
            raise BadAddress(f"{SERVER_VARIABLE}: {error}") from None
    candidates = socket_candidates(environ, euid)
    for path in candidates:
        if _is_socket(path):
            return Address(path=path)
    origin = f"the default, as there is no socket at {' or '.join(candidates)}"
    return Address(host=DEFAULT_HOST, origin=origin)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:  # ENOENT, ENOTDIR, EACCES, ELOOP: none that this user could connect to
        return False
