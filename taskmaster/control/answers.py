"""What an operation on jobs answers, whenever it is done: one reply, to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable

from taskmaster.errors import TaskmasterError
from taskmaster.wire import replies
from taskmaster.wire.replies import Reply

Done = Callable[[Reply], None]


def refusing(done: Done) -> Callable[[str], None]:
    """What answers, with the reason it gets, that nothing was begun."""
    return lambda why: done(replies.fail(why))


def failed(error: TaskmasterError | OSError, then: str = "") -> Reply:
    """The reply for an error; ``then``: what is so all the same."""
    if isinstance(error, TaskmasterError):
        return replies.fail(f"{error}{then}", error.code)
    return replies.fail(f"{error.filename}: {error.strerror}{then}")
