"""When, as people write it: ``2h``, ``yesterday``, ``09:00``, ``2026-11-24``, ISO 8601; and back again.

Records have UTC in one form, so their times are compared as text.
"""

from __future__ import annotations

import functools
import re
from datetime import datetime, timedelta, timezone

ACCEPTED = (
    "2h (ago; also 45s, 30m, 3d, 1w, 1h30m), now, today, yesterday, 09:00 (today), 2026-11-24, "
    "2026-11-24 09:00, or ISO 8601 (2026-11-24T09:00:00Z)"
)
_AGO = re.compile(
    r"(?=\d)(?:(\d{1,4})w)?(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?", re.ASCII
)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def parse(text: str, now: datetime) -> str:
    """The moment that ``text`` names, as records have it; ``now`` has a time zone, the one that is meant.

    Raises ValueError, which says what is accepted.
    """
    try:
        moment = _moment(text.strip(), now)
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise ValueError(f"{text!r} is no time; accepted: {ACCEPTED}")
    return stamp(moment)


def stamp(moment: datetime) -> str:
    """A moment as records have it."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _moment(text: str, now: datetime) -> datetime | None:
    if text == "now":
        return now
    if text in ("today", "yesterday"):
        return _midnight(now - timedelta(days=text == "yesterday"))
    if ago := _AGO.fullmatch(text):
        weeks, days, hours, minutes, seconds = (int(part or 0) for part in ago.groups())
        return now - timedelta(
            weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds
        )
    if clock := _CLOCK.fullmatch(text):
        hour, minute, second = (int(part or 0) for part in clock.groups())
        return _local(now.replace(hour=hour, minute=minute, second=second, microsecond=0), now)
    if moment := _MOMENT.fullmatch(text):
        day, time, zone = moment.groups()
        time = time or "00:00"
        layout = "%Y-%m-%d %H:%M:%S.%f" if "." in time else "%Y-%m-%d %H:%M:%S"
        time = time if time.count(":") == 2 else time + ":00"
        if zone is None:
            return _local(datetime.strptime(f"{day} {time}", layout), now)
        return datetime.strptime(f"{day} {time}{zone}", layout + "%z")
    return None


def _midnight(moment: datetime) -> datetime:
    return _local(moment.replace(hour=0, minute=0, second=0, microsecond=0), moment)


def _local(moment: datetime, now: datetime) -> datetime:
    """The wall-clock time in the zone of ``now``, whose offset may be another on that day."""
    if now.tzinfo is timezone.utc:
        return moment.replace(tzinfo=timezone.utc)
    return moment.replace(tzinfo=None).astimezone()


def shown(text: str, *, utc: bool, blank: str) -> str:
    """A record's time for people, milliseconds kept; ``blank`` stands between day and time.

    A time that is none, which a foreign line may have, is shown as it is.
    """
    if not _STAMP.fullmatch(text):
        return text
    minute = _minute(text[:16], utc, blank)
    if minute is None:
        return text
    return f"{minute}{text[16:23]}Z" if utc else f"{minute}{text[16:23]}"


@functools.lru_cache(maxsize=1024)
def _minute(text: str, utc: bool, blank: str) -> str | None:
    """Day, hour and minute. Neighbours share it: half of what a row costs would else go into this."""
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M").replace(tzinfo=timezone.utc)
        if not utc:
            moment = moment.astimezone()
    except (ValueError, OverflowError):
        return None
    return moment.strftime(f"%Y-%m-%d{blank}%H:%M")
