"""Where one daemon stands in ``core.lifetime``: it moves the phase first, then has the effects carried out.

It decides nothing and does nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from taskmaster.core.lifetime import Effect, Event, Phase, step


class Life:
    """One daemon's life. ``carried_out_by``: who does what; every effect has to be in it before it is due."""

    def __init__(self, phase: Phase, carried_out_by: Mapping[Effect, Callable[[], None]]) -> None:
        self.phase = phase
        self._carried_out_by = carried_out_by

    def happens(self, event: Event) -> None:
        """Move on. The last effect of a step may itself make something happen."""
        self.phase, effects = step(self.phase, event)
        for effect in effects:
            self._carried_out_by[effect]()

    @property
    def is_over(self) -> bool:
        """Whether the daemon is about to end."""
        return self.phase in (Phase.ENDING, Phase.LEFT)
