"""The history of one job's file: every version as its exact bytes, and who, when, why.

A version is three names in its own folder, ``000007-SHA256`` with one of these endings::

    .tm.json        the bytes
    .pending.json   who, when, what for; written before the job file is touched
    .meta.json      the same, renamed to this when the job file has been changed

So a crash leaves either a history that says what happened, or a pending version, of which ``settle``
finds out from the job file whether it came to pass. Everything is on disk (fsync) before the job file
changes, so a full disk is met while nothing has changed. It never touches the job file itself.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from taskmaster.config import keys, trusted
from taskmaster.config.listings import Listings
from taskmaster.errors import FileError

FOLDER: Final = ".history"
#: Versions kept of one job. With files of the usual 1 KB some megabytes; a script that pushes every
#: minute must not fill the disk of a host that supervises something.
KEPT: Final = 1000

_META_BYTES: Final = 65536
_NAME = re.compile(r"((\d{6,12})-([0-9a-f]{64}))\.(tm|meta|pending)\.json", re.ASCII)

Action = Literal["put", "rolled-back", "replaced", "edited", "deleted", "unknown"]


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of a job's file.

    ``action``: ``put``, this was put in force; ``rolled-back``, so was this, from an older version;
    ``edited``, this stood there by other means (an editor) and was put in force by a reload of ``who``;
    ``replaced``, so did this, was never read, and was replaced by ``who``; ``deleted``, this was in
    force when the job was deleted; ``unknown``, what was written about it is damaged. ``when``: UTC,
    ISO 8601. ``size``: bytes.
    """

    number: int
    sha256: str
    size: int
    action: Action
    who: str
    when: str
    reason: str = ""


class _Listing(msgspec.Struct, frozen=True):
    """The stems of one folder by their ending; each stem is ``NUMBER-SHA256``."""

    tm: set[str]
    meta: set[str]
    pending: set[str]

    def stems(self) -> list[str]:
        """Stems of versions that came to pass, oldest first."""
        return sorted(self.tm & self.meta, key=_number)


def sha256(content: bytes) -> str:
    """The name of a content: SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def opened(
    jobs: int, name: str, uid: int, *, create: bool = False, durable: bool = True
) -> Iterator[int | None]:
    """Descriptor of the history folder of job ``name``; None where there is none and not ``create``.

    ``jobs``: descriptor of the job directory. ``durable``: a folder that is made is on disk at once;
    one that is not comes with what is flushed within it. Raises FileError for a folder that is not to
    be trusted, OSError where one cannot be made.
    """
    if create:
        _make(FOLDER, jobs, durable)
    elif not _is_there(FOLDER, jobs):
        yield None
        return
    with trusted.folder(FOLDER, uid, label=FOLDER, inside=jobs) as histories:
        if create:
            _make(name, histories, durable)
        elif not _is_there(name, histories):
            yield None
            return
        label = f"{FOLDER}/{name}"
        with trusted.folder(name, uid, label=label, inside=histories) as fd:
            yield fd


def _make(name: str, inside: int, durable: bool) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=inside)
    except FileExistsError:
        return
    if durable:
        os.fsync(inside)


def _is_there(name: str, inside: int) -> bool:
    try:
        os.stat(name, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def record(fd: int, content: bytes, version: Version) -> Version:
    """Write a pending version, durably, and return it with number, sha256 and size filled in.

    OSError where that failed; what was written of it is taken away again as far as that goes.
    """
    complete = _completed(fd, content, version)
    try:
        write(fd, f"{_stem(complete)}.tm.json", content)
        write(fd, f"{_stem(complete)}.pending.json", msgspec.json.encode(complete))
        os.fsync(fd)
    except OSError:
        abandon(fd, complete)
        raise
    return complete


def note(fd: int, uid: int, content: bytes, version: Version) -> bool:
    """Record, once, what is in force already and was put there by others; whether it did. Raises OSError.

    Not flushed to the disk: nothing waits for it to be there, and a daemon that starts with a thousand
    job files has to serve. What a loss of power leaves of it is shorter than it says, and noted again.
    """
    stems = _listing(fd).stems()
    if stems and _sha(stems[-1]) == sha256(content):
        whole = os.stat(f"{stems[-1]}.tm.json", dir_fd=fd, follow_symlinks=False).st_size
        if whole != len(content):
            os.unlink(f"{stems[-1]}.meta.json", dir_fd=fd)
            os.unlink(f"{stems[-1]}.tm.json", dir_fd=fd)
        elif _meta(fd, stems[-1], uid, "meta").action != "deleted":
            return False
    complete = _completed(fd, content, version)
    write(fd, f"{_stem(complete)}.tm.json", content, durable=False)
    write(fd, f"{_stem(complete)}.meta.json", msgspec.json.encode(complete), durable=False)
    return True


def _completed(fd: int, content: bytes, version: Version) -> Version:
    """The version with number, sha256 and size filled in."""
    listing = _listing(fd)
    used = listing.tm | listing.meta | listing.pending
    return msgspec.structs.replace(
        version,
        number=1 + max((_number(stem) for stem in used), default=0),
        sha256=sha256(content),
        size=len(content),
    )


def write(fd: int, name: str, content: bytes, *, durable: bool = True) -> None:
    """Make a new file of mode 0600 in the folder ``fd``; if ``durable``, on disk at return. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(name, flags, 0o600, dir_fd=fd)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


