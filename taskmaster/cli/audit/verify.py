"""``taskmasterctl audit verify``: whether the log is as it was written, in words; needs no taskmasterd."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Sequence
from typing import Any

from taskmaster.cli import screen
from taskmaster.cli.audit import logfiles
from taskmaster.errors import FileError, InvalidQuery
from taskmaster.evidence.anomaly import Finding
from taskmaster.evidence.seals import Keys, MistypedKey, read_key
from taskmaster.evidence.verification import Verification, summary

EXIT_NOT_AS_WRITTEN = 1
_HEAD = re.compile(r"([1-9][0-9]{0,15}):([0-9a-fA-F]{64})", re.ASCII)
_KEY_FILE_BYTES = 4096


def run(
    files: Sequence[str],
    *,
    key: str | None,
    key_file: str | None,
    heads: Sequence[str],
    as_json: bool,
) -> int:
    """Verify ``files``, the daemon's own log without any; returns the exit status.

    Raises InvalidQuery for a head or key that cannot be one, FileError for a file that cannot be read.
    """
    keys = _keys(key, key_file)
    wanted = dict(_head(text) for text in heads)
    if not files:
        from taskmaster.cli.audit import where

        files = [str(where.log_path())]
    opened = logfiles.open_all([os.path.normpath(file) for file in files])
    gc.enable()  # taskmasterctl begins without it; this may take a while
    seen = Verification(keys, wanted)
    torn = _read(opened, seen)
    finding = seen.finding()
    paths = [one.path for one in opened]
    document = _document(seen, finding, paths, torn)
    unproved = "" if finding is not None else _unproved(seen, keys)
    if as_json:
        screen.out_json(document | ({"unproved": unproved} if unproved else {}))
    else:
        _tell(seen, finding, paths, torn=torn, keys=keys, unproved=unproved)
    return EXIT_NOT_AS_WRITTEN if finding is not None or unproved else 0


def _keys(key: str | None, key_file: str | None) -> Keys | None:
    if key is not None and key_file is not None:
        raise InvalidQuery("--key and --key-file: give one of them")
    source = "--key"
    if key_file is not None:
        source = f"--key-file {key_file}"
        try:
            with open(key_file, "rb") as file:
                key = file.read(_KEY_FILE_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise FileError(key_file, "", str(error.strerror), "a file with the key") from None
    if key is None:
        return None
    try:
        return Keys(read_key(key))
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
                    if one is opened[-1] and not line.endswith(b"\n") and one.file.read(1) == b"":
                        return f"{path} line {number}"
                    feed(line, path, number)
            except OSError as error:
                raise FileError(
                    path, "", f"that it cannot be read ({error.strerror})", "a log"
                ) from None
    return ""


def _unproved(seen: Verification, keys: Keys | None) -> str:
    if keys is None or seen.checked:
        return ""
    others = ", ".join(seen.seals)
    made = f"the seals here are of key {others}" if others else "no seal is in these files"
    return f"the key given (it is called {keys.name}) proves nothing: {made}"


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
        **summary(seen),
    }


def _tell(
    seen: Verification,
    finding: Finding | None,
    paths: Sequence[str],
    *,
    torn: str,
    keys: Keys | None,
    unproved: str,
) -> None:
    first, last = seen.first, seen.last
    if finding is not None:
        where = f"{finding.place}: " if finding.place.file else ""
        screen.complain(f"{where}{finding.text}")
    said = []
    if last is not None and first is not None:
        count = last.link.seq - first.link.seq + 1
        good = "good" if finding is None else "good up to there"
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
    if torn:
        notes.append(
            f"{torn} has no end: it is being written, or its writer was killed; not counted"
        )
    return notes


def _of_seals(seen: Verification, keys: Keys | None) -> list[str]:
    last, sealed = seen.last, seen.sealed
    if not seen.seals or last is None:
        return (
            []
            if keys is not None
            else ["not sealed: who can write the files could have made all of it anew"]
        )
    if keys is None:
        count = sum(seen.seals.values())
        return [
            f"seals: {count}, not checked, which takes --key; made with key {', '.join(seen.seals)}"
        ]
    if sealed is None:
        return []
    after = last.link.seq - sealed.seq - 1  # the seal itself is one more
    said = (
        f"sealed up to record {sealed.seq}, of {sealed.timestamp} (epochs {seen.first_epoch} to "
        f"{sealed.epoch})"
    )
    if after > 0:
        records = "record after the seal is" if after == 1 else "records after the seal are"
        said += f"; {after} {records} chained but not sealed yet"
    return [said]
