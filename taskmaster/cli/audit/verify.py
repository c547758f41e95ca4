"""``taskmasterctl audit verify``: whether the log is as it was written, in words; needs no taskmasterd."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskmaster.cli import screen
from taskmaster.cli.audit import logfiles
from taskmaster.errors import FileError, InvalidQuery
from taskmaster.evidence import sealstate
from taskmaster.evidence.anomaly import Finding, Kind
from taskmaster.evidence.chain import NOTHING
from taskmaster.evidence.seals import Keys, MistypedKey, read_key
from taskmaster.evidence.sealstate import Seal
from taskmaster.evidence.verification import Verification

EXIT_NOT_AS_WRITTEN = 1
_HEAD = re.compile(r"([1-9][0-9]{0,15}):([0-9a-fA-F]{64})", re.ASCII)
_KEY_FILE_BYTES = 4096
#: auditSealSeconds where nobody says another.
_SEAL_S = 900.0


def run(
    files: Sequence[str],
    *,
    keys: Sequence[str],
    key_files: Sequence[str],
    heads: Sequence[str],
    as_json: bool,
    seal_s: float | None = None,
) -> int:
    """Verify ``files``, the daemon's own log without any; returns the exit status.

    ``seal_s``: auditSealSeconds of the daemon that wrote it; None: of this user's, or the default.

    Raises InvalidQuery for a head or key that cannot be one, FileError for a file that cannot be read.
    """
    of_keys = [_key("--key", key) for key in keys] + [_key_in(file) for file in key_files]
    wanted = dict(_head(text) for text in heads)
    made: Seal | None = None
    if not files:
        from taskmaster.cli.audit import where

        config = where.configuration()
        files = [str(config.audit_file)]
        seal_s = config.audit_seal_s if seal_s is None else seal_s
        # Before the log is read: what is sealed meanwhile is in the log, then.
        made = _last_seal(config.audit_seal_file)
    opened = logfiles.open_all([os.path.normpath(file) for file in files])
    gc.enable()  # taskmasterctl begins without it; this may take a while
    seen = Verification(of_keys, wanted, _SEAL_S if seal_s is None else seal_s)
    torn = _read(opened, seen)
    finding = seen.finding() or _cut_with_its_seals(seen, made)
    paths = [one.path for one in opened]
    unproved = "" if finding is not None else _unproved(seen, of_keys)
    document = _document(seen, finding, paths, torn) | ({"good": False} if unproved else {})
    if as_json:
        screen.out_json(document | ({"unproved": unproved} if unproved else {}))
    else:
        _tell(seen, finding, paths, torn=torn, keys=of_keys, unproved=unproved)
    return EXIT_NOT_AS_WRITTEN if finding is not None or unproved else 0


def _last_seal(path: Path | None) -> Seal | None:
    """The last seal that the sealing key has made; None where this user cannot see that."""
    try:
        return (
            None
            if path is None
            else sealstate.decode(path.read_bytes()[: sealstate.MAX_BYTES]).last
        )
    except (OSError, ValueError):  # ENOENT, EACCES: root's and the daemon's own to read
        return None


def _cut_with_its_seals(seen: Verification, made: Seal | None) -> Finding | None:
    """Whether seals that were made are not in the log: a key is evolved by nothing but a seal."""
    last = seen.last
    if made is None or last is None or seen.last_epochs.get(made.key, -1) >= made.epoch:
        return None
    if (made.sealedSeq, made.sealedHash) == (last.link.seq, last.link.hash):
        return None  # the daemon was killed before it wrote it; the next one does
    return Finding(
        Kind.CUT,
        last.link.seq + 1,
        last.place,
        f"the end was cut off: the sealing key has made the seal of epoch {made.epoch}, over record "
        f"{made.sealedSeq}, and that is not in the log",
    )


def _key_in(path: str) -> Keys:
    try:
        with open(path, "rb") as file:
            text = file.read(_KEY_FILE_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise FileError(path, "", str(error.strerror), "a file with the key") from None
    return _key(f"--key-file {path}", text)


def _key(source: str, text: str) -> Keys:
    try:
        return Keys(read_key(text))
    except MistypedKey as error:
        raise InvalidQuery(
            f"{source} is no verification key: {error}; accepted: what audit keygen printed, "
            "0123-4567-... in nine groups of four"
        ) from None


def _head(text: str) -> tuple[int, str]:
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise InvalidQuery(
            f"--head {text!r} is no head; accepted: SEQ:HASH, a record's number and its hash of 64 "
            "hexadecimal digits"
        )
    return int(match[1]), match[2].lower()


def _read(opened: Sequence[logfiles.OpenFile], seen: Verification) -> str:
    """Feed all lines; where the last file ends with half a line, that is left out, and its place returned."""
    feed = seen.feed
    for one in opened:
        with one.file:
            number = 0
            path = one.path
            try:
                for line in one.lines():
                    number += 1
                    if one is opened[-1] and not line.endswith(b"\n") and not one.left_out:
                        return f"{path} line {number}"
                    feed(line, path, number, one.left_out)
            except OSError as error:
                raise FileError(
                    path, "", f"that it cannot be read ({error.strerror})", "a log"
                ) from None
    return ""


def _unproved(seen: Verification, keys: Sequence[Keys]) -> str:
    """Why the keys given do not prove the log; "" where they do, and without any."""
    for one in keys:
        if one.name not in seen.proving:
            others = ", ".join(seen.seals)
            made = f"the seals here are of key {others}" if others else "no seal is in these files"
            return f"the key given (it is called {one.name}) proves nothing: {made}"
    foreign, sealed, last = seen.foreign, seen.sealed, seen.last
    if foreign is None or last is None:
        doubt = seen.doubt()
        if not doubt:
            return ""
        return (
            f"unproved: {doubt}. Give a head that was kept elsewhere (--head SEQ:HASH, the daemon sends them to "
            "syslog), or the files before"
        )
    said = (
        f"record {foreign.seq}, of {foreign.timestamp}, is a seal of another key ({foreign.key}), "
        "which may be anybody's"
    )
    if sealed is None or sealed.seq < foreign.seq:
        after = _after(seen)
        said += f": {after} record{'s' if after != 1 else ''} after the last seal checked "
        said += "are not proved" if after != 1 else "is not proved"
    return f"{said}; if the key was changed lawfully, give that one too: --key may be given several times"


def _after(seen: Verification) -> int:
    """How many records come after the last seal that was checked."""
    last, sealed = seen.last, seen.sealed
    if last is None or seen.first is None:
        return 0
    # The seal itself is one more than what it seals.
    return last.link.seq - (seen.first.link.seq - 1 if sealed is None else sealed.seq + 1)


def _document(
    seen: Verification, finding: Finding | None, paths: Sequence[str], torn: str
) -> dict[str, Any]:
    found = None
    if finding is not None:
        found = {
            "kind": finding.kind.value,
            "seq": finding.seq,
            "file": finding.place.file or None,
            "line": finding.place.line or None,
            "text": finding.text,
        }
    return {
        "good": finding is None,
        "finding": found,
        "files": list(paths),
        "halfALine": torn or None,
        **_summary(seen),
    }


def _tell(
    seen: Verification,
    finding: Finding | None,
    paths: Sequence[str],
    *,
    torn: str,
    keys: Sequence[Keys],
    unproved: str,
) -> None:
    first, last = seen.first, seen.last
    if finding is not None:
        where = f"{finding.place}: " if finding.place.file else ""
        screen.complain(f"{where}{finding.text}")
    said = []
    if last is not None and first is not None:
        count = last.link.seq - first.link.seq + 1
        good = "good up to there" if finding is not None else "not proved" if unproved else "good"
        named = paths[0] if len(paths) == 1 else f"{len(paths)} files, {paths[0]} to {paths[-1]}"
        said.append(
            f"{good}: {count} record{'s' if count > 1 else ''}, {first.link.seq} to {last.link.seq}, "
            f"{first.link.timestamp} to {last.link.timestamp}, in {named}"
        )
        said += _notes(seen, torn)
        said += _of_seals(seen, keys)
        if finding is None:
            said.append(f"head {last.link.seq}:{last.link.hash}")
    elif finding is None:
        said.append(f"no record with a hash in {', '.join(paths)}")
        said += _notes(seen, torn)
    screen.out("\n".join(screen.escape(line) for line in said))
    if unproved:
        screen.complain(unproved)


def _notes(seen: Verification, torn: str) -> list[str]:
    notes = []
    begun, old = seen.unchained_first, seen.unchained_last
    if begun is not None and old is not None:
        notes.append(
            f"records {begun.seq} to {old.seq} are older than the chain and have no hash: nothing is proved "
            "of them"
        )
    elif seen.first is not None and seen.first.link.seq > 1:
        notes.append(
            f"record {seen.first.link.seq - 1} and those before it are not in these files (rotated away?)"
        )
    if seen.accounted:
        notes.append(
            f"lines that are no records: {seen.accounted}, each found and recorded by taskmasterd "
            "(audit.repaired)"
        )
    notes += _of_times(seen)
    if torn:
        notes.append(
            f"{torn} has no end: it is being written, or its writer was killed; not counted"
        )
    return notes


def _of_times(seen: Verification) -> list[str]:
    spans, notes = seen.spans, []
    for long in spans.long:
        notes.append(
            f"epoch {long.epoch} spans {long.seconds:.0f} s, records {long.first} to {long.last}, longer than "
            "auditSealSeconds allows: the daemon did not run, or somebody had time to write them"
        )
    if spans.long_count > len(spans.long):
        notes.append(f"{spans.long_count - len(spans.long)} more epochs span too long")
    if spans.back_at is not None:
        times = "once" if spans.back_count == 1 else f"{spans.back_count} times, first"
        notes.append(f"the clock was set back {times} at record {spans.back_at}")
    return notes


def _of_seals(seen: Verification, keys: Sequence[Keys]) -> list[str]:
    last, sealed = seen.last, seen.sealed
    if not seen.seals or last is None:
        return (
            [] if keys else ["not sealed: who can write the files could have made all of it anew"]
        )
    if not keys:
        count = sum(seen.seals.values())
        return [
            f"seals: {count}, not checked, which takes --key; made with key {', '.join(seen.seals)}"
        ]
    if sealed is None:
        return []
    after = _after(seen)
    by = f"epochs {seen.first_epoch} to {sealed.epoch}"
    if len(seen.proving) > 1:
        by = f"{seen.checked} seals of {len(seen.proving)} keys"
    records = "1 record after the seal is" if after == 1 else f"{after} records after the seal are"
    so = "sealed by no key given" if seen.foreign is not None else "not sealed yet"
    return [
        f"sealed up to record {sealed.seq}, of {sealed.timestamp} ({by}); "
        + (f"{records} chained but {so}" if after else "no record after the seal")
    ]


def _summary(seen: Verification) -> dict[str, Any]:
    """What the chain covers, for programs: plain values only."""
    first, last = seen.first, seen.last
    return {
        "records": 0 if first is None or last is None else last.link.seq - first.link.seq + 1,
        "first": None
        if first is None
        else {"seq": first.link.seq, "timestamp": first.link.timestamp},
        "last": None if last is None else {"seq": last.link.seq, "timestamp": last.link.timestamp},
        "head": None if last is None else f"{last.link.seq}:{last.link.hash}",
        "beginsWithTheLog": first is not None and first.link.prev == NOTHING,
        "unchained": seen.unchained,
        "linesAccountedFor": seen.accounted,
        "seals": seen.seals,
        "sealsChecked": seen.checked,
        "longEpochs": [one._asdict() for one in seen.spans.long],
        "clockSetBackAt": seen.spans.back_at,
        "sealed": None if seen.sealed is None else dict(seen.sealed._asdict()),
    }
