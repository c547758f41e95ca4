"""Who is served next, on a clock of the test: guests that ask without end, one that asks now and then."""

from __future__ import annotations

import pytest

from taskmaster.control import shares, turns
from taskmaster.control.shares import Shares
from taskmaster.control.turns import Turns, Wish
from taskmaster.eventloop import EventLoop


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Guest:
    """It takes ``cost_s`` for each frame, and has ``frames`` of them; None: without end."""

    def __init__(self, room, share, cost_s=0.0001, frames=None):
        self.room, self.share, self.cost_s, self.frames = room, share, cost_s, frames
        self.is_open, self.resting, self.wish = True, False, Wish.NOTHING
        self.served_s = 0.0
        self.last = None

    def serve(self, until):
        assert self.is_open
        clock = self.room.clock
        self.room.order.append(self)
        while True:
            if self.frames == 0:
                self.wish = Wish.NOTHING
                return
            if clock() >= until:
                self.wish = Wish.TURN
                return
            if not self.share.takes_queries:
                self.wish = Wish.ROOM
                return
            if not self.share.may_take():
                self.wish = Wish.COMMANDS
                return
            self.share.take()
            clock.now += self.cost_s
            self.served_s += self.cost_s
            self.last = clock()
            if self.frames is not None:
                self.frames -= 1

    def rest(self, resting):
        assert self.resting is not resting
        self.resting = resting


class Room:
    """Turns on a loop whose clock is the test's; nothing is slept."""

    def __init__(self, rate=0, burst=1):
        self.clock = Clock()
        self.loop = EventLoop(self.clock)
        self.shares = Shares(self.clock, rate=rate, burst=burst, max_connections=1000)
        self.turns = Turns(self.clock, self.loop.call_in)
        self.order = []
        self.answered = 0

    def guest(self, identity, **more):
        share = self.shares.enter(identity)
        return Guest(self, share, **more)

    def answer(self):
        self.answered += 1

    def turn(self):
        """One turn of the loop: what it does when its timers are due, and how long it would sleep before."""
        wait_s = self.loop._timeout()
        if wait_s is not None:
            self.clock.now += wait_s
        self.loop._fire_timers()
        if self.turns.waiting:
            self.turns.serve(self.answer)
        return wait_s


@pytest.fixture
def room():
    made = []

    def make(**more):
        made.append(Room(**more))
        return made[-1]

    yield make
    for one in made:
        one.loop.close()


def test_one_who_asks_once(room):
    """A guest with one frame is served at once; nothing is armed and nobody's watch is changed for it."""
    room = room()
    guest = room.guest("uid 1", frames=1)
    room.turns.enter(guest)
    room.turns.serve(room.answer)
    assert (guest.frames, room.answered, guest.resting) == (0, 1, False)
    assert room.loop._timeout() is None
    assert not room.turns.waiting


def test_a_turn_ends(room):
    """However many wait, a turn takes no longer than it may, and one command more; those left are not watched."""
    room = room()
    guests = [room.guest(f"uid {number}") for number in range(300)]
    for guest in guests:
        room.turns.enter(guest)
    for _ in range(200):
        before = room.clock()
        room.turns.serve(room.answer)
        assert room.clock() - before <= turns.TURN_S + guests[0].cost_s + 1e-9
        assert all(guest.resting for guest in guests)


@pytest.mark.parametrize("identities", [1, 100])
def test_who_asks_now_and_then_is_served_at_once(room, identities):
    """While a hundred identities ask without end, another one is served in the turn it asks in."""
    room = room()
    for number in range(identities):
        for _ in range(16):
            room.turns.enter(room.guest(f"uid {number}", cost_s=0.0005))
    for _ in range(2000):
        room.turn()
    other = room.guest("uid 5001", frames=0)
    for _ in range(50):
        for _ in range(20):
            room.turn()
        other.frames = 1
        room.turns.enter(other)
        asked = room.clock()
        room.turns.serve(room.answer)
        assert other.frames == 0
        assert other.last - asked <= 0.0005 + other.cost_s + 1e-9


