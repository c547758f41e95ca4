"""Connections and commands that were turned away, in the audit log, but never a flood of them.

The first of each peer are recorded one by one; what comes faster is counted, and a record now and then tells
how many there were. Else somebody who may do nothing could still push everything out of a log that is
rotated. All peers together are held to a rate of their own, since addresses cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from taskmaster.audit import AuditLog, Event
from taskmaster.control.peers import Peer
from taskmaster.eventloop import EventLoop, Timer

#: Records of one peer at once, and a second.
BURST: Final = 20
A_SECOND: Final = 0.5
#: The same of all peers together.
_ALL_BURST: Final = 500.0
_ALL_A_SECOND: Final = 2.0
#: How long is counted before one record tells, seconds: the first time, and while it goes on.
_TELL_S: Final = 1.0
_TELL_ON_S: Final = 10.0
#: Peers that are told apart; those beyond are counted together.
_PEERS: Final = 1024
#: Peers and kinds that are counted apart.
_COUNTED: Final = 64
#: Everybody, where that is one of the peers.
_ALL: Final = "\0all"


class Rejections:
    """Records what is turned away. ``say``: tells people as well."""

    def __init__(self, loop: EventLoop, audit: AuditLog, say: Callable[[str], None]) -> None:
        self._loop = loop
        self._audit = audit
        self._say = say
        #: By peer: records that it may cause at once, as of when.
        self._left: dict[str, tuple[float, float]] = {}
        self._swept = loop.now()
        #: By peer and kind: the last such peer, the reason, how many.
        self._counted: dict[tuple[str, str], tuple[Peer, str, int]] = {}
        self._timer: Timer | None = None
        self._told_at = -_TELL_ON_S

    def add(self, peer: Peer, reason: str, *, kind: str = "") -> None:
        """One was turned away. ``kind``: what is counted together, where reasons differ in detail."""
        origin = _origin(peer)
        if self._may_tell(origin) and self._take(_ALL, _ALL_BURST, _ALL_A_SECOND):
            self._tell(peer, reason, 1)
            return
        key = (origin, kind or reason)
        if key not in self._counted and len(self._counted) >= _COUNTED:
            key = ("", "")
        _, _, count = self._counted.get(key, (peer, reason, 0))
        self._counted[key] = (peer, reason, count + 1)
        if self._timer is None:
            goes_on = self._loop.now() - self._told_at < 2 * _TELL_ON_S
            self._timer = self._loop.call_in(_TELL_ON_S if goes_on else _TELL_S, self.flush)

    def flush(self) -> None:
        """Tell what was counted so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counted, self._counted = self._counted, {}
        if counted:
            self._told_at = self._loop.now()
        for peer, reason, count in counted.values():
            self._tell(peer, reason, count)

    def _may_tell(self, origin: str) -> bool:
        now = self._loop.now()
        if origin not in self._left and len(self._left) >= _PEERS:
            if now - self._swept < _TELL_S:
                return False
            self._swept = now
            self._left = {
                one: (had, since)
                for one, (had, since) in self._left.items()
                if one == _ALL or had + (now - since) * A_SECOND < BURST
            }
            if len(self._left) >= _PEERS:
                return False
        return self._take(origin, float(BURST), A_SECOND)

    def _take(self, origin: str, burst: float, a_second: float) -> bool:
        now = self._loop.now()
        left, at = self._left.get(origin, (burst, now))
        left = min(burst, left + (now - at) * a_second)
        self._left[origin] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _tell(self, peer: Peer, reason: str, count: int) -> None:
        self._audit.record(Event.CLIENT_REJECTED, peer=peer.audit(), reason=reason, count=count)
        times = f" ({count} times)" if count > 1 else ""
        self._say(f"client {peer.who()} turned away{times}: {reason}")


def _origin(peer: Peer) -> str:
    if peer.uid is not None:
        return f"uid {peer.uid}"
    return peer.certificate or peer.address.rpartition(":")[0] or peer.address
