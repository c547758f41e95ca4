"""Which job writes to which file: an output file has one writer, and none of the daemon's own files is one.

Two pumps that rotate the same file would take it away from each other. The same file may be named by many paths
(links, ``//``, ``..``, a folder mounted twice, a hard link), so files are told apart by what the kernel says:
the folder that a path leads to and the name in it, and the file itself where there is one. That is looked up
for absolute paths alone: a relative one is in the job's own log folder, and in the way of nobody but a job whose
absolute path leads there.

It reads folders and files of others only with ``stat``, and never opens one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from taskmaster.config import outputnames
from taskmaster.config.daemon import DaemonConfig
from taskmaster.control import filekeys, messages
from taskmaster.control.filekeys import Key
from taskmaster.core import names
from taskmaster.core.spec import INHERITED, JobSpec, output_path
from taskmaster.errors import FileError

#: How long what was looked up about the files of other jobs is believed, seconds. A start reads all jobs at once.
_BELIEVED_S: Final = 5.0


class _Job(Protocol):
    """What is asked of a job."""

    spec: JobSpec | None


class _Claim(msgspec.Struct, frozen=True):
    """A job's output file. ``alone``: nobody else may write to it."""

    spec: JobSpec
    stream: str
    path: str
    alone: bool


class _Folder(msgspec.Struct, frozen=True):
    """What a path of a folder leads to. ``own``: why no output may be in it, empty where it may; ``files``: names
    in it that are taken, and by what."""

    real: str
    identity: tuple[int, int] | None
    own: str
    files: tuple[tuple[str, str], ...]


