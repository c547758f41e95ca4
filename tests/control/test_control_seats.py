"""Who may be a client, and who has to go for whom: every pair of newcomer and sitter."""

from __future__ import annotations

import pytest

from taskmaster.control.seats import Seats, who_goes
from taskmaster.control.shares import Shares


class Sitter:
    def __init__(self, share, *, is_stranger=False, waits=False, transport="tcp"):
        self.share, self.is_stranger, self.waits, self.transport = (
            share,
            is_stranger,
            waits,
            transport,
        )
        if share is not None:
            share.connections += 1


@pytest.fixture
def house():
    return Shares(lambda: 0.0, rate=0, burst=1, max_connections=1000)


def crowd(house, identity, count, **more):
    share = house.of(identity)
    return [Sitter(share, **more) for _ in range(count)]


@pytest.mark.parametrize("stranger", [False, True])
@pytest.mark.parametrize("sits_stranger", [False, True])
@pytest.mark.parametrize("has", [0, 1, 3])
@pytest.mark.parametrize("holds", [1, 2, 4, 9])
def test_who_goes_for_whom(house, stranger, sits_stranger, has, holds):
    """Root: anybody; a user with a rule: any stranger; else only one of who would still hold as many."""
    clients = crowd(house, "sitting", holds, is_stranger=sits_stranger)
    share = house.of("new")
    share.connections = has
    assert who_goes(clients, None, is_stranger=False) is clients[-1]
    favoured = sits_stranger and not stranger
    equal = stranger == sits_stranger and holds > has + 1
    gone = who_goes(clients, share, is_stranger=stranger)
    assert gone is (clients[-1] if favoured or equal else None)


def test_nobody_goes_for_themselves(house):
    """Who has as many as they may does not throw out their own connections."""
    clients = crowd(house, "one", 9, is_stranger=True)
    assert who_goes(clients, house.of("one"), is_stranger=False) is None


def test_root_never_goes(house):
    """Root's own connections are nobody's to give."""
    assert who_goes([Sitter(None) for _ in range(9)], None, is_stranger=False) is None


def test_which_of_them(house):
    """Strangers before users, who holds most before who holds less, idle before waiting, then the last."""
    user = crowd(house, "user", 9)
    few = crowd(house, "few", 2, is_stranger=True)
    many = crowd(house, "many", 3, is_stranger=True)
    other_way = crowd(house, "unix", 20, is_stranger=True, transport="unix")
    clients = [*many, *user, *few]
    share = house.of("new")
    assert who_goes([*clients, *other_way], share, is_stranger=False) is other_way[-1]
    assert who_goes([*clients, *other_way], share, is_stranger=False, transport="tcp") is many[-1]
    many[-1].waits = True
    assert who_goes(clients, share, is_stranger=False) is many[-2]
    for one in many:
        one.waits = True
    assert who_goes(clients, share, is_stranger=False) is many[-1]
    assert who_goes([*user, *few[:0]], share, is_stranger=False) is user[-1]


def test_a_hundred_identities_end_up_even(house):
    """However many each wants, nobody is kept out by others who hold more: at last all have as many."""
    clients: list[Sitter] = []
    for _ in range(50):
        for number in range(100):
            share = house.of(f"uid {number}")
            if len(clients) >= 300:
                gone = who_goes(clients, share, is_stranger=False)
                if gone is None:
                    continue
                clients.remove(gone)
                gone.share.connections -= 1
            clients.append(Sitter(share))
    held = [house.of(f"uid {number}").connections for number in range(100)]
    assert sum(held) == 300
    assert max(held) - min(held) <= 1


@pytest.mark.parametrize("descriptors", [20, 60, 64, 300, 1024, 4096, 1 << 20])
def test_descriptors(descriptors):
    """Some are for root whatever the limit, and four identities never take all the others."""
    seats = Seats(max_clients=512, max_each=128, descriptors=descriptors)
    assert descriptors // 2 <= seats.first_own < descriptors
    assert 1 <= seats.max_each <= 128
    assert seats.max_each * 4 <= max(seats.first_own, 4)
    assert not seats.is_short(seats.first_own - 1)
    assert seats.is_short(seats.first_own)
    if descriptors >= 4096:
        assert seats.max_each == 128


def test_ways_in(house):
    """Each way in is counted by itself, and root apart."""
    seats = Seats(max_clients=2, max_each=9, descriptors=1000)
    first, second = crowd(house, "x", 2)
    for one in (first, second, Sitter(None), Sitter(None, transport="unix")):
        seats.take(one)
    assert seats.is_full("tcp", by_root=False)
    assert not seats.is_full("tcp", by_root=True)
    assert not seats.is_full("unix", by_root=False)
    seats.leave(first)
    assert not seats.is_full("tcp", by_root=False)
    assert seats.taken("unix", by_root=True) == 1