def confirm(fd: int, version: Version) -> None:
    """The pending version has come to pass. Raises OSError; ``settle`` will then do it later."""
    stem = _stem(version)
    os.rename(f"{stem}.pending.json", f"{stem}.meta.json", src_dir_fd=fd, dst_dir_fd=fd)
    os.fsync(fd)


def abandon(fd: int, version: Version) -> None:
    """The pending version has not come to pass. What cannot be taken away, ``settle`` finds."""
    for ending in ("pending", "tm"):
        try:
            os.unlink(f"{_stem(version)}.{ending}.json", dir_fd=fd)
        except OSError:  # ENOENT, or EROFS and EIO: the disk that made us abandon it
            pass


def settle(fd: int, uid: int, current: str | None) -> None:
    """Decide every pending version by what is in force, and remove what a crash left half written.

    ``current``: sha256 of the job file, None where there is none. Raises OSError.
    """
    listing = _listing(fd)
    for stem in sorted(listing.pending, key=_number):
        version = _meta(fd, stem, uid, "pending")
        came_to_pass = {
            "put": current == version.sha256,
            "rolled-back": current == version.sha256,
            "edited": current == version.sha256,
            "replaced": current != version.sha256,
            "deleted": current is None,
            # Damaged: a crash while it was written, which is before the job file was touched.
            "unknown": False,
        }[version.action]
        if came_to_pass and stem in listing.tm:
            confirm(fd, version)
        else:
            abandon(fd, version)
    for stem in listing.tm - listing.meta - listing.pending:
        os.unlink(f"{stem}.tm.json", dir_fd=fd)
    drop(fd, listing.stems()[:-KEPT])


def drop(fd: int, stems: Sequence[str]) -> None:
    """Remove these versions. Raises OSError."""
    for stem in stems:
        os.unlink(f"{stem}.meta.json", dir_fd=fd)
        os.unlink(f"{stem}.tm.json", dir_fd=fd)


def sizes(fd: int) -> list[tuple[str, int]]:
    """The versions that came to pass, oldest first, each with the bytes of its files. Raises OSError."""
    stems = _listing(fd).stems()
    found = dict.fromkeys(stems, 0)
    with os.scandir(fd) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and match[1] in found:
                found[match[1]] += entry.stat(follow_symlinks=False).st_size
    return list(found.items())


