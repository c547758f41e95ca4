"""The control plane's end of the link to one watchdog, and the requests that are on it.

A request outlives the watchdog it was sent to: what was not answered is asked again of the replacement,
which finds in the record how far its predecessor got. Only ``restart`` is not: done twice it is another
thing. Each request has a deadline until it is taken up (Begun); after that it takes what it takes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

from taskmaster.errors import InvalidQuery
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.stream import Stream
from taskmaster.wire import link
from taskmaster.wire.frames import LinkFrames
from taskmaster.wire.link import Act, Begun, Done, Retire, ToControl, ToWatchdog

NAME: Final = "link.sock"
#: A watchdog that is stopped while more than this waits for it is cut off and replaced.
_MAX_OUTBOUND: Final = 8 * 1024 * 1024

#: Told: outcome (success, redundant, fail) and the error.
OnDone = Callable[[str, str], None]


def _nobody(outcome: str, error: str) -> None:
    """Nobody waits for it."""


class Request:
    """One request: its message, whom to tell, and whether it was taken up."""

    __slots__ = ("agreed", "begun", "message", "number", "on_done", "patient", "sent", "timer")

    def __init__(self, number: int, message: ToWatchdog, on_done: OnDone | None) -> None:
        self.number = number
        #: Nobody waits for it, the daemon wants it of itself: late or not, it is to be done.
        self.patient = on_done is None
        self.message = message
        self.on_done = on_done if on_done is not None else _nobody
        self.begun = False
        self.sent = False
        #: Of Retire: nothing of the job is left but the watchdog, which is about to end.
        self.agreed = False
        self.timer: Timer | None = None

    @property
    def repeatable(self) -> bool:
        """Whether asking a second watchdog is the same as asking one."""
        return not (self.sent and isinstance(self.message, Act) and self.message.verb == "restart")


class Requests:
    """The requests to the watchdogs of one job, whichever of them answers.

    ``on_late`` is told of a request that was not taken up by its deadline, before it fails.
    """

    def __init__(
        self, loop: EventLoop, deadline_s: float, on_late: Callable[[Request], str]
    ) -> None:
        self._loop = loop
        self._deadline_s = deadline_s
        self._on_late = on_late
        # A watchdog may still have an answer for the daemon before this one: no number may be both's.
        self._next = int.from_bytes(os.urandom(6), "big")
        self._waiting: dict[int, Request] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits for the watchdog."""
        return bool(self._waiting)

    def add(self, make: Callable[[int], ToWatchdog], on_done: OnDone | None) -> Request:
        """A new request; ``make`` gets its number. Without an ``on_done`` it has no deadline."""
        number = self._next
        self._next += 1
        request = Request(number, make(number), on_done)
        self._waiting[number] = request
        self._start_timer(request)
        return request

    def waiting(self) -> list[Request]:
        """All that have no outcome yet, in the order in which they were asked."""
        return list(self._waiting.values())

    def begun(self, message: Begun) -> None:
        """The watchdog took one up."""
        request = self._waiting.get(message.id)
        if request is not None:
            request.begun = True
            self._stop_timer(request)

    def done(self, message: Done) -> None:
        """The watchdog has the outcome of one; unknown numbers are late or made up, and ignored."""
        request = self._waiting.get(message.id)
        if (
            request is not None
            and isinstance(request.message, Retire)
            and message.outcome != "fail"
        ):
            request.agreed = True  # it is done when the watchdog has ended
            return
        outcome = message.outcome if message.outcome in ("success", "redundant") else "fail"
        self.finish(message.id, outcome, message.error)

    def finish(self, number: int, outcome: str, error: str) -> None:
        """One has its outcome."""
        request = self._waiting.pop(number, None)
        if request is not None:
            self._stop_timer(request)
            request.on_done(outcome, error)

    def fail_all(self, error: str) -> None:
        """None of them can have an outcome any more."""
        for request in self.waiting():
            self.finish(request.number, "fail", error)

    def interrupted(self) -> None:
        """The watchdog is gone: what cannot be asked again fails, the rest waits for the replacement."""
        for request in self.waiting():
            if not request.repeatable:
                self.finish(
                    request.number,
                    "fail",
                    "its watchdog died over it, how far it got is not known; status tells where the job is",
                )
            elif request.begun:
                request.begun = False
                self._start_timer(request)

    def _start_timer(self, request: Request) -> None:
        request.timer = self._loop.call_in(self._deadline_s, lambda: self._late(request))

    def _late(self, request: Request) -> None:
        why = self._on_late(request)
        if request.patient:
            # The launch of hundreds of watchdogs, or one that hangs, may take any time.
            self._start_timer(request)
        else:
            self.finish(request.number, "fail", why)

    def _stop_timer(self, request: Request) -> None:
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None


class Link:
    """One connection to one watchdog. ``on_message`` gets what it says, ``on_closed`` the reason of the end."""

    def __init__(
        self,
        loop: EventLoop,
        fd: int,
        on_message: Callable[[ToControl], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._on_message = on_message
        self._stream = Stream(
            loop,
            fd,
            LinkFrames(),
            on_frame=self._frame,
            on_broken=self._broken,
            on_closed=on_closed,
            max_outbound=_MAX_OUTBOUND,
        )

    def send(self, message: ToWatchdog) -> None:
        """Send a message; a link that is over takes it and forgets it."""
        self._stream.send(link.encode(message))

    def close(self, reason: str) -> None:
        """End the connection."""
        self._stream.close(reason)

    def finish(self) -> None:
        """The other end is dead: deliver what it had sent, then close."""
        self._stream.read_out()

    def _frame(self, frame: bytes) -> None:
        self._on_message(link.decode_for_control(frame))

    def _broken(self, error: InvalidQuery) -> None:
        self._stream.close(f"it sent what cannot be understood: {error}")


def find(directory: int) -> socket.socket | None:
    """A connection to the watchdog that waits in this job's state directory; None where none does.

    Raises OSError (EMFILE, ENFILE, EAGAIN where it does not accept).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{NAME}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError:
        connection.close()
        raise
    return connection
