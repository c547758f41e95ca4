"""How much one peer may use, and how refusals come into the log: counted on a clock of the test."""

from __future__ import annotations

import pytest

from taskmaster.audit import Event
from taskmaster.control import rejections, shares
from taskmaster.control.peers import Peer
from taskmaster.control.rejections import Rejections
from taskmaster.control.shares import REFUSED_COST, Shares
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
    return next((number for number in range(10_000) if not took(account)), 10_000)


def took(account) -> bool:
    if account.may_take():
        account.take()
        return True
    return False


def test_rate(clock):
    """A burst, then the rate, over all connections of one identity; another has its own."""
    shares = Shares(clock, rate=10, burst=30, max_connections=2)
    first, second = shares.enter("uid 1"), shares.enter("uid 1")
    assert used(first) == 30
    assert used(second) == 0
    assert used(shares.enter("uid 2")) == 30
    for waited_s, more in ((0.05, 0), (0.06, 1), (1, 10), (3600, 30)):
        clock.now += waited_s
        assert used(second) == more
    first.leave()
    second.leave()
    assert used(shares.enter("uid 1")) == 0, "leaving and coming back gives nothing new"


def test_no_rate(clock):
    """A rate of 0 is none."""
    assert used(Shares(clock, rate=0, burst=1, max_connections=1).enter("a")) == 10_000


def test_refusals_cost_more(clock):
    """Who is refused all the time is soon answered without a record each."""
    account = Shares(clock, rate=2000, burst=4000, max_connections=1).enter("uid 1")
    recorded = 0
    for _ in range(5000):
        if took(account):
            recorded += 1
            account.refused()
    assert recorded == 4000 / REFUSED_COST
    clock.now += 3600
    assert took(account)


def test_connections(clock):
    """So many at a time and no more, those that were let in before an upgrade excepted."""
    shares = Shares(clock, rate=1, burst=1, max_connections=3)
    held = [shares.enter("x") for _ in range(3)]
    assert shares.enter("x") is None
    assert shares.enter("y") is not None
    assert shares.enter("x", let_in=True) is not None
    held[0].leave()
    held[1].leave()
    assert shares.enter("x") is not None


def test_time(clock):
    """Who has used up their time waits until some is worth while again; a slow command is paid off."""
    share = Shares(clock, rate=0, burst=1, max_connections=1).enter("uid 1")
    share.spend(shares.TIME_SAVED_S / 2)
    assert not share.exhausted
    assert share.time_in_s(clock.now) == 0
    share.spend(3600)
    assert share.exhausted
    wait_s = share.time_in_s(clock.now)
    assert wait_s == pytest.approx((shares.TIME_OWED_S + shares.TIME_WORTH_S) / shares.TIME_EARNED)
    for waited_s, exhausted in ((wait_s - 0.001, True), (0.002, False)):
        clock.now += waited_s
        share.used_s(clock.now)
        assert share.exhausted is exhausted
    clock.now += 3600
    share.spend(shares.TIME_SAVED_S * 1.01)
    assert share.exhausted, "no more than that is saved"


def test_used_of_late(clock):
    """What was used is forgotten in seconds; who has used less is told from who has used more, in debt or not."""
    made = Shares(clock, rate=0, burst=1, max_connections=1)
    one, other = made.enter("uid 1"), made.enter("uid 2")
    one.spend(0.01)
    other.spend(0.02)
    assert one.used_s(clock.now) < other.used_s(clock.now)
    clock.now += 10 * shares.USED_S
    assert other.used_s(clock.now) < 1e-5


def test_commands_to_wait_for(clock):
    """Who has no commands left is called when several are there, never before one is, whatever the rate."""
    for rate, burst, first in ((2000, 4000, 40), (1, 1, 1), (0.5, 3, 1), (100, 1, 1)):
        share = Shares(clock, rate=rate, burst=burst, max_connections=1).enter("x")
        assert used(share) == burst
        in_s = share.commands_in_s(clock.now)
        assert in_s == pytest.approx(first / rate)
        clock.now += in_s * 1.0001
        assert share.commands_in_s(clock.now) == 0
        assert used(share) == first


@pytest.mark.parametrize("way", ["queries", "bytes"])
def test_unanswered_queries(clock, way):
    """So many, or so many bytes; then none is read until a quarter of them has its answer."""
    share = Shares(clock, rate=0, burst=1, max_connections=1).enter("x")
    most, size = (
        (shares.MAX_UNANSWERED, 10) if way == "queries" else (16, shares.MAX_UNANSWERED_BYTES // 16)
    )
    for _ in range(most):
        assert share.takes_queries
        share.asked(size)
    assert not share.takes_queries
    told = [share.answered(size) for _ in range(most)]
    assert told.count(True) == 1, "told once"
    assert told.index(True) + 1 == most // 4
    assert share.takes_queries
    assert (share.unanswered, share.unanswered_bytes) == (0, 0)


def test_unsent_replies(clock):
    """Replies that nobody takes count for all connections of an identity."""
    share = Shares(clock, rate=0, burst=1, max_connections=1).enter("x")
    assert not share.unsent(shares.ENOUGH_OUTBOUND - 1)
    assert share.takes_replies
    assert not share.unsent(1)
    assert not share.takes_replies
    assert not share.unsent(-1), "not for a byte"
    assert share.unsent(-shares.ENOUGH_OUTBOUND // 2)
    assert share.takes_replies


def test_unfinished_frames(clock):
    """One identity is cut off at its own part; where all together are over, it is told who has to decide."""
    made = Shares(clock, rate=0, burst=1, max_connections=1)
    relieved = []
    made.unfinished.relieve = lambda: relieved.append(1)
    own = [made.enter(f"uid {number}").unfinished for number in range(6)]
    own[0].count(own[0].max_bytes)
    assert not own[0].is_passed()
    own[0].count(1)
    assert own[0].is_passed()
    own[0].count(-1)
    for one in own[1:4]:
        one.count(one.max_bytes)
    assert not own[4].is_passed()
    assert relieved == []
    own[4].count(1)
    made.unfinished.relieve = lambda: own[0].count(-own[0].used)
    assert not own[4].is_passed(), "another, who held more, was cut off"


def test_a_flood_of_identities_is_bounded(clock):
    """However many addresses come, few are remembered; those that are connected are kept."""
    made = Shares(clock, rate=1, burst=5, max_connections=1)
    kept = made.enter("kept")
    assert used(kept) == 5
    for number in range(3 * shares._REMEMBERED):
        one = made.enter(f"host {number}")
        one.take()
        one.leave()
        clock.now += 0.0001
    assert len(made._shares) <= shares._REMEMBERED
    assert made.enter("kept") is None


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
