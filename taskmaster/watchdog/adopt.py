"""Taking over the processes of a watchdog that died, from its state record.

A process is the recorded one only if number and kernel start time agree, within the same boot; then it
is held by a pidfd, and looked at again, before anything else is done with it. One that is gone or a
zombie is asked for: whoever was its parent by then (the control plane, as subreaper) has its status.
"""

from __future__ import annotations

import os

from taskmaster import fifos, procfs, procinside
from taskmaster.core import backoff, lifecycle
from taskmaster.core.events import Spawned, Timer
from taskmaster.core.lifecycle import Phase, Process
from taskmaster.core.spec import MAX_PROCESSES
from taskmaster.core.states import Desired
from taskmaster.watchdog.marks import INSTANCE_VARIABLE
from taskmaster.watchdog.place import Place
from taskmaster.watchdog.record import StateRecord
from taskmaster.watchdog.runner import Runner


def adopt(runner: Runner, found: StateRecord) -> None:
    """Make the recorded places those of ``runner`` and go on where the dead watchdog was."""
    runner.adopted(found)
    runner.endings.resume = lambda place: resume(runner, place)
    # Also where nothing seems to run: what a process left behind is nobody's child of ours.
    runner.family.has_strangers = bool(found.gaps or found.places)
    for recorded in found.places:
        place = Place.recorded(recorded)
        runner.places[place.number] = place
        runner.captures.resume(place.number, runner.spec, place.pid)
        runner.memory.resume(place)
    pipes = _pipes(runner)
    inherited = [(procfs.stat(pid), start) for pid, start in found.inherited]
    runner.family.inherited = [
        (status.pid, start)
        for status, start in inherited
        if status is not None and status.start == start and runner.family.is_ours(status, pipes)
    ]
    for place in list(runner.places.values()):
        if lifecycle.timer_of(place.process) is Timer.KILL:
            # A stop keeps its deadline, also where the main process has ended meanwhile and others have not.
            _arm(runner, place)
        if place.pid is not None and _is_a_stranger(runner, place, pipes):
            runner.endings.ended(place, None)
        elif place.pid is not None:
            _take(runner, place)
        else:
            _go_on(runner, place)
    runner.mark_dirty()


def _is_a_stranger(runner: Runner, place: Place, pipes: dict[str, int]) -> bool:
    """Whether the recorded process lives and nothing but the record says that it is this job's."""
    assert place.pid is not None
    status = procfs.stat(place.pid)
    if status is None or status.start != place.start or status.dead:
        return False
    return not runner.family.is_ours(status, pipes)


def without_record(runner: Runner) -> None:
    """Adopt what runs of the job although there is no record that could be used.

    The kernel's word instead: a session leader whose standard output or error is a pipe of this very job, in
    this very state directory. Whoever else writes into one was started by such a process, which may have ended:
    it is the job's, and goes before the next one starts. Nothing else is touched, whatever its environment or its
    name say.
    """
    removed = " (deleted)"  # what /proc adds where somebody has removed the folder meanwhile
    pipes = _pipes(runner)
    others: list[tuple[int, int]] = []
    for pid in procfs.everyone():
        status = procfs.stat(pid)
        if status is None or status.dead:
            continue
        number = next((pipes[end] for end in _ends(pid, removed) if end in pipes), None)
        if number is None:
            continue
        if status.session != pid or number in runner.places:
            others.append((pid, status.start))
            continue
        instance = (procinside.variables(pid, INSTANCE_VARIABLE) or {}).get(INSTANCE_VARIABLE, "")
        if instance:
            runner.of_instance(instance)
        place = runner.place(number)
        place.pid, place.start, place.session = pid, status.start, pid
        place.process = Process(Phase.RUNNING, Desired.UP)
        runner.family.has_strangers = True
        runner.captures.resume(number, runner.spec, pid)
        runner.memory.resume(place)
        runner.endings.resume = lambda place: resume(runner, place)
        _take(runner, place)
    if others:
        runner.inherit(tuple(others), ())


def _pipes(runner: Runner) -> dict[str, int]:
    """Paths of all pipes that this job may have, and the number of the place of each."""
    state = os.readlink(f"/proc/self/fd/{runner.directory}")
    return {
        f"{state}/{fifos.name(number, stream)}": number
        for number in range(MAX_PROCESSES)
        for stream in fifos.STREAMS
    }


def _ends(pid: int, removed: str) -> list[str]:
    return [end.removesuffix(removed) for end in procinside.outputs(pid)]


def _take(runner: Runner, place: Place) -> None:
    try:
        alive = runner.endings.hold(place)
    except OSError:
        alive = False  # no descriptor to be had: asked about as if gone, and found alive after the grace
    if not alive:
        runner.endings.missing(place)
        return
    resume(runner, place)


def resume(runner: Runner, place: Place) -> None:
    """Go on with a living process that was not ours."""
    up_at = place.up_at if place.up_at is not None else runner.loop.now()
    place.up_at = up_at
    runner.notice(
        place, "process.adopted", pid=place.pid, uptime=round(runner.loop.now() - up_at, 3)
    )
    if place.phase is Phase.SPAWNING:
        # Recorded, released, and not heard of again: it is its program, or will end and say 127.
        runner.feed(place, Spawned())
    else:
        _arm(runner, place)


def _go_on(runner: Runner, place: Place) -> None:
    """A place without a process: it waits for a timer, for the rest of its family, or for nothing."""
    if place.phase is Phase.SPAWNING:
        place.wants_spawn = True
    else:
        # What is left is looked at with the rest of the job adopted; where nothing stops it, it is only told of.
        place.ended = place.phase in (Phase.STOPPING, Phase.CLEARING)
        runner.loop.call_in(0, lambda: runner.signalling.look(place))
    _arm(runner, place)


def _arm(runner: Runner, place: Place) -> None:
    kind = lifecycle.timer_of(place.process)
    if kind is not None:
        now = runner.loop.now()
        # What the record says is believed only as far as such a timer could have been armed.
        longest = {
            Timer.STABLE: runner.spec.start_time_s,
            Timer.RETRY: backoff.CAP_S,
            Timer.KILL: max(runner.spec.stop_time_s, lifecycle.KILL_AGAIN_S),
        }[kind]
        due_at = now if place.due_at is None else min(place.due_at, now + longest)
        runner.arm(place, kind, due_at)
