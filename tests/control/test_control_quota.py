"""How much one peer may use, and how refusals come into the log: counted on a clock of the test."""

from __future__ import annotations

import pytest

from taskmaster.audit import Event
from taskmaster.control import quota, rejections
from taskmaster.control.peers import Peer
from taskmaster.control.quota import REFUSED_COST, Quotas
from taskmaster.control.rejections import Rejections
from taskmaster.eventloop import EventLoop


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def used(account) -> int:
    """Commands that are let through at once, up to 10 000."""
    return next((number for number in range(10_000) if not account.take()), 10_000)


def test_rate(clock):
    """A burst, then the rate, over all connections of one identity; another has its own."""
    quotas = Quotas(clock, rate=10, burst=30, max_connections=2)
    first, second = quotas.enter("uid 1"), quotas.enter("uid 1")
    assert used(first) == 30
    assert used(second) == 0
    assert used(quotas.enter("uid 2")) == 30
    for waited_s, more in ((0.05, 0), (0.06, 1), (1, 10), (3600, 30)):
        clock.now += waited_s
        assert used(second) == more
    first.leave()
    second.leave()
    assert used(quotas.enter("uid 1")) == 0, "leaving and coming back gives nothing new"


def test_no_rate(clock):
    """A rate of 0 is none."""
    assert used(Quotas(clock, rate=0, burst=1, max_connections=1).enter("a")) == 10_000


def test_refusals_cost_more(clock):
    """Who is refused all the time is soon answered without a record each."""
    account = Quotas(clock, rate=2000, burst=4000, max_connections=1).enter("uid 1")
    recorded = 0
    for _ in range(5000):
        if account.take():
            recorded += 1
            account.refused()
    assert recorded == 4000 / REFUSED_COST
    clock.now += 3600
    assert account.take()


def test_connections(clock):
    """So many at a time and no more, those that were let in before an upgrade excepted."""
    quotas = Quotas(clock, rate=1, burst=1, max_connections=3)
    held = [quotas.enter("x") for _ in range(3)]
    assert quotas.enter("x") is None
    assert quotas.enter("y") is not None
    assert quotas.enter("x", let_in=True) is not None
    held[0].leave()
    held[1].leave()
    assert quotas.enter("x") is not None


def test_a_flood_of_identities_is_bounded(clock):
    """However many addresses come, few are remembered; those that are connected are kept."""
    quotas = Quotas(clock, rate=1, burst=5, max_connections=1)
    kept = quotas.enter("kept")
    assert used(kept) == 5
    for number in range(3 * quota._REMEMBERED):
        one = quotas.enter(f"host {number}")
        one.take()
        one.leave()
        clock.now += 0.0001
    assert len(quotas._accounts) <= quota._REMEMBERED
    assert quotas.enter("kept") is None


class Log:
    """Stands for the audit log, which wants a disk."""

    def __init__(self) -> None:
        self.records: list[dict] = []

    def record(self, event, **fields):
        assert event is Event.CLIENT_REJECTED
        self.records.append(fields)


def test_a_flood_of_rejections_is_counted(loop, until):
    """The first of a peer one by one, then one record a second with the count; it hides no other peer."""
    log, said = Log(), []
    made = Rejections(loop, log, said.append)
    nobody, other = Peer("unix", "/s", 65534, "nobody", 7), Peer("tcp", "10.0.0.9:1")
    for number in range(1000):
        made.add(nobody, f"No frame {number}", kind="no-frame")
    made.add(other, "HTTP")
    assert len(log.records) == rejections.BURST + 1
    assert log.records[-1] == {"peer": other.audit(), "reason": "HTTP", "count": 1}
    until(lambda: len(log.records) > rejections.BURST + 1)
    last = log.records[-1]
    assert (last["peer"], last["count"]) == (nobody.audit(), 1000 - rejections.BURST)
    assert sum(record["count"] for record in log.records) == 1001
    assert len(said) == len(log.records)
    made.flush()
    assert len(log.records) == rejections.BURST + 2, "nothing is told twice"


def test_a_flood_of_peers_is_bounded():
    """However many peers there are, the records and what is remembered are bounded."""
    log, clock = Log(), Clock()
    loop = EventLoop(clock)
    made = Rejections(loop, log, lambda text: None)
    for number in range(20_000):
        made.add(Peer("tcp", f"10.{number >> 8}.{number & 255}.1:5"), "no", kind="k")
    made.flush()
    assert sum(record["count"] for record in log.records) == 20_000
    assert len(log.records) <= 2 * rejections._PEERS + 1
    clock.now += 3600
    before = len(log.records)
    made.add(Peer("tcp", "192.168.0.1:5"), "no")
    assert len(log.records) == before + 1, "later there is room for others"
    loop.close()
