"""The one user of epoll: descriptors, monotonic timers and signals for daemon and watchdog.

``select.epoll`` and not ``selectors``, whose lists and keys cost a microsecond more each turn.

It never sleeps without a reason to wake: with no timer armed it waits for a descriptor for ever. A
descriptor is removed before it is closed; an event that the same wait reported for a descriptor
removed meanwhile is dropped (a number that is closed and opened again within one turn has driven other
supervisors into endless loops).
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Final

Callback = Callable[[], None]

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
GONE: Final = select.EPOLLRDHUP
#: The kernel has forgotten a descriptor that was closed elsewhere, with all its duplicates.
_CLOSED: Final = frozenset({errno.EBADF, errno.ENOENT})
#: What is told to the reader, and to the writer: an error or a hang-up concerns both.
_TO_READER: Final = ~WRITE
_TO_WRITER: Final = ~READ

#: epoll takes at most 2**31 ms; a timer that is further away costs one idle turn a day.
LONGEST_WAIT_S: Final = 86400.0
#: Cancelled timers are swept out of the heap when they are this many and more than half of it.
_SWEEP_AT: Final = 64
_SIGNAL_BYTES: Final = 4096


class Timer:
    """One armed timer; ``when`` is on the clock of ``time.monotonic``."""

    __slots__ = ("_callback", "_loop", "when")

    def __init__(self, loop: EventLoop, when: float, callback: Callback) -> None:
        self._loop = loop
        self._callback: Callback | None = callback
        self.when = when

    def cancel(self) -> None:
        """The callback will not be called; harmless when it has been."""
        if self._callback is not None:
            self._callback = None
            self._loop.timer_cancelled()

    def fire(self) -> None:
        """Call the callback, once."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    @property
    def armed(self) -> bool:
        """Whether it still is to fire."""
        return self._callback is not None


class Watch:
    """One watched descriptor: what to call when it can be read or written, or its other end is closed."""

    __slots__ = ("fd", "on_gone", "on_read", "on_write")

    def __init__(
        self, fd: int, on_read: Callback | None, on_write: Callback | None, on_gone: Callback | None
    ) -> None:
        self.fd = fd
        self.on_read = on_read
        self.on_write = on_write
        self.on_gone = on_gone


