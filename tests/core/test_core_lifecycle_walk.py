"""The lifecycle table, walked: every event in every value that can be reached, for each kind of job."""

import re
from collections import defaultdict
from functools import cache

import msgspec
import pytest
from core_world import COMMANDS, EVENTS, HAPPENINGS, LAWS, SPECS, Place, named, walk, worlds

from taskmaster.core import lifecycle
from taskmaster.core.events import (
    Arm,
    Disarm,
    Exited,
    Kill,
    KillAll,
    LeftBehind,
    SignalStop,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    Timer,
    TimerFired,
)
from taskmaster.core.lifecycle import (
    ALIVE,
    IDLE,
    TABLE,
    TIMER_OF,
    IllegalEvent,
    Phase,
    Process,
    step,
)
from taskmaster.core.spec import RestartPolicy
from taskmaster.core.states import Desired, State

each_spec = pytest.mark.parametrize("spec", SPECS, ids=named)
KINDS = {type(event) for event in EVENTS}


@each_spec
def test_every_move_keeps_the_laws(spec):
    """One process in a place, no spawn beside a live one, each timer exactly in its phase: everywhere."""
    phases = set()
    for move in walk(spec):
        move.before.check()
        phases.add(move.before.process.phase)
        if move.after is not None and move.before.can_happen(move.event):
            move.after.check()
    gives_up = spec.restart_times >= 0 or spec.restart is RestartPolicy.NEVER
    ends = spec.restart is not RestartPolicy.ALWAYS
    missing = ([] if gives_up else [Phase.FATAL]) + ([] if ends else [Phase.EXITED])
    if spec.start_time_s == 0:
        missing.append(Phase.STARTING)
    assert phases == set(Phase) - set(missing)


@each_spec
def test_accepted_is_what_can_happen(spec):
    """The table accepts an event exactly where the world can bring it about, and refuses every other."""
    for move in walk(spec):
        assert (move.after is not None) == move.before.can_happen(move.event), move


def test_a_refused_event_moves_nothing():
    """An illegal pair raises, names event and phase, and the value is what it was."""
    refused = 0
    for spec in SPECS:
        for move in walk(spec):
            if move.after is None:
                process = move.before.process
                before = msgspec.json.encode(process)
                with pytest.raises(IllegalEvent) as caught:
                    step(process, move.event, spec)
                assert msgspec.json.encode(process) == before
                assert process.phase.value in str(caught.value)
                kind = type(move.event).__name__
                assert kind in str(caught.value) or move.event.timer.value in str(caught.value)
                refused += 1
    assert refused > 1000


def test_values_are_frozen():
    """A step cannot move the old value by accident, nor can anyone else."""
    with pytest.raises(AttributeError):
        Process().phase = Phase.RUNNING
    for event in EVENTS:
        for name in event.__struct_fields__:
            with pytest.raises(AttributeError):
                setattr(event, name, getattr(event, name))


def test_the_first_value():
    """A process of which nothing is known yet is STOPPED, unwanted, and nothing is held against it."""
    assert Process() == Process(Phase.STOPPED, Desired.DOWN, 0, 0, False)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"phase":"STOPPED","desired":"DOWN","other":1}', type=Process)


def closure(world, spec):
    """Every move the world makes from ``world`` on when nobody commands anything."""
    seen, ahead, moves = {world}, [world], []
    while ahead:
        before = ahead.pop()
        for event in HAPPENINGS:
            if before.can_happen(event):
                after, effects = before.after(event, spec)
                moves.append((before, event, after, effects))
                if after not in seen:
                    seen.add(after)
                    ahead.append(after)
    return seen, moves


#: Phases in which whatever lives has been sent the stop signal.
SIGNALLED = (Phase.STOPPING, Phase.CLEARING)


@each_spec
def test_stop_and_kill_settle_in_stopped(spec):
    """From anywhere, nothing starts again, what lives is signalled, and the end of it is STOPPED."""
    for world in worlds(spec):
        for command in (c for c in COMMANDS if not isinstance(c, Start)):
            first, effects = world.after(command, spec)
            assert first.process.desired is Desired.DOWN
            if first.place is not Place.FORKED:
                assert (first.process.failures, first.process.crashes) == (0, 0)
            signals = [e for e in effects if isinstance(e, (SignalStop, KillAll))]
            if first.place is Place.EMPTY:
                assert signals == []
            elif isinstance(command, Kill):
                # Also to what has not got as far as its exec: it may hang before it.
                assert signals == [KillAll()]
            elif first.place is Place.FORKED or world.process.phase in SIGNALLED:
                assert signals == []
            else:
                assert signals == [SignalStop()]
            settles_by_itself(first, command, spec)


def settles_by_itself(first, command, spec):
    """Assert that after this ``command`` whatever happens leads to STOPPED, by at most two ends."""
    seen, moves = closure(first, spec)
    for before, event, after, effects in moves:
        after.check()
        assert not any(isinstance(effect, Spawn) for effect in effects), (before, event)
        assert after.process.desired is Desired.DOWN
        if isinstance(event, (SpawnFailed, Exited)):
            assert after.process.phase is Phase.STOPPED
        elif isinstance(event, (Spawned, LeftBehind)):
            # A kill that came before there was a program goes to the program as well; a stop has one deadline.
            killed = (KillAll(), Arm(Timer.KILL, lifecycle.KILL_AGAIN_S))
            assert effects == (killed if before.process.urgent else (SignalStop(),))
            assert before.process.urgent or not isinstance(command, Kill)
        else:
            assert event == TimerFired(Timer.KILL)
            assert effects == (KillAll(), Arm(Timer.KILL, lifecycle.KILL_AGAIN_S))
            assert (after.process.phase, after.place) == (before.process.phase, before.place)
    over = [w for w in seen if not any(w.can_happen(event) for event in HAPPENINGS)]
    assert {w.process.phase for w in over} == {Phase.STOPPED}