class Outputs:
    """Output files of ``jobs``, for a daemon of this configuration. ``has_file``: whether a job is still there,
    or about to be forgotten."""

    def __init__(
        self, config: DaemonConfig, jobs: Mapping[str, _Job], has_file: Callable[[str], bool]
    ) -> None:
        self._logs = os.path.realpath(config.log_directory / "jobs")
        self._messages = messages.path_of(config)
        self._own = tuple(filekeys.own_files(config))
        self._jobs = jobs
        self._has_file = has_file
        self._claims: dict[Key, list[_Claim]] = {}
        #: Files whose names end as generations do, by what would be rotated to that.
        self._numbered: dict[Key, list[_Claim]] = {}
        self._known: dict[str, JobSpec] = {}
        self._folders: dict[str, _Folder] = {}
        self._own_files: dict[Key, str] = {}
        self._looked_at = -_BELIEVED_S

    def check(self, spec: JobSpec) -> None:
        """Raises FileError where an output of this definition is the file of somebody else."""
        file = spec.job + names.FILE_SUFFIX
        self._check_inherited(file, spec)
        self._look()
        if not self._claims and not _has_absolute(spec):
            return
        mine: dict[Key, _Claim] = {}
        for claim in _claims(spec):
            called = list(self._names(spec.job, claim.path))
            path = str(called[0][0])
            if filekeys.is_stream(path):
                continue
            keys = [*called, *filekeys.file_key(path)]
            self._check_own(file, claim, keys)
            for key in keys:
                self._check_pair(file, claim, mine.setdefault(key, claim))
            for other in self._others(self._claims, keys, spec.job):
                self._check_pair(file, claim, other)
            self._check_generations(file, claim, called)
            if claim.path.startswith("/") and path.startswith(f"{self._logs}/"):
                self._check_folder_of(file, claim, path[len(self._logs) + 1 :])

    def _check_folder_of(self, file: str, claim: _Claim, path: str) -> None:
        """``path``, in the log folder of a job: none of its relative outputs may be that."""
        name, _, below = path.partition("/")
        job = self._jobs.get(name)
        if name == claim.spec.job or job is None or job.spec is None or not self._has_file(name):
            return
        base, number = _generation(below)
        for other in _claims(job.spec):
            rotated, other_number = _generation(other.path)
            if other.path == below:
                self._check_pair(file, claim, other)
            elif other.alone and other.path == base and number <= job.spec.log_backups:
                self._refuse_generation(file, claim, other, other.path)
            elif claim.alone and rotated == below and other_number <= claim.spec.log_backups:
                self._refuse_generation(file, claim, other, claim.path)

    def _check_pair(self, file: str, claim: _Claim, other: _Claim) -> None:
        if other is claim or not (claim.alone or other.alone):
            return
        if other.spec.job == claim.spec.job:
            whose, accepted = f"the file of its {other.stream} too", "another file"
        else:
            whose = f"the file of {other.stream} of job {other.spec.job}"
            accepted = "a file of its own, or logMaxBytes 0 for both"
        raise FileError(file, claim.stream, f"{claim.path}, which is {whose}", accepted)

    def _check_generations(self, file: str, claim: _Claim, called: list[Key]) -> None:
        """What rotation makes of a file is taken, too."""
        base, number = _generation(claim.path)
        job = claim.spec.job
        rotated = self._names(job, base) if number else ()
        for other in self._others(self._claims, rotated, job):
            if other.alone and number <= other.spec.log_backups:
                self._refuse_generation(file, claim, other, other.path)
        for other in self._others(self._numbered, called, job):
            if claim.alone and _generation(other.path)[1] <= claim.spec.log_backups:
                self._refuse_generation(file, claim, other, claim.path)

    def _refuse_generation(self, file: str, claim: _Claim, other: _Claim, path: str) -> None:
        whose = f"{other.stream} of job {other.spec.job}"
        found = f"{claim.path}, where rotation of {path} gets in the way of {whose}"
        raise FileError(file, claim.stream, found, "another name, or logMaxBytes 0")

    def _others(
        self, known: Mapping[Key, list[_Claim]], keys: Iterable[Key], job: str
    ) -> Iterator[_Claim]:
        for key in keys:
            for claim in known.get(key, ()):
                name = claim.spec.job
                if name != job and self._in_force(claim.spec) and self._has_file(name):
                    yield claim

    def _in_force(self, spec: JobSpec) -> bool:
        job = self._jobs.get(spec.job)
        return job is not None and (job.spec is spec or job.spec == spec)

    # what is known of the others -------------------------------------------------------------------

    def _look(self) -> None:
        """Know the absolute outputs of all jobs that are in force, and the daemon's files."""
        now = time.monotonic()
        if now - self._looked_at >= _BELIEVED_S:
            self._claims, self._numbered, self._known, self._folders = {}, {}, {}, {}
            self._looked_at = now
            self._own_files = {
                key: own.what
                for own in self._own
                if not own.is_folder
                for key in filekeys.file_key(own.path)
            }
            for number in INHERITED.values():
                self._own_files |= dict.fromkeys(
                    filekeys.file_key(number), "where the output of taskmasterd itself goes"
                )
        known = self._known
        for name, job in self._jobs.items():
            spec = job.spec
            if spec is None or known.get(name) is spec:
                continue
            known[name] = spec
            if _has_absolute(spec):
                self._know(spec)

    def _know(self, spec: JobSpec) -> None:
        for claim in _claims(spec):
            if not claim.path.startswith("/"):
                continue
            called = list(self._names(spec.job, claim.path))
            for key in (*called, *filekeys.file_key(str(called[0][0]))):
                self._claims.setdefault(key, []).append(claim)
            base, number = _generation(claim.path)
            for key in self._names(spec.job, base) if number else ():
                self._numbered.setdefault(key, []).append(claim)

    def _names(self, job: str, path: str) -> Iterator[Key]:
        """What the name of a file is told by, whether there is such a file or not; first the whole path."""
        if not path.startswith("/"):
            yield (f"{self._logs}/{job}/{path}",)
            return
        place, name = os.path.split(path)
        folder = self._folder(place)
        yield (f"{folder.real}/{name}",)
        if folder.identity is not None:
            yield (*folder.identity, name)

    def _folder(self, path: str) -> _Folder:
        found = self._folders.get(path)
        if found is None:
            real = os.path.realpath(path)
            own = next(
                (own.what for own in self._own if own.is_folder and filekeys.is_in(real, own)), ""
            )
            taken = [
                (os.path.basename(own.path), own.what)
                for own in self._own
                if not own.is_folder and filekeys.same(real, os.path.dirname(own.path))
            ]
            if os.path.dirname(real) == self._logs:
                taken.append((names.CRASH_FILE, "where a watchdog leaves the reason of a crash"))
            found = self._folders[path] = _Folder(real, filekeys.identity(real), own, tuple(taken))
        return found

    # the daemon's own ------------------------------------------------------------------------------

    def _check_inherited(self, file: str, spec: JobSpec) -> None:
        for stream in ("stdout", "stderr"):
            number = INHERITED.get(output_path(spec, stream, 0) or "")
            if number is not None and messages.leads_to(number, self._messages):
                found = f"the output of taskmasterd, which goes to {self._messages} (--detach)"
                raise FileError(file, stream, found, "a file, or null")

    def _check_own(self, file: str, claim: _Claim, keys: Iterable[Key]) -> None:
        what = next((self._own_files[key] for key in keys if key in self._own_files), "")
        if claim.path.startswith("/"):
            place, name = os.path.split(claim.path)
            folder = self._folder(place)
            what = what or folder.own
            for taken, whose in folder.files:
                base, _, number = name.rpartition(".")
                if name == taken or (base == taken and number.isdigit()):
                    what = what or whose
        if what:
            accepted = "a file that is not taskmasterd's own"
            raise FileError(file, claim.stream, f"{claim.path}, which is {what}", accepted)


def _has_absolute(spec: JobSpec) -> bool:
    return any(
        path is not None and path.startswith("/") and path not in INHERITED
        for path in (spec.stdout, spec.stderr)
    )


def _claims(spec: JobSpec) -> Iterator[_Claim]:
    for stream, path in outputnames.outputs(spec):
        yield _Claim(spec, stream, path, spec.log_max_bytes > 0)


def _generation(path: str) -> tuple[str, int]:
    """Of ``NAME.7``: NAME and 7; 0 where it is no name that rotation makes."""
    base, _, number = path.rpartition(".")
    is_one = base and number.isascii() and number.isdigit() and number[0] != "0"
    return (base, int(number)) if is_one and len(number) < 5 else ("", 0)
