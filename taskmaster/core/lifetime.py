"""The life of a daemon: THE table of upgrade, end and service, so that each knows of the others.

An upgrade takes several turns of the loop, and anything may be asked meanwhile. Two rules hold on every path:
whoever asks for the end gets it, whatever step an upgrade is at; and whoever asked for an upgrade gets exactly one
reply. ``step`` raises Impossible for what cannot happen, and the phase has not moved then.

=========  ============  ===============  ===========  ==========  ==========  =============  ===========
phase      UPGRADE       PASSED FAILED    QUIET        LATE        END_ASKED   LEAVE_ASKED    others
=========  ============  ===============  ===========  ==========  ==========  =============  ===========
SERVING    TRYING, try   -                nothing      -           ENDING      LEFT           -
TRYING     refused       DRAINING, hold;  nothing      -           ENDING      LEFT           -
                         SERVING, tell
DRAINING   refused       -                become       cut short,  ENDING      LEFT           -
                                                       become
BECOMING   -             SERVING, tell    -            -           -           -              -
ARRIVING   refused       -                nothing      -           ENDING      LEFT           HEARD: SERVING
ENDING     refused       nothing          nothing      nothing     kill jobs   nothing        STOPPED: LEFT
LEFT       refused       nothing          nothing      nothing     nothing     nothing        nothing
=========  ============  ===============  ===========  ==========  ==========  =============  ===========

TRYING: the new program is on trial. DRAINING: what was read is being answered. BECOMING: all is let go of, and
only the kernel is asked; no event but its refusal comes between. ARRIVING: this is the new program, which has not
met all its watchdogs yet.
"""

from __future__ import annotations

import enum
from typing import Final


class Phase(enum.Enum):
    """Where the daemon stands."""

    SERVING = "serving"
    TRYING = "trying"
    DRAINING = "draining"
    BECOMING = "becoming"
    ARRIVING = "arriving"
    ENDING = "ending"
    LEFT = "left"


class Event(enum.Enum):
    """What can happen to it."""

    UPGRADE_ASKED = "upgrade asked"
    #: The new program could start.
    TRIAL_PASSED = "trial passed"
    #: It could not; or it could not be executed after all.
    UPGRADE_FAILED = "upgrade failed"
    #: Everything that was read is answered.
    QUIET = "quiet"
    #: Some of it is still not, and nobody waits any longer.
    DRAINED_LATE = "drained late"
    #: All watchdogs have been met, or have had the time for it.
    HEARD = "heard"
    #: SIGTERM, SIGINT, ``shutdown``.
    END_ASKED = "end asked"
    #: ``shutdown`` that leaves the jobs.
    LEAVE_ASKED = "leave asked"
    #: All jobs are stopped, or the time for that is over.
    STOPPED = "stopped"


class Effect(enum.Enum):
    """What is to be done about it, in this order."""

    TRY = "try"
    REFUSE = "refuse"
    #: Begin nothing more that changes something.
    HOLD = "hold"
    #: Answer all that has no answer yet.
    CUT_SHORT = "cut short"
    BECOME = "become"
    #: The upgrade is over without a new program: say so, and go on.
    GO_ON = "go on"
    #: The upgrade is given up for the end: say so.
    CANCEL = "cancel"
    #: Serve the clients that were handed over.
    TAKE_OVER = "take over"
    REPLACE_WATCHDOGS = "replace watchdogs"
    STOP_JOBS = "stop jobs"
    KILL_JOBS = "kill jobs"
    LEAVE = "leave"


class Impossible(ValueError):
    """An event that cannot come in this phase: a bug."""


_S, _T, _D, _B, _A, _E, _L = Phase
_Row = dict[Event, tuple[Phase, tuple[Effect, ...]]]

_SERVING: Final[_Row] = {
    Event.UPGRADE_ASKED: (_T, (Effect.TRY,)),
    Event.QUIET: (_S, ()),
    Event.END_ASKED: (_E, (Effect.STOP_JOBS,)),
    Event.LEAVE_ASKED: (_L, (Effect.LEAVE,)),
}
_TRYING: Final[_Row] = {
    Event.UPGRADE_ASKED: (_T, (Effect.REFUSE,)),
    Event.TRIAL_PASSED: (_D, (Effect.HOLD,)),
    Event.UPGRADE_FAILED: (_S, (Effect.GO_ON,)),
    Event.QUIET: (_T, ()),
    Event.END_ASKED: (_E, (Effect.CANCEL, Effect.STOP_JOBS)),
    Event.LEAVE_ASKED: (_L, (Effect.CANCEL, Effect.LEAVE)),
}
_DRAINING: Final[_Row] = {
    Event.UPGRADE_ASKED: (_D, (Effect.REFUSE,)),
    Event.QUIET: (_B, (Effect.BECOME,)),
    Event.DRAINED_LATE: (_B, (Effect.CUT_SHORT, Effect.BECOME)),
    Event.END_ASKED: (_E, (Effect.CANCEL, Effect.STOP_JOBS)),
    Event.LEAVE_ASKED: (_L, (Effect.CANCEL, Effect.LEAVE)),
}
_BECOMING: Final[_Row] = {Event.UPGRADE_FAILED: (_S, (Effect.GO_ON,))}
_ARRIVING: Final[_Row] = {
    Event.UPGRADE_ASKED: (_A, (Effect.REFUSE,)),
    Event.QUIET: (_A, ()),
    Event.HEARD: (_S, (Effect.TAKE_OVER, Effect.REPLACE_WATCHDOGS)),
    Event.END_ASKED: (_E, (Effect.TAKE_OVER, Effect.STOP_JOBS)),
    Event.LEAVE_ASKED: (_L, (Effect.TAKE_OVER, Effect.LEAVE)),
}
_NOTHING_MORE: Final = frozenset(Event) - {Event.UPGRADE_ASKED}
_ENDING: Final[_Row] = {
    **dict.fromkeys(_NOTHING_MORE, (_E, ())),
    Event.UPGRADE_ASKED: (_E, (Effect.REFUSE,)),
    Event.END_ASKED: (_E, (Effect.KILL_JOBS,)),
    Event.STOPPED: (_L, (Effect.LEAVE,)),
}
_LEFT: Final[_Row] = {
    **dict.fromkeys(_NOTHING_MORE, (_L, ())),
    Event.UPGRADE_ASKED: (_L, (Effect.REFUSE,)),
}
TABLE: Final[dict[Phase, _Row]] = {
    _S: _SERVING,
    _T: _TRYING,
    _D: _DRAINING,
    _B: _BECOMING,
    _A: _ARRIVING,
    _E: _ENDING,
    _L: _LEFT,
}


def step(phase: Phase, event: Event) -> tuple[Phase, tuple[Effect, ...]]:
    """What comes of an event: the next phase, and what is to be done, in order. Raises Impossible."""
    found = TABLE[phase].get(event)
    if found is None:
        raise Impossible(f"{event.value} while {phase.value}")
    return found
