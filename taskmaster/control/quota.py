"""How much one peer may use: connections at a time, and commands a second in a token bucket.

Counted by identity (a uid, a certificate, another host's address) over all its connections. Root and the
daemon's own user have no account: they cannot be kept out, and must not be by their own monitoring. It
counts and nothing else; who asks decides what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: What a refused command costs, or one that is no valid query: they are on record one by one, and a flood
#: of them must not push what matters out of the log.
REFUSED_COST: Final = 100.0
#: Identities that are remembered beyond those that are connected.
_REMEMBERED: Final = 4096


class Account:
    """What one identity has used."""

    __slots__ = ("_at", "_quotas", "_tokens", "connections")

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._tokens = quotas.burst
        self._at = quotas.clock()
        self.connections = 0

    def take(self) -> bool:
        """Whether one command more is within the rate; it then counts."""
        quotas = self._quotas
        if not quotas.rate:
            return True
        now = quotas.clock()
        tokens = min(quotas.burst, self._tokens + (now - self._at) * quotas.rate)
        self._at = now
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1

    def refused(self) -> None:
        """The command that was taken last is refused or invalid, which costs more."""
        self._tokens -= min(REFUSED_COST, self._quotas.burst) - 1

    def leave(self) -> None:
        """One connection less. What was used counts on for the next one."""
        self.connections -= 1

    def idle(self, now: float) -> bool:
        """Whether it says no more than a new one would."""
        rate = self._quotas.rate
        return not self.connections and (
            not rate or self._tokens + (now - self._at) * rate >= self._quotas.burst
        )


class Quotas:
    """All accounts. ``rate``: commands a second, 0 for any, ``burst`` at once; ``clock``: monotonic seconds."""

    def __init__(
        self, clock: Callable[[], float], *, rate: float, burst: float, max_connections: int
    ) -> None:
        self.clock = clock
        self.rate = rate
        self.burst = max(float(burst), 1.0)
        self.max_connections = max_connections
        self._accounts: dict[str, Account] = {}

    def enter(self, identity: str, *, let_in: bool = False) -> Account | None:
        """One connection more; None where the identity has as many as it may, unless it was let in before."""
        account = self._accounts.get(identity)
        if account is None:
            if len(self._accounts) >= _REMEMBERED:
                self._forget()
            account = self._accounts[identity] = Account(self)
        if account.connections >= self.max_connections and not let_in:
            return None
        account.connections += 1
        return account

    def _forget(self) -> None:
        now = self.clock()
        kept = {name: one for name, one in self._accounts.items() if not one.idle(now)}
        # Should most of them be of this moment, the oldest go: a flood of addresses, each of them new. So
        # many at once that it is not done for each that comes.
        for name in [name for name, one in kept.items() if not one.connections]:
            if len(kept) <= _REMEMBERED * 3 // 4:
                break
            del kept[name]
        self._accounts = kept
