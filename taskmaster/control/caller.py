"""What a daemon leaves behind of who started it: descriptors, directory, signals, limits, file mode mask.

Goal: a daemon that was started from a terminal, a deployment script, cron or an init script is the same
daemon. What would not survive the way there is made to: a relative ``-c`` is resolved first, and so is a
locale with another character set than UTF-8, both by executing the program again with what it needs
(``anew``), so that ``ps``, an upgrade and ``taskmasterctl doctor`` see a command line that works anywhere.
(Python fixes the character set of arguments, environment and file names when it starts: there is no other
way to change it.) After that nothing is read from the caller's directory, and it can be removed.

It must never close what the program before this one has handed over: see ``handover``.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

from taskmaster import __file__ as package
from taskmaster import syscalls

#: What the kernel calls the daemon, however it was started.
NAME: Final = "taskmasterd"

#: What the daemon has a use for, or what stops and continues it as whoever sends it means.
_MEANT: Final = frozenset(
    {signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    | {signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT}
)
#: A fault of the program itself: to go on after one is not possible.
_FAULTS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
    | {signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}
)
#: Ignored by the kernel if nobody says otherwise.
_HARMLESS: Final = frozenset({signal.SIGURG, signal.SIGWINCH})
#: All that would end or stop the daemon and that it has no use for: SIGUSR1 and SIGUSR2 of log rotation,
#: SIGALRM of an alarm that the caller had set, SIGTTOU of a terminal that it may not write to, real-time ones.
UNUSED: Final = frozenset(signal.valid_signals()) - _MEANT - _FAULTS - _HARMLESS

#: Soft limits of the caller that would end the daemon, or keep it from writing its log.
_RAISED: Final = (
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_CPU,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
)
Limits = tuple[tuple[int, tuple[int, int]], ...]


def anew(config: Path | None) -> tuple[list[str], dict[str, str]] | None:
    """Command line and environment to execute this program again with; None where it can go on.

    ``config``: what ``-c`` names. Raises OSError where that is relative to a folder that is gone.
    """
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    arguments = sys.argv[1:]
    environment = dict(os.environ)
    changed = False
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        options, changed = ["-X", "utf8", *options], True
    if config is not None and not config.is_absolute():
        # Of several the last one counts, and nothing comes behind a "--".
        arguments = [*(one for one in arguments if one != "--"), "-c", os.path.abspath(config)]
        changed = True
    if sys.modules["__main__"].__spec__ is not None:
        # The package was found in the directory of the caller, or where it is installed.
        root = str(Path(package).parents[1])
        known = environment.get("PYTHONPATH", "").split(os.pathsep)
        if root not in known and sys.path[0] == root:
            environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, known)])
            changed = True
    elif sys.argv[0] not in ("", "-c") and not os.path.isabs(options[-1]):
        options, changed = [*options[:-1], os.path.abspath(options[-1])], True
    return ([sys.executable, *options, *arguments], environment) if changed else None


def forget(kept: Collection[int]) -> None:
    """Let go of descriptors but 0, 1, 2 and those ``kept``, of the directory, and of what signals are to do.

    Signals that are blocked stay so where something was handed over: they wait for the handlers.
    """
    for fd in _open_descriptors():
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # EBADF: the one by which they were listed; EIO: of the caller's disk, and closed
    os.chdir("/")
    os.umask(0o022)
    for number in _HARMLESS | _FAULTS | {signal.SIGCHLD, signal.SIGTSTP}:
        signal.signal(number, signal.SIG_DFL)
    for number in UNUSED:
        signal.signal(number, signal.SIG_IGN)
    if not kept:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    syscalls.set_name(NAME)


def _open_descriptors() -> list[int]:
    # Not up to the limit: a caller may have lowered it since it opened them, and it may be a thousand million.
    return [int(name) for name in os.listdir("/proc/self/fd")]


def raise_limits() -> Limits:
    """Take all that may be had of what a daemon needs; returns what the jobs are to start with."""
    found = []
    for kind in _RAISED:
        soft, hard = resource.getrlimit(kind)
        found.append((kind, (soft, hard)))
        if soft != hard:
            resource.setrlimit(kind, (hard, hard))
    return tuple(found)
