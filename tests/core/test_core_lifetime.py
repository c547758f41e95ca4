"""The life of a daemon, walked: every phase, every event, every path up to a length that covers all of them."""

from __future__ import annotations

import itertools

import pytest

from taskmaster.core.lifetime import TABLE, Effect, Event, Impossible, Phase, step

STARTS = (Phase.SERVING, Phase.ARRIVING)
ENDS = (Phase.ENDING, Phase.LEFT)
#: What gives the one who asked for an upgrade a reply, or leaves it to the new program.
REPLIES = (Effect.GO_ON, Effect.CANCEL, Effect.BECOME)


def paths(length: int):
    """Every path of possible events from every start: phases, events and effects."""
    for start in STARTS:
        row = [(start, (), ())]
        for _ in range(length):
            row = [
                (phase, (*events, event), (*effects, done))
                for before, events, effects in row
                for event in TABLE[before]
                for phase, done in [step(before, event)]
            ]
            yield from ((start, *one) for one in row)


def test_every_phase_is_reached_and_every_effect_occurs():
    """No row that nobody gets to, and no effect that never comes."""
    reached = {phase for _, phase, _, _ in paths(4)} | set(STARTS)
    assert reached == set(Phase) == set(TABLE)
    found = {effect for row in TABLE.values() for _, effects in row.values() for effect in effects}
    assert found == set(Effect)


def test_the_end_is_always_reached():
    """Whoever asks for the end gets it in every phase in which anything can be asked, and it is never undone."""
    for phase in set(Phase) - {Phase.BECOMING}:
        for event in (Event.END_ASKED, Event.LEAVE_ASKED):
            after, _ = step(phase, event)
            assert after in ENDS, (phase, event)
    for phase in ENDS:
        assert all(after in ENDS for after, _ in TABLE[phase].values())
        assert not {Effect.TRY, Effect.HOLD, Effect.BECOME, Effect.TAKE_OVER} & {
            effect for _, effects in TABLE[phase].values() for effect in effects
        }


def test_who_asks_for_an_upgrade_gets_one_reply():
    """On every path each upgrade that is tried is answered once, or on its way to the new program."""
    for start, phase, events, done in paths(6):
        effects = list(itertools.chain.from_iterable(done))
        if start is Phase.ARRIVING and Effect.TRY not in effects:
            continue
        asked = effects.count(Effect.TRY)
        # An exec that fails comes back as GO_ON: the two are one reply.
        replied = sum(effects.count(one) for one in REPLIES)
        both = sum(
            1
            for before, after in itertools.pairwise(zip(events, done, strict=True))
            if Effect.BECOME in before[1] and after[0] is Event.UPGRADE_FAILED
        )
        waiting = phase in (Phase.TRYING, Phase.DRAINING)
        assert asked == replied - both + waiting, (start, events)


def test_jobs_are_stopped_once_and_left_once():
    """However often the end is asked for; and clients that were handed over are taken over first."""
    for start, phase, events, done in paths(5):
        effects = list(itertools.chain.from_iterable(done))
        assert effects.count(Effect.STOP_JOBS) <= 1, events
        assert effects.count(Effect.LEAVE) == (phase is Phase.LEFT), events
        if start is Phase.ARRIVING and phase is not Phase.ARRIVING:
            first = next(effect for effect in effects if effect is not Effect.REFUSE)
            assert first is Effect.TAKE_OVER, events


@pytest.mark.parametrize(
    ("phase", "event"),
    [(phase, event) for phase in Phase for event in Event if event not in TABLE[phase]],
)
def test_what_cannot_happen(phase, event):
    """It raises, and says what and when."""
    with pytest.raises(Impossible, match=event.value):
        step(phase, event)