def stems(fd: int) -> list[str]:
    """Stems of versions that came to pass, oldest first. Raises OSError."""
    return _listing(fd).stems()


def versions(
    fd: int,
    uid: int,
    before: int | None = None,
    at_most: int | None = None,
    kept: Listings[Version] | None = None,
) -> list[Version]:
    """The newest ``at_most`` versions, with a number below ``before``, that came to pass, oldest first.

    ``kept``: what was read of late. Raises OSError.
    """
    kept = Listings() if kept is None else kept
    there = kept.stems(fd, stems)
    end = len(there) if before is None else bisect.bisect_left(there, before, key=_number)
    first = 0 if at_most is None else max(end - at_most, 0)
    return [_kept_meta(fd, stem, uid, kept) for stem in there[first:end]]


def _kept_meta(fd: int, stem: str, uid: int, kept: Listings[Version]) -> Version:
    def read(fd: int, stem: str) -> Version | None:
        found = _meta(fd, stem, uid, "meta")
        return None if found.action == "unknown" else found

    return kept.value(fd, stem, read) or _unknown(stem)


def other_than(fd: int, uid: int, current: str | None, kept: Listings[Version]) -> Version | None:
    """The newest version whose sha256 is not ``current``; None where there is none. Raises OSError."""
    for stem in reversed(kept.stems(fd, stems)):
        if _sha(stem) != current:
            return _meta(fd, stem, uid, "meta")
    return None


def latest(fd: int) -> str | None:
    """sha256 of the newest version, None without one. Raises OSError."""
    stems = _listing(fd).stems()
    return _sha(stems[-1]) if stems else None


def content(fd: int, uid: int, which: int | str, label: str, kept: Listings[Version]) -> bytes:
    """The bytes of version number ``which``, or of the newest whose sha256 is or begins with ``which``.

    At least eight digits of the sha256. Raises FileError: no such version, or it is damaged.
    """
    there = kept.stems(fd, stems)
    for stem in reversed(there):
        if which == _number(stem) if isinstance(which, int) else _matches(stem, which):
            data = trusted.read(
                f"{stem}.tm.json", uid, keys.MAX_BYTES, label=f"{label}, version {stem}", inside=fd
            )
            if sha256(data) != _sha(stem):
                raise FileError(
                    f"{label}, version {stem}", "", f"sha256 {sha256(data)}", "what its name says"
                )
            return data
    numbers = f"{_number(there[0])} to {_number(there[-1])}" if there else "none: it has no history"
    raise FileError(label, "", "no such version", numbers)


def _matches(stem: str, digits: str) -> bool:
    return len(digits) >= 8 and _sha(stem).startswith(digits.lower())


def _listing(fd: int) -> _Listing:
    # Two thousand names of a job with all the versions that are kept: a client may ask, the daemon waits.
    listing = _Listing(set(), set(), set())
    add = {"tm": listing.tm.add, "meta": listing.meta.add, "pending": listing.pending.add}
    for match in map(_NAME.fullmatch, os.listdir(fd)):
        if match:
            add[match[4]](match[1])
    return listing


def _meta(fd: int, stem: str, uid: int, ending: str) -> Version:
    name = f"{stem}.{ending}.json"
    try:
        raw = trusted.read(name, uid, _META_BYTES, label=name, inside=fd)
        version = msgspec.json.decode(raw, type=Version)
    except (FileError, msgspec.DecodeError, UnicodeDecodeError):
        version = None
    if version is None or _stem(version) != stem:
        return _unknown(stem)
    return version


def _unknown(stem: str) -> Version:
    """A version of which nothing else can be read; number and sha256 are in the name, and there may be bytes."""
    return Version(_number(stem), _sha(stem), 0, "unknown", "", "")


def _stem(version: Version) -> str:
    return f"{version.number:06d}-{version.sha256}"


def _number(stem: str) -> int:
    return int(stem.partition("-")[0])


def _sha(stem: str) -> str:
    return stem.partition("-")[2]