@each_spec
def test_start_is_obeyed_from_anywhere(spec):
    """A Start spawns where the place is empty, and is remembered where it is not."""
    for world in worlds(spec):
        after, effects = world.after(Start(), spec)
        assert after.process.desired is Desired.UP
        assert (Spawn() in effects) == (world.place is Place.EMPTY)
        if world.place is not Place.EMPTY:
            assert after.process.phase is world.process.phase
            taken_back = (
                world.place is Place.FORKED and world.timer is not None and not world.process.urgent
            )
            assert effects == ((Disarm(),) if taken_back else ())
        else:
            assert (after.process.failures, after.process.crashes) == (0, 0)
        if after.process.phase is Phase.STOPPING:
            # Started again once everything of before is gone, however that ended.
            for event in (e for e in HAPPENINGS if isinstance(e, Exited)):
                again, effects = after.after(event, spec)
                assert again.process.phase is Phase.SPAWNING
                assert again.process.desired is Desired.UP
                assert Spawn() in effects


@each_spec
def test_every_value_survives_the_record(spec):
    """Each value is the same after it was written as JSON and read again."""
    for process in {world.process for world in worlds(spec)}:
        assert msgspec.json.decode(msgspec.json.encode(process), type=Process) == process


COLUMNS = {
    "Start": (Start,),
    "Stop (Kill)": (Stop, Kill),
    "Spawned": (Spawned,),
    "SpawnFailed": (SpawnFailed,),
    "Exited": (Exited,),
    "LeftBehind": (LeftBehind,),
    "TimerFired": (TimerFired,),
}


def documented():
    """The tables of the module's docstring: the text of the cell for each (phase, kind of event)."""
    cells = {}
    lines = lifecycle.__doc__.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("====")]
    assert len(rules) % 3 == 0
    for top, middle, bottom in zip(rules[::3], rules[1::3], rules[2::3], strict=True):
        spans = [match.span() for match in re.finditer("=+", lines[top])]

        def split(line, spans=spans):
            return [line[start:end].strip() for start, end in spans]

        [header] = [split(line) for line in lines[top + 1 : middle]]
        rows = []
        for line in lines[middle + 1 : bottom]:
            row = split(line)
            if row[0] and row[1]:  # else it goes on with the row above
                rows.append(row)
            else:
                rows[-1] = [f"{a} {b}".strip() for a, b in zip(rows[-1], row, strict=True)]
        named_phases = [Phase(w) for row in rows for w in row[0].split() if w != "others"]
        assert len(set(named_phases)) == len(named_phases)
        for row in rows:
            others = set(Phase) - set(named_phases)
            phases = others if row[0] == "others" else map(Phase, row[0].split())
            for phase in phases:
                for column, text in zip(header[1:], row[1:], strict=True):
                    for kind in COLUMNS[column]:
                        assert (phase, kind) not in cells
                        cells[phase, kind] = text
    return cells


def test_the_documented_table_is_complete():
    """Every pair of phase and event stands in the docstring: with what follows, or ``-`` and refused."""
    cells = documented()
    assert set(cells) == {(phase, kind) for phase in Phase for kind in KINDS}
    assert all(cells.values())
    assert {pair for pair, text in cells.items() if text != "-"} == set(TABLE)


@cache
def observed():
    """The phases that follow each (phase, kind of event), seen on the walks of all specs."""
    phases = defaultdict(set)
    for spec in SPECS:
        for move in walk(spec):
            if move.after is not None:
                pair = (move.before.process.phase, type(move.event))
                phases[pair].add(move.after.process.phase)
    return phases


@pytest.mark.parametrize(
    ("phase", "kind"),
    sorted(TABLE, key=lambda cell: (cell[0].value, cell[1].__name__)),
    ids=lambda value: getattr(value, "__name__", None) or value.value,
)
def test_the_documented_table_is_true(phase, kind):
    """A cell of the docstring names exactly the phases that follow, beside staying where one is."""
    text = documented()[phase, kind]
    said = {Phase(word) for word in re.findall("[A-Z]{4,}", text) if word in Phase.__members__}
    assert said - {phase} == observed()[phase, kind] - {phase}, text


def test_the_sets_of_phases():
    """The named sets agree with what the laws say of each phase."""
    assert {p for p, law in LAWS.items() if law.places == (Place.EMPTY,)} == set(Phase) - ALIVE
    assert {phase: law.timer for phase, law in LAWS.items() if law.timer} == TIMER_OF
    assert {p for p in set(Phase) - ALIVE if p not in TIMER_OF} == IDLE


@pytest.mark.parametrize("phase", Phase)
def test_the_outside_sees_starting_for_all_three(phase):
    """Each phase shows as the state of its name, but what comes before a process as STARTING."""
    shown = "STARTING" if phase in (Phase.SPAWNING, Phase.CLEARING) else phase.value
    assert phase.state is State(shown)
