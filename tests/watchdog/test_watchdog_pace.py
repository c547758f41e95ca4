"""How soon one looks again: at once, then ever later, and at once again after a pause."""

from __future__ import annotations

import itertools

from taskmaster.watchdog.pace import ASKING_S, Pace


def test_distances_grow() -> None:
    """Ends that come one after the other without a pause are looked at ever more rarely."""
    pace, now, looks = Pace(), 100.0, []
    for _ in range(20):
        now += pace.delay_s(now, ASKING_S)
        looks.append(now)
    distances = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert looks[0] == 100.0
    assert distances == sorted(distances)
    assert 0 < distances[0] <= 0.001 + 1e-9
    assert abs(distances[-1] - ASKING_S) < 1e-9


def test_at_once_after_a_pause() -> None:
    """What comes alone is not kept waiting."""
    pace = Pace()
    now = 100.0
    for _ in range(20):
        now += pace.delay_s(now, ASKING_S)
    assert pace.delay_s(now, ASKING_S) > 0
    assert pace.delay_s(now + 1.0, ASKING_S) == 0


def test_never_later_than_the_longest() -> None:
    """The last end of many is seen within the longest distance."""
    pace, now = Pace(), 0.0
    for step in range(1000):
        delay_s = pace.delay_s(now, ASKING_S)
        assert 0 <= delay_s <= ASKING_S + 1e-9
        now += delay_s + (step % 7) / 1000
