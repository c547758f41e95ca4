"""Who may be a client, and who has to go for somebody else: by ways in, by identities, and by descriptors.

Root and the daemon's own user are counted apart, and for them there is always a seat: some descriptors are for
them (and for jobs and files) alone, and should these be used up all the same, somebody else goes.

For everybody else, where there is no seat left, whoever holds most gives one up to who holds less, and a
stranger to a user that a rule is for. So a user, or many strangers, may fill the house and still keep nobody out.
Whoever nobody has to go for is told so.

The number of a descriptor tells how many there are: the kernel gives the lowest that is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

from taskmaster.control.shares import Share

#: Descriptors that are not for other clients: a part of all, at least and at most.
_OWN_PART: Final = 4
_OWN_LEAST: Final = 32
_OWN_MOST: Final = 512
#: Of those for other clients, what one identity may have.
_EACH_PART: Final = 4


class Sitter(Protocol):
    """A client that is there. ``is_stranger``: no rule is for it; ``waits``: for an answer."""

    share: Share | None

    @property
    def transport(self) -> str: ...

    @property
    def is_stranger(self) -> bool: ...

    @property
    def waits(self) -> bool: ...


Client = TypeVar("Client", bound=Sitter)


class Seats:
    """``max_clients``: for each way in; ``descriptors``: all that this process may have."""

    def __init__(self, *, max_clients: int, max_each: int, descriptors: int) -> None:
        own = min(max(descriptors // _OWN_PART, _OWN_LEAST), _OWN_MOST, descriptors // 2)
        self.max_clients = max_clients
        #: The first descriptor that is not for other clients.
        self.first_own = descriptors - own
        #: Connections of one identity, and connections that are no clients yet.
        self.max_each = max(1, min(max_each, self.first_own // _EACH_PART))
        self._taken: dict[tuple[str, bool], int] = {}

    def take(self, client: Sitter) -> None:
        """It is a client."""
        place = _place(client)
        self._taken[place] = self._taken.get(place, 0) + 1

    def leave(self, client: Sitter) -> None:
        """It is none any more."""
        self._taken[_place(client)] -= 1

    def taken(self, transport: str, *, by_root: bool) -> int:
        """How many there are."""
        return self._taken.get((transport, by_root), 0)

    def is_full(self, transport: str, *, by_root: bool) -> bool:
        """Whether there are as many as there may be."""
        return self.taken(transport, by_root=by_root) >= self.max_clients

    def is_short(self, fd: int) -> bool:
        """Whether descriptors are so few that this one is not for other clients."""
        return fd >= self.first_own


def who_goes(
    clients: Iterable[Client], share: Share | None, *, is_stranger: bool, transport: str = ""
) -> Client | None:
    """Who of these gives up their seat to a newcomer of this ``share`` (None: root); None where nobody has to.

    ``transport``: only those that came this way. Strangers before others, of these one of who holds most, of
    these one that waits for nothing, and of these the one that came last.
    """
    best: Client | None = None
    best_rank = (False, 0, False)
    for one in clients:
        theirs = one.share
        if theirs is None or (transport and one.transport != transport):
            continue
        if share is not None:
            if is_stranger and not one.is_stranger:
                continue
            favoured = one.is_stranger and not is_stranger
            if theirs is share or (not favoured and theirs.connections <= share.connections + 1):
                continue
        rank = (one.is_stranger, theirs.connections, not one.waits)
        if best is None or rank >= best_rank:
            best, best_rank = one, rank
    return best


def _place(client: Sitter) -> tuple[str, bool]:
    return client.transport, client.share is None