def test_identities_share_the_time(room):
    """Many connections get an identity no more time than one does, and all of them are served."""
    room = room()
    one = room.guest("uid 1")
    many = [room.guest("uid 2") for _ in range(50)]
    others = [room.guest(f"uid {number}") for number in range(3, 9)]
    for guest in (*many, one, *others):
        room.turns.enter(guest)
    began = room.clock()
    while room.clock() - began < 20:
        room.turn()
    total = sum(guest.served_s for guest in many)
    assert one.served_s == pytest.approx(total, rel=0.15)
    assert min(guest.served_s for guest in many) > total / 50 / 2


def test_one_identity_has_a_part_of_the_time(room):
    """Alone it gets what it earns; the loop sleeps meanwhile, and is woken seldom."""
    room = room()
    guest = room.guest("uid 1")
    room.turns.enter(guest)
    room.turn()
    began, slept_s, wakings = room.clock(), 0.0, 0
    while room.clock() - began < 20:
        wait_s = room.turn()
        slept_s += wait_s or 0.0
        wakings += 1
    assert guest.served_s <= 20 * shares.TIME_EARNED + shares.TIME_SAVED_S + 0.01
    assert guest.served_s >= 20 * shares.TIME_EARNED * 0.9
    assert slept_s > 10
    assert wakings < 20 * 200


def test_over_the_rate(room):
    """Who has no commands left is waited for with a timer, on all connections, and not watched meanwhile."""
    room = room(rate=100, burst=10)
    guests = [room.guest("uid 1") for _ in range(20)]
    for guest in guests:
        room.turns.enter(guest)
    room.turn()
    room.turn()
    assert all(guest.resting for guest in guests)
    taken = sum(guest.served_s for guest in guests) / guests[0].cost_s
    assert 10 <= round(taken) <= 11
    began, wakings = room.clock(), 0
    while room.clock() - began < 10:
        assert room.turn() is not None
        wakings += 1
    assert sum(guest.served_s for guest in guests) / guests[0].cost_s <= 10 + 10.1 * 100 + 1
    assert min(guest.served_s for guest in guests) > 0, "all have their turn"
    assert wakings < 10 * 220
    for guest in guests:
        guest.frames = 0
    for _ in range(60):
        room.turn()
    assert not any(guest.resting for guest in guests), "who has nothing to ask is watched again"
    assert room.loop._timeout() is None


def test_no_room(room):
    """Who can do nothing until something is answered is not called before it is, and then all of that identity."""
    room = room()
    guests = [room.guest("uid 1", frames=1) for _ in range(5)]
    share = guests[0].share
    for _ in range(shares.MAX_UNANSWERED):
        share.asked(1)
    for guest in guests:
        room.turns.enter(guest)
    room.turn()
    assert all(guest.frames == 1 and guest.resting for guest in guests)
    assert not room.turns.waiting
    assert room.loop._timeout() is None
    for _ in range(shares.MAX_UNANSWERED):
        if share.answered(1):
            room.turns.readmit(share)
    room.turn()
    assert [(guest.frames, guest.resting) for guest in guests] == [(0, False)] * 5


@pytest.mark.parametrize("state", ["waiting", "thirsty", "crowded", "served"])
def test_one_that_is_gone(room, state):
    """A guest that closes is forgotten, whatever it waited for, and the others of its identity are not."""
    room = room(rate=1, burst=1)
    gone, kept = room.guest("uid 1"), room.guest("uid 1")
    share = gone.share
    if state == "crowded":
        for _ in range(shares.MAX_UNANSWERED):
            share.asked(1)
    for guest in (gone, kept):
        room.turns.enter(guest)
    if state == "served":
        room.answer = lambda: setattr(gone, "is_open", False)
        room.turns.serve(room.answer)
    elif state != "waiting":
        room.turns.serve(room.answer)
    gone.is_open = False
    room.turns.leave(gone)
    for places in (share.waiting, share.thirsty, share.crowded):
        assert gone not in places
    assert sum(kept in places for places in (share.waiting, share.thirsty, share.crowded)) == 1
    assert gone not in room.turns._resting


def test_the_last_turn_serves_all(room):
    """At the end of the daemon all are served once, also those that have used up their time."""
    room = room()
    guests = [room.guest(f"uid {number % 7}", frames=30, cost_s=0.01) for number in range(20)]
    for guest in guests:
        room.turns.enter(guest)
    room.turns.serve(room.answer, is_last=True)
    assert all(guest.frames == 0 for guest in guests)
    assert not room.turns.waiting
