"""``taskmasterctl --shell``: reads command lines and runs each; no failure ends it.

Knows neither click nor the wire: it is given what runs a line and what names the jobs.
"""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from taskmaster.cli import screen
from taskmaster.cli.main import EXIT_INTERRUPTED
from taskmaster.errors import TaskmasterError

PROMPT = "taskmaster> "
EXIT_USAGE = 2
MAX_LINE_CHARACTERS = 1024 * 1024
_OWN = ("help", "exit", "quit")
_JOBLESS = ("push", "list", "shutdown", "upgrade", "doctor", "audit", "help", "exit", "quit")


class Shell:
    """The loop. ``run`` takes a line's words and returns its exit status."""

    def __init__(
        self,
        run: Callable[[list[str]], int],
        job_names: Callable[[], list[str]],
        commands: Sequence[str],
    ) -> None:
        self._run = run
        self._job_names = job_names
        self._commands = commands
        self._matches: list[str] = []
        self._jobs: list[str] | None = None  # for one line: Tab asks the daemon once

    def loop(self) -> int:
        """Read until the end; 0 from a terminal, else the status of the last command that failed."""
        gc.enable()  # main.py disables it for the sake of single commands
        if sys.stdin is None:
            return 0
        if sys.stdin.isatty() and screen.is_terminal():
            self._interactive()
            return 0
        return self._script(sys.stdin)

    def _script(self, lines: TextIO) -> int:
        last_failure = 0
        for line in iter(lambda: lines.readline(MAX_LINE_CHARACTERS), ""):
            status = self.run_line(line)
            if status is None:
                break
            if status == EXIT_INTERRUPTED:
                return status
            last_failure = status or last_failure
        return last_failure

    def _interactive(self) -> None:
        self._set_up_readline()
        while True:
            try:
                self._jobs = None
                line = input(PROMPT)
            except EOFError:
                screen.out("")
                return
            except KeyboardInterrupt:  # the line is given up, as in any shell
                screen.out("")
                continue
            if self.run_line(line) is None:
                return

    def run_line(self, line: str) -> int | None:
        """Run one line; its exit status, or None where it ends the shell."""
        try:
            if "\0" in line:
                raise ValueError("a NUL character")
            words = shlex.split(line, comments=True)
        except ValueError as error:
            screen.complain(f"cannot read the line: {error}")
            return EXIT_USAGE
        if not words:
            return 0
        if words[0] in ("exit", "quit"):
            return None
        if words[0] == "help":
            if not words[1:]:
                screen.out(f"In this shell also: {', '.join(_OWN)}.\n")
            words = [*words[1:], "--help"]
        return self._run(words)

    def _set_up_readline(self) -> None:
        try:
            import readline
        except ImportError:  # a Python built without it: plain lines
            return
        readline.set_completer(self._complete)
        readline.set_completer_delims(" \t")
        # macOS and some distributions link libedit, which has its own key names.
        edit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if edit else "tab: complete")

    def _complete(self, text: str, number: int) -> str | None:
        import readline

        if number == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()].split()
            self._matches = [word + " " for word in self.candidates(before, text)]
        return self._matches[number] if number < len(self._matches) else None

    def candidates(self, before: Sequence[str], text: str) -> list[str]:
        """What ``text`` may become after the words ``before`` it."""
        if not before or before == ["help"]:
            words = [*self._commands, *_OWN]
        elif before[0] == "push":
            return _paths(text)
        elif before[0] in _JOBLESS or text.startswith("-"):
            return []
        else:
            words = self._known_jobs()
        return [word for word in words if word.startswith(text)]

    def _known_jobs(self) -> list[str]:
        if self._jobs is None:
            try:
                names = self._job_names()
            except TaskmasterError:  # no daemon now: the command itself will say so
                names = []
            # readline puts these into the line as they are: nothing that a terminal acts upon.
            self._jobs = [n for n in names if n.isascii() and n.isprintable() and " " not in n]
        return self._jobs


def _paths(text: str) -> list[str]:
    from glob import escape, glob

    return sorted(path for path in glob(escape(text) + "*") if path.isprintable())
