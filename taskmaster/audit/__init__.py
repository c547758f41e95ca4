"""The audit log: what was asked of taskmasterd, by whom, and what it did; one JSON object a line.

It never holds a secret, and it never stops the daemon: a log that cannot be written says so
(``AuditLog.writable``), and who asks for a change is then refused by the control plane.
"""

from taskmaster.audit.events import KEYS, Event
from taskmaster.audit.examining import examine
from taskmaster.audit.log import AuditLog
from taskmaster.audit.reading import read_records
from taskmaster.audit.rendering import Form
from taskmaster.audit.sink import Sink

__all__ = ["KEYS", "AuditLog", "Event", "Form", "Sink", "examine", "read_records"]