class EventLoop:
    """A single-threaded loop. ``clock`` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled = 0
        self._running = False
        self._signals: dict[int, Callback] = {}
        self._noted: set[int] = set()
        self._wakeup: tuple[int, int] | None = None
        self.after_turn: Callback | None = None
        #: Served before all others that are ready at the same time.
        self.first: Watch | None = None

    # descriptors ------------------------------------------------------------------------------

    def watch(
        self,
        fd: int,
        on_read: Callback | None,
        on_write: Callback | None = None,
        on_gone: Callback | None = None,
    ) -> Watch:
        """Call ``on_read`` / ``on_write`` whenever ``fd`` is ready; at least one of the three.

        ``on_write`` alone also reports a hang-up, which is how the reaping of a pidfd is seen. ``on_gone``, for a
        socket that is not read from: called as long as its peer has closed its end.
        """
        watch = Watch(fd, on_read, on_write, on_gone)
        self._epoll.register(fd, _mask(watch))
        self._watches[fd] = watch
        return watch

    def change(
        self,
        watch: Watch,
        on_read: Callback | None,
        on_write: Callback | None,
        on_gone: Callback | None = None,
    ) -> None:
        """Replace what is called; at least one of them."""
        if watch.on_read is on_read and watch.on_write is on_write and watch.on_gone is on_gone:
            return
        before = _mask(watch)
        watch.on_read, watch.on_write, watch.on_gone = on_read, on_write, on_gone
        if _mask(watch) != before:
            self._epoll.modify(watch.fd, _mask(watch))

    def unwatch(self, watch: Watch) -> None:
        """Stop watching; call before closing the descriptor. Harmless when already done."""
        if watch.fd >= 0:
            del self._watches[watch.fd]
            try:
                self._epoll.unregister(watch.fd)
            except OSError as error:
                if error.errno not in _CLOSED:
                    raise
            watch.fd = -1

    # timers -----------------------------------------------------------------------------------

    def call_in(self, delay_s: float, callback: Callback) -> Timer:
        """Call ``callback`` once, ``delay_s`` seconds from now."""
        return self.call_at(self.now() + delay_s, callback)

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call ``callback`` once, when the clock reads ``when``."""
        timer = Timer(self, when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def timer_cancelled(self) -> None:
        """A timer of this loop was cancelled: sweep when too many dead ones are kept."""
        self._cancelled += 1
        if self._cancelled >= _SWEEP_AT and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].armed]
            heapq.heapify(self._timers)
            self._cancelled = 0

    # signals ----------------------------------------------------------------------------------

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call ``callback`` from the loop, never from the middle of other code, on this signal."""
        if self._wakeup is None:
            read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._wakeup = (read_end, write_end)
            signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            self.watch(read_end, self._read_signals)
        self._signals[number] = callback
        signal.signal(number, self._note)
        signal.siginterrupt(number, False)

    def _read_signals(self) -> None:
        assert self._wakeup is not None
        try:
            numbers = os.read(self._wakeup[0], _SIGNAL_BYTES)
        except BlockingIOError:
            return
        told = set(numbers)
        if len(numbers) == _SIGNAL_BYTES:
            # So many that the pipe may have been full, and some of them without a byte in it.
            told |= self._noted
        self._noted.clear()
        for number in sorted(told):
            callback = self._signals.get(number)
            if callback is not None:
                callback()

    def signals_wait(self) -> bool:
        """Whether a signal has come and its callback has not been called yet."""
        if self._wakeup is None:
            return False
        look = select.poll()
        look.register(self._wakeup[0], select.POLLIN)
        return bool(look.poll(0))

    def _note(self, number: int, frame: object) -> None:
        """A handler must exist for the wake-up descriptor to be written."""
        self._noted.add(number)

    # the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``. After every turn ``after_turn`` is called."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """Return from ``run`` after this turn."""
        self._running = False

    def turn(self) -> None:
        """Wait for one batch of events, serve it, then call ``after_turn``."""
        watches = self._watches
        ready = self._epoll.poll(self._timeout(), len(watches) or 1)
        if len(ready) == 1:
            fd, mask = ready[0]
            _serve(watches[fd], mask)
        else:
            # Looked up before any is served: the number of one that is closed may soon be another's.
            batch = [(watches[fd], mask) for fd, mask in ready]
            if self.first is not None:
                batch.sort(key=lambda one: one[0] is not self.first)
            for watch, mask in batch:
                _serve(watch, mask)
        if self._timers and self._timers[0][0] <= self.now():
            self._fire_timers()
        if self.after_turn is not None:
            self.after_turn()

    def close(self) -> None:
        """Give back the epoll descriptor and the signal pipe; the loop cannot be used afterwards."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for fd in self._wakeup:
                os.close(fd)
            self._wakeup = None
        self._epoll.close()

    def _timeout(self) -> float | None:
        timers = self._timers
        while timers and not timers[0][2].armed:
            heapq.heappop(timers)
            self._cancelled -= 1
        if not timers:
            return None
        # poll rounds up to milliseconds: too early would be a turn for nothing.
        wait_s = timers[0][0] - self.now()
        if wait_s <= 0:
            return 0.0
        return wait_s if wait_s < LONGEST_WAIT_S else LONGEST_WAIT_S

    def _fire_timers(self) -> None:
        now = self.now()
        due = []
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.armed:
                due.append(timer)
            else:
                self._cancelled -= 1
        for timer in due:
            timer.fire()


def _serve(watch: Watch, mask: int) -> None:
    if mask & _TO_READER and watch.fd >= 0:
        if watch.on_read is not None:
            watch.on_read()
        elif watch.on_gone is not None:
            watch.on_gone()
    if mask & _TO_WRITER and watch.fd >= 0 and watch.on_write is not None:
        watch.on_write()


def _mask(watch: Watch) -> int:
    mask = (READ if watch.on_read else 0) | (WRITE if watch.on_write else 0)
    return mask | GONE if watch.on_gone else mask
