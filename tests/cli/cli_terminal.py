"""taskmasterctl on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

from cli_servers import DEADLINE_S, command_line, environment


class Terminal:
    """A process on a pseudo-terminal of its own; ``seen`` is what it has shown so far."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._fd, slave = pty.openpty()
        self.seen = ""
        self._ahead = ""  # shown, but not waited for yet
        self.process = subprocess.Popen(
            command_line(*arguments),
            env=environment(**{"TERM": "xterm"} | env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str | None) -> str:
        """Read on until ``text`` is shown, or to the end; returns what was shown up to there."""
        deadline = time.monotonic() + DEADLINE_S
        fresh, self._ahead = self._ahead, ""
        while text is None or text not in fresh:
            ready = select.select([self._fd], [], [], deadline - time.monotonic())[0]
            assert ready, f"not shown: {text!r}; shown: {fresh!r}"
            try:
                chunk = os.read(self._fd, 65536)
            except OSError:  # EIO: the last process on the terminal is gone
                assert text is None, f"not shown: {text!r}; shown: {fresh!r}"
                break
            fresh += chunk.decode()
        if text is not None:
            fresh, _, self._ahead = fresh.partition(text)
            fresh += text
        self.seen += fresh
        return fresh

    def end(self) -> int:
        self.wait_for(None)
        return self.process.wait(DEADLINE_S)
