"""The job directory on disk: reading job files, and replacing them so that no crash leaves half of one.

The folder is opened and its owner and mode checked for each operation, so that one that was replaced or
opened up meanwhile is noticed. The folder and job files may be links, judged by every folder on the way; what is
pushed takes the place of a link, and what that leads to stays as it is. It never looks into a job file
(``jobfile`` does), and never changes a job file before its previous version is durable in the history.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from taskmaster.config import history, keys, kinds, trusted
from taskmaster.config.history import Action, Version
from taskmaster.config.keeping import Keeping
from taskmaster.config.listings import Listings, is_young
from taskmaster.core import names
from taskmaster.errors import Conflict, FileError

#: Names of the temporary files of ``put``; a dot in front keeps them out of ``names``.
_TEMPORARY: Final = (".put-", ".tmp")
#: Characters of ``who`` and ``reason`` that the history keeps.
_MAX_NOTE: Final = 1024

#: Job files whose sha256 is remembered.
_HASHES: Final = 1024

Stamp = tuple[int, int, int, int]


def _utc() -> datetime:
    return datetime.now(timezone.utc)


class JobStore:
    """The job files in ``directory``, for a daemon of user ``uid``; ``clock`` gives the time in UTC.

    A missing directory is made, mode 0700. Raises FileError for one that cannot be had, or that others
    may write to. What a crash left is cleaned up, where the directory can be written to. ``read_only``: nothing
    is made and nothing cleaned up. ``history_max_bytes``: what all histories may take, 0 for any.
    """

    def __init__(
        self,
        directory: Path,
        uid: int,
        *,
        clock: Callable[[], datetime] = _utc,
        read_only: bool = False,
        history_max_bytes: int = 0,
    ) -> None:
        self._keeping = Keeping(uid, history_max_bytes)
        self.directory = directory
        self._uid = uid
        self._clock = clock
        self._kept: Listings[Version] = Listings()
        self._hashes: dict[str, tuple[Stamp, str]] = {}
        if read_only:
            with self._folder():
                return
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as error:  # EACCES, EROFS, ENOTDIR, EEXIST of something else
            raise FileError(
                str(directory), "", error.strerror or str(error), "a folder, or room to make one"
            ) from None
        with self._folder() as folder:
            self._clean_up(folder)

    def names(self) -> tuple[list[str], list[FileError]]:
        """Names of the jobs that have a file, sorted, and a FileError for each file with a bad name.

        Raises FileError where the directory cannot be read: that is not the same as no jobs, and must
        not stop any. A file that cannot be read is named all the same; ``read`` then says why.
        """
        found: list[str] = []
        bad: list[FileError] = []
        for entry in sorted(self._listed()):
            if not entry.endswith(names.FILE_SUFFIX) or entry.startswith("."):
                continue
            name = entry[: -len(names.FILE_SUFFIX)]
            if names.is_valid(name):
                found.append(name)
            else:
                label = kinds.printable(entry)
                accepted = (
                    'NAME.tm.json, NAME of 1 to 64 letters (A to Z), digits, ".", "_", "-", '
                    "first a letter or digit"
                )
                bad.append(FileError(label, "", "a name that no job can have", accepted))
        return sorted(found), bad

    def is_gone(self) -> bool:
        """Whether there is no such directory at the moment; it may be a mount that is not there."""
        return not os.path.lexists(self.directory)

    def _listed(self) -> list[str]:
        with self._folder() as folder:
            try:
                return os.listdir(folder)
            except OSError as error:  # EIO, ESTALE: the disk's own troubles
                raise self._unreadable(error) from None

    def read(self, name: str) -> bytes:
        """The exact bytes of the job's file. Raises FileError, InvalidJobName."""
        file = names.checked(name) + names.FILE_SUFFIX
        with self._folder() as folder:
            return self._read(folder, file)

    def stamp(self, name: str) -> Stamp | None:
        """What tells one state of the file from another: inode, mtime and ctime in ns, size.

        As (inode, mtime, size, ctime); None where there is no file. Raises FileError, InvalidJobName.
        """
        file = names.checked(name) + names.FILE_SUFFIX
        with self._folder() as folder:
            try:
                status = os.stat(file, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    status = self._led_to(file, folder, status)
            except FileNotFoundError:
                return None
            except OSError as error:  # EIO, ESTALE: the disk's own troubles
                raise self._unreadable(error) from None
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns

    def settled_stamp(self, name: str) -> Stamp | None:
        """The stamp of the job's file where it tells for certain whether this is what was read before: None for a
        link, whose way may be another, and for what has just changed. Raises as ``stamp``."""
        file = names.checked(name) + names.FILE_SUFFIX
        with self._folder() as folder:
            try:
                status = os.stat(file, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return None
            except OSError as error:  # EIO, ESTALE: the disk's own troubles
                raise self._unreadable(error) from None
        if not stat.S_ISREG(status.st_mode) or is_young(status):
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns

    def _led_to(self, file: str, folder: int, link: os.stat_result) -> os.stat_result:
        try:
            return os.stat(file, dir_fd=folder)
        except OSError:
            return link  # ENOENT, ELOOP, EACCES: it leads to nothing, which ``read`` says

    def put(
        self,
        name: str,
        data: bytes,
        *,
        who: str,
        reason: str = "",
        action: Action = "put",
        if_hash: str | None = None,
    ) -> str:
        """Put ``data`` in force as the job's file, atomically and durably; returns its sha256.

        ``who``, ``reason`` and ``action`` go into the history. The same bytes again change nothing.
        ``if_hash``: the sha256 that the file has to have now, "" for no file, None for any. Raises
        FileError (too large; the present file or its history is not to be trusted), InvalidJobName,
        Conflict, and OSError (ENOSPC, EDQUOT, EROFS, EIO ...) that says what was tried and which file
        is in force.
        """
        file = names.checked(name) + names.FILE_SUFFIX
        if len(data) > keys.MAX_BYTES:
            raise FileError(file, "", f"{len(data)} bytes", f"at most {keys.MAX_BYTES} bytes")
        with self._folder() as folder, self._saving(file) as step:
            old = self._current(folder, file)
            self._check(folder, name, old, if_hash)
            if old == data:
                return history.sha256(data)
            step.append("writing its history")
            with history.opened(folder, name, self._uid, create=True) as past:
                assert past is not None
                pending = self._pending(past, old, data, who, reason, action)
                try:
                    step.append("writing the new file")
                    self._replace(folder, file, data, step)
                except OSError:
                    if step[-1] != "making the new file durable":
                        _abandon(past, pending)
                    raise
                _confirm(past, pending)
                self._keep(folder, name, past, deleted=False)
        return history.sha256(data)

    def remove(self, name: str, *, who: str, reason: str = "") -> None:
        """Remove the job's file, durably; its bytes stay in the history. No file: nothing to do.

        Raises as ``put`` does.
        """
        file = names.checked(name) + names.FILE_SUFFIX
        with self._folder() as folder, self._saving(file) as step:
            old = self._current(folder, file)
            if old is None:
                return
            step.append("writing its history")
            with history.opened(folder, name, self._uid, create=True) as past:
                assert past is not None
                history.settle(past, self._uid, history.sha256(old))
                version = history.record(past, old, self._version("deleted", who, reason))
                try:
                    step.append("removing it")
                    os.unlink(file, dir_fd=folder)
                except OSError:
                    history.abandon(past, version)
                    raise
                step.append("making its removal durable")
                os.fsync(folder)
                _confirm(past, [version])
                self._keep(folder, name, past, deleted=True)

    def _check(self, folder: int, name: str, old: bytes | None, if_hash: str | None) -> None:
        """Raises Conflict where the file is another than ``if_hash`` says."""
        found = "" if old is None else history.sha256(old)
        if if_hash is None or if_hash == found:
            return
        file = name + names.FILE_SUFFIX
        with history.opened(folder, name, self._uid) as past:
            kept = [] if past is None else history.versions(past, self._uid, None, 1)
        last = kept[-1] if kept else None
        if last is not None and last.action == "deleted" and not found:
            how = f"; deleted by {last.who} at {last.when}"
        elif last is not None and last.sha256 == found:
            how = (
                f"; since {last.when}, by {last.who or 'nobody knows whom'}, version {last.number}"
            )
        else:
            how = "; by other means than taskmasterd" if found else ""
        now = f"its sha256 is {found}{how}" if found else f"there is none{how}"
        wanted = f"its sha256 was to be {if_hash}" if if_hash else "there was to be none"
        raise Conflict(f"{file} is another by now: {now}; {wanted}. Nothing was changed.")

    def note(self, name: str, data: bytes, *, who: str, reason: str = "") -> None:
        """``data`` is in force as the job's file, whoever wrote it: have it in the history as well.

        Raises FileError, InvalidJobName, OSError; the job is none the worse for it.
        """
        names.checked(name)
        with (
            self._folder() as folder,
            history.opened(folder, name, self._uid, create=True, durable=False) as past,
        ):
            assert past is not None
            if history.note(past, self._uid, data, self._version("edited", who, reason)):
                self._keep(folder, name, past, deleted=False)

    def history(
        self, name: str, before: int | None = None, at_most: int | None = None
    ) -> list[Version]:
        """Versions of the job's file, oldest first: the newest ``at_most`` below number ``before``.

        Raises FileError, InvalidJobName.
        """
        names.checked(name)
        with self._folder() as folder:
            try:
                with history.opened(folder, name, self._uid) as past:
                    if past is None:
                        return []
                    return history.versions(past, self._uid, before, at_most, self._kept)
            except OSError as error:  # EACCES, EIO
                raise self._unreadable(error) from None

    def sha256(self, name: str) -> str | None:
        """sha256 of the job's file; None without one. Raises FileError, InvalidJobName."""
        file = names.checked(name) + names.FILE_SUFFIX
        stamp = self.settled_stamp(name)
        kept = self._hashes.get(name)
        if stamp is not None and kept is not None and kept[0] == stamp:
            return kept[1]
        with self._folder() as folder:
            data = self._current(folder, file)
        if data is None:
            return None
        found = history.sha256(data)
        if stamp is not None:
            if len(self._hashes) >= _HASHES:
                self._hashes.clear()
            self._hashes[name] = stamp, found
        return found

    def version_before(self, name: str) -> Version | None:
        """The newest version that is not what the file is now; None without one.

        Raises FileError, InvalidJobName.
        """
        current = self.sha256(name)
        with self._folder() as folder:
            try:
                with history.opened(folder, name, self._uid) as past:
                    return (
                        None
                        if past is None
                        else history.other_than(past, self._uid, current, self._kept)
                    )
            except OSError as error:  # EACCES, EIO
                raise self._unreadable(error) from None

    def version(self, name: str, which: int | str) -> bytes:
        """The exact bytes of one version, by its number or its sha256 (or eight or more digits of it).

        Raises FileError: no such version, or it is damaged; InvalidJobName.
        """
        file = names.checked(name) + names.FILE_SUFFIX
        with self._folder() as folder:
            try:
                with history.opened(folder, name, self._uid) as past:
                    if past is not None:
                        return history.content(past, self._uid, which, file, self._kept)
            except OSError as error:  # EACCES, EIO
                raise self._unreadable(error) from None
        raise FileError(file, "", "no such version", "none: it has no history")

    def _keep(self, folder: int, name: str, past: int, *, deleted: bool) -> None:
        """A history has grown: remove what is over the limits."""
        try:
            self._keeping.look(past, name, deleted=deleted)
        except OSError:  # EIO, EMFILE: the change itself is done; the next one looks again
            return
        self._keeping.prune(folder)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[int]:
        directory = str(self.directory)
        with trusted.folder(directory, self._uid, label=directory, linked=True) as fd:
            yield fd

    def _unreadable(self, error: OSError) -> FileError:
        words = error.strerror or str(error)
        return FileError(str(self.directory), "", words, "a folder that can be read")

    def _read(self, folder: int, file: str) -> bytes:
        return trusted.read(file, self._uid, keys.MAX_BYTES, label=file, inside=folder, linked=True)

    def _current(self, folder: int, file: str) -> bytes | None:
        try:
            os.stat(file, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self._read(folder, file)

    @contextlib.contextmanager
    def _saving(self, file: str) -> Iterator[list[str]]:
        step = ["reading the present file"]
        try:
            yield step
        except OSError as error:  # ENOSPC, EDQUOT, EROFS, EIO, EACCES: named, and passed on
            in_force = {
                "making the new file durable": "the new file is in force, but may not outlast a crash",
                "making its removal durable": "it is removed, but may be back after a crash",
            }.get(step[-1], "the old state stays in force")
            words = f"{error.strerror}, {step[-1]} ({in_force})"
            raise OSError(error.errno, words, str(self.directory / file)) from None

    def _pending(
        self, past: int, old: bytes | None, data: bytes, who: str, reason: str, action: Action
    ) -> list[Version]:
        history.settle(past, self._uid, None if old is None else history.sha256(old))
        pending = []
        if old is not None and history.latest(past) != history.sha256(old):
            replaced = self._version("replaced", who, reason)
            pending.append(history.record(past, old, replaced))
        try:
            pending.append(history.record(past, data, self._version(action, who, reason)))
        except OSError:
            _abandon(past, pending)
            raise
        return pending

    def _version(self, action: Action, who: str, reason: str) -> Version:
        when = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return Version(0, "", 0, action, _note(who), when, _note(reason))

    def _replace(self, folder: int, file: str, data: bytes, step: list[str]) -> None:
        temporary = os.urandom(8).hex().join(_TEMPORARY)
        try:
            history.write(folder, temporary, data)
            os.replace(temporary, file, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            _unlink(temporary, folder)
            raise
        step.append("making the new file durable")
        os.fsync(folder)

    def _clean_up(self, folder: int) -> None:
        """Remove temporary files and settle histories, unless this is not ours to write to."""
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True):
            return
        try:
            for entry in os.listdir(folder):
                if entry.startswith(_TEMPORARY[0]) and entry.endswith(_TEMPORARY[1]):
                    _unlink(entry, folder)
            for name in self._with_history(folder):
                self._settle(folder, name)
            self._keeping.prune(folder)
        except OSError as error:  # EACCES, EROFS, EIO
            raise self._unreadable(error) from None

    def _with_history(self, folder: int) -> list[str]:
        try:
            os.stat(history.FOLDER, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return []
        with trusted.folder(
            history.FOLDER, self._uid, label=history.FOLDER, inside=folder
        ) as histories:
            return [name for name in os.listdir(histories) if names.is_valid(name)]

    def _settle(self, folder: int, name: str) -> None:
        try:
            old = self._current(folder, name + names.FILE_SUFFIX)
        except FileError:
            return  # it is reported when it is read; what is pending can wait for a readable file
        with history.opened(folder, name, self._uid) as past:
            if past is not None:
                history.settle(past, self._uid, None if old is None else history.sha256(old))
                self._keeping.look(past, name, deleted=old is None)


def _confirm(past: int, pending: list[Version]) -> None:
    try:
        for version in pending:
            history.confirm(past, version)
    except (
        OSError
    ):  # EIO, EROFS: the change itself is done and durable; ``settle`` confirms it later
        pass


def _abandon(past: int, pending: list[Version]) -> None:
    for version in pending:
        history.abandon(past, version)


def _note(text: str) -> str:
    # Half surrogates, from an undecodable user name, cannot be encoded.
    return text[:_MAX_NOTE].encode("utf-8", "replace").decode("utf-8")


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except (
        OSError
    ):  # ENOENT, or EROFS and EIO: a file that nobody reads stays; the next start tries again
        pass
