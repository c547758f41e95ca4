"""How long to wait before the next attempt: exponential, capped, jittered, forgotten after health.

Pure: the random number comes from the caller, so that two hundred workers of one dead database do
not come back in step, and tests can say which number it was.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
CAP_S: Final = 60.0
#: The wait is multiplied by a number between 1 - JITTER and 1 + JITTER.
JITTER: Final = 0.2
#: A process that was RUNNING this long has earned a clean slate.
HEALTHY_S: Final = 60.0


#: A watchdog that dies is replaced at once so many times in a row, and then ever later; one that has been
#: attached for WATCHDOG_HEALTHY_S has broken the row.
RELAUNCHES_AT_ONCE: Final = 5
FIRST_RELAUNCH_S: Final = 0.05
WATCHDOG_HEALTHY_S: Final = 1.0


def relaunch_s(in_a_row: int, jitter: float) -> float:
    """Seconds to wait before a watchdog is replaced that has died ``in_a_row`` times, this one included."""
    late = in_a_row - RELAUNCHES_AT_ONCE
    if late <= 0:
        return 0.0
    base = CAP_S if late > 12 else min(CAP_S, FIRST_RELAUNCH_S * 2.0 ** (late - 1))
    return min(CAP_S, base * (1.0 - JITTER + 2.0 * JITTER * jitter))


def delay_s(attempt: int, jitter: float) -> float:
    """Seconds to wait before attempt number ``attempt`` (0: the first repeated one).

    ``jitter`` is a random number in [0, 1). Doubles from FIRST_S; never over CAP_S.
    """
    base = CAP_S if attempt >= 6 else min(CAP_S, FIRST_S * 2.0 ** max(attempt, 0))
    return min(CAP_S, base * (1.0 - JITTER + 2.0 * JITTER * jitter))
