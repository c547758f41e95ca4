"""The trial of a new program: its own start, from the configuration to the last constructor, with nothing written.

It has the description of what it would be handed, so it also tells whether it can read that, and whether what the
old program stands on is what it would stand on. It ends with an error exactly where the real start would.
"""

from __future__ import annotations

from taskmaster.config.daemon import DaemonConfig
from taskmaster.control import probes
from taskmaster.control.daemon import Daemon
from taskmaster.control.handover import HandOver
from taskmaster.control.lifetime import identity, listeners, premises
from taskmaster.control.say import Say


def rehearse(config: DaemonConfig, handed: HandOver) -> None:
    """Raises whatever the start would raise."""
    identity.check(config, handed.holdings)
    listeners.check(config, handed.listeners)
    probes.refusals()
    say = Say(0)
    daemon = Daemon(config, handed.limits, handed, premises.looked_at(config, handed, say), say)
    daemon.rehearse()
