"""The state record of a job as the doctor reads it: who was to run, by pid and kernel start time.

It may have been written by anybody, so everything in it is checked before it is believed. What the
format is, taskmaster/watchdog/record.py says, which writes it.
"""

from __future__ import annotations

import os
from typing import Any

from taskmaster.cli.client import loads
from taskmaster.cli.doctor import looking
from taskmaster.cli.doctor.looking import Unusable

FILE = "state.json"
FORMAT = 1
MAX_BYTES = 16 * 1024 * 1024
_MAX_PROCESSES = 1000
_MAX_PID = 1 << 22


class Recorded:
    """One process of a state record: its number within the job, pid and kernel start time."""

    __slots__ = ("number", "pid", "session", "start")

    def __init__(self, number: int, pid: int | None, start: int | None, session: object) -> None:
        self.number, self.pid, self.start, self.session = number, pid, start, session

    def alive(self) -> bool:
        """Whether the very process runs that was recorded."""
        if self.pid is None:
            return False
        found = looking.process(self.pid)
        if found is None:
            return looking.exists(self.pid)  # hidden by /proc (hidepid), which is not gone
        return found.start == self.start and not found.dead


class Record:
    """A state record, as far as the doctor needs it."""

    __slots__ = ("boot_id", "instance", "places")

    def __init__(self, boot_id: str, instance: str, places: list[Recorded]) -> None:
        self.boot_id, self.instance, self.places = boot_id, instance, places


def read(folder: int, job: str) -> Record | None:
    """The state record of a job; None where there is none. Raises Unusable."""
    data = looking.read(folder, FILE, MAX_BYTES)
    if data is None:
        return None
    about = looking.entry(folder, FILE)
    owner = os.fstat(folder).st_uid
    if about is not None and (
        about.st_uid != owner or about.st_mode & 0o022 or about.st_nlink != 1
    ):
        raise Unusable("owned, writable or linked to by somebody else")
    return parse(data, job)


def parse(data: bytes, job: str) -> Record:
    """The record in these bytes, whoever wrote them. Raises Unusable."""
    try:
        document = loads(data)
    except ValueError as error:
        raise Unusable(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Unusable("not a JSON object")
    if document.get("format") != FORMAT:
        raise Unusable(f"format {document.get('format')!r:.20}, this is {FORMAT}")
    if document.get("job") != job:
        raise Unusable("of another job")
    boot_id, instance = document.get("boot_id"), document.get("instance")
    if not isinstance(boot_id, str) or not isinstance(instance, str):
        raise Unusable("no boot_id or no instance")
    places = document.get("places")
    if not isinstance(places, list) or len(places) > _MAX_PROCESSES:
        raise Unusable("no list of processes, or a longer one than there can be")
    read_places = [_place(place) for place in places]
    for values in (
        [one.number for one in read_places],
        [one.pid for one in read_places if one.pid],
    ):
        if len(set(values)) != len(values):
            raise Unusable("two processes with one number or one process id")
    return Record(boot_id, instance, read_places)


def _place(place: Any) -> Recorded:
    if not isinstance(place, dict) or not _within(place.get("number"), 0, _MAX_PROCESSES - 1):
        raise Unusable("an impossible process number")
    pid, start = place.get("pid"), place.get("start")
    nothing = pid is None and start is None
    if not nothing and not (_within(pid, 2, _MAX_PID - 1) and _within(start, 0, 1 << 63)):
        raise Unusable("an impossible process id or start time")
    return Recorded(place["number"], pid, start, place.get("session"))


def _within(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
