"""``taskmasterctl audit keygen``: a sealing key for the daemon, and a verification key for a drawer."""

from __future__ import annotations

import errno
import os
import secrets

from taskmaster.cli import screen
from taskmaster.errors import FileError, TaskmasterError
from taskmaster.evidence import sealstate
from taskmaster.evidence.seals import SEED_BYTES, key_name, written_key

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_WORDS = """\
sealing key {name}: {path}
It is taskmasterd's alone and changes with every seal; do not copy it.

verification key, shown this once and kept nowhere:

    {key}

Write it down and keep it away from this host. Who has it can check every seal, and make any; without it
nobody can. To check: taskmasterctl audit verify --key-file FILE, or --key KEY.
taskmasterd seals from its next start on, or from SIGHUP on if it runs."""


def run(path: str | None, *, force: bool, as_json: bool) -> int:
    """Make the sealing key at ``path``, where the daemon looks for it without; returns the exit status.

    Raises TaskmasterError where there is one already, FileError where none can be written.
    """
    if path is None:
        from taskmaster.cli.audit import where

        path = where.seal_path()
    seed = secrets.token_bytes(SEED_BYTES)
    data = sealstate.encode(sealstate.begin(seed))
    if force:
        _replace(path, data)
    else:
        try:
            _make(path, data)
        except FileExistsError:
            raise TaskmasterError(
                f"{path} is there already; nothing was made. With another key, seals go on from 0, and what the "
                "old one proves needs the old verification key: --force replaces it"
            ) from None
    if as_json:
        screen.out_json({"file": path, "name": key_name(seed), "key": written_key(seed)})
    else:
        text = _WORDS.format(path=screen.escape(path), name=key_name(seed), key=written_key(seed))
        screen.out(text)
    return 0


def _make(path: str, data: bytes) -> None:
    """A new file, mode 0600, on the disk; nothing stays of one that could not be written."""
    try:
        fd = os.open(path, _FLAGS, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise
    except OSError as error:
        found = f"that it cannot be written ({error.strerror})"
        accepted = "a name for a new file, in a folder that you can write to"
        raise FileError(path, "", found, accepted) from None


def _replace(path: str, data: bytes) -> None:
    """The same in the place of what is there, whose content is overwritten."""
    new = f"{path}.{secrets.token_hex(8)}"
    _make(new, data)
    try:
        old = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        old = -1
    except OSError as error:
        os.unlink(new)
        raise FileError(path, "", str(error.strerror), "a sealing key to replace") from None
    try:
        os.rename(new, path)
        if old >= 0:
            os.pwrite(old, bytes(min(os.fstat(old).st_size, sealstate.MAX_BYTES)), 0)
            os.fsync(old)
    except OSError as error:
        raise FileError(path, "", str(error.strerror), "a sealing key to replace") from None
    finally:
        if old >= 0:
            os.close(old)
