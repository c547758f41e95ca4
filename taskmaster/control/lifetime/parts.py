"""The parts of a daemon that its life concerns: what an upgrade hands on, and what an end takes down."""

from __future__ import annotations

from typing import NamedTuple

from taskmaster.config.daemon import DaemonConfig
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.lifetime.premises import Premises
from taskmaster.control.removing import Removing
from taskmaster.control.say import Say
from taskmaster.control.server import Server
from taskmaster.control.supervisor import Supervisor
from taskmaster.eventloop import EventLoop


class Parts(NamedTuple):
    """Made once, by the daemon, and never changed."""

    loop: EventLoop
    config: DaemonConfig
    premises: Premises
    supervisor: Supervisor
    dispatcher: Dispatcher
    removing: Removing
    server: Server
    say: Say
