"""What the doctor is to look at: the state directory, and the server that belongs to it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from taskmaster.cli import address
from taskmaster.cli.address import Address


class Where:
    """What is looked at: the state directory, and the server to ask.

    ``ctl``, ``start``: the commands that ask this server, and that start it if nobody knows better.
    """

    __slots__ = ("ctl", "server", "start", "state")

    def __init__(self, state: str, server: Address, *, ctl: str, start: str) -> None:
        self.state, self.server, self.ctl, self.start = state, server, ctl, start


def find(
    server: str | None, state: str | None, environ: Mapping[str, str], euid: int
) -> Where | None:
    """What -c, --state and the environment name; None where that names no state directory: a TCP port, or a
    socket in a folder that is none (``socket`` of the daemon's configuration)."""
    named = address.is_named(server, environ)
    asked = address.choose(server, environ, euid)
    if state is not None:
        state = os.path.abspath(state)
        if not named:
            server = f"{state}/control.sock"
            asked = Address(path=server)
    elif not asked.path and named:
        return None
    else:
        asked = asked if asked.path else Address(path=_default_socket(environ, euid))
        path = os.path.abspath(asked.path)
        # A user's socket has a second path, in a folder that ends with the session.
        state = os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path)
        if named and not _may_be_state(state):
            return None
    ctl = "taskmasterctl" if server is None else f"taskmasterctl -c {shlex.quote(server)}"
    defaults = [os.path.dirname(path) for path in address.socket_candidates(environ, euid)]
    start = "taskmasterd" if state in defaults else "taskmasterd (with the -c CONFIG it always has)"
    return Where(state, asked, ctl=ctl, start=start)


def _may_be_state(folder: str) -> bool:
    """Whether there is a daemon's lock in it, or it cannot be known."""
    try:
        os.stat(f"{folder}/lock", follow_symlinks=False)
    except PermissionError:
        return True
    except OSError:
        return not os.path.isdir(folder)
    return True


def _default_socket(environ: Mapping[str, str], euid: int) -> str:
    """Where the socket would be: where a folder for it is, else where the daemon would make one."""
    candidates = address.socket_candidates(environ, euid)
    there = [path for path in candidates if os.path.isdir(os.path.dirname(path))]
    return (there or candidates)[0]
