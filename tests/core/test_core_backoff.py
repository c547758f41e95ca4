"""The delay before the next attempt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmaster.core.backoff import (
    CAP_S,
    FIRST_S,
    HEALTHY_S,
    JITTER,
    WATCHDOG_HEALTHY_S,
    delay_s,
    relaunch_s,
)

DETERMINED = settings(deadline=None, derandomize=True)


def test_numbers():
    """A second first, a minute at most, a fifth of jitter, a minute of health: as documented."""
    assert (FIRST_S, CAP_S, JITTER, HEALTHY_S, WATCHDOG_HEALTHY_S) == (1.0, 60.0, 0.2, 60.0, 1.0)


@pytest.mark.parametrize(
    ("attempt", "base_s"),
    [
        (-7, 1),
        (-1, 1),
        (0, 1),
        (1, 2),
        (2, 4),
        (3, 8),
        (4, 16),
        (5, 32),
        (6, 60),
        (7, 60),
        (10**9, 60),
    ],
)
def test_doubles_to_the_cap(attempt, base_s):
    """Doubling from a second to a minute, a fifth less at most or a fifth more, never over a minute."""
    assert delay_s(attempt, 0.5) == pytest.approx(base_s)
    assert delay_s(attempt, 0.0) == pytest.approx(base_s * 0.8)
    assert delay_s(attempt, 1 - 2**-53) == pytest.approx(min(60, base_s * 1.2))


@DETERMINED
@given(st.integers(-3, 5000), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_bounds_and_order(attempt, one, other):
    """Within the jitter of the base, never over the cap, later attempts wait no less at equal luck."""
    delay = delay_s(attempt, one)
    assert 0.8 * FIRST_S <= delay <= CAP_S
    assert delay <= delay_s(attempt + 1, one)
    assert (delay <= delay_s(attempt, other)) or one > other


@pytest.mark.parametrize("attempt", range(10))
def test_two_hundred_do_not_come_back_in_step(attempt):
    """Two hundred that failed at the same moment are spread over at least a fifth of the delay."""
    delays = [delay_s(attempt, number / 200) for number in range(200)]
    assert max(delays) - min(delays) >= 0.19 * max(delays)
    assert len(set(delays)) >= 100


@pytest.mark.parametrize(
    ("in_a_row", "base_s"),
    [
        *((n, 0.0) for n in range(6)),
        (6, 0.05),
        (7, 0.1),
        (8, 0.2),
        (16, 51.2),
        (17, 60),
        (18, 60),
        (10**9, 60),
    ],
)
def test_relaunch(in_a_row, base_s):
    """A watchdog is replaced at once five times in a row, then after 50 ms doubling to a minute."""
    assert relaunch_s(in_a_row, 0.5) == pytest.approx(base_s)
    assert relaunch_s(in_a_row, 0.0) == pytest.approx(base_s * 0.8)
    assert relaunch_s(in_a_row, 1 - 2**-53) == pytest.approx(min(60, base_s * 1.2))
