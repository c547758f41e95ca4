"""The closed vocabulary of the audit log: every event there is, and the keys its record may have.

Programs match on these words, so one is added, never renamed; ``docs/audit.rst`` says what each means
and a test holds the two together. Nothing here decides when an event is recorded.
"""

from __future__ import annotations

import enum
from typing import Final


class Event(str, enum.Enum):
    """What a record tells of. The part before the dot is what it happened to."""

    #: A client's command, before it is acted upon; refused ones too.
    COMMAND_REQUESTED = "command.requested"
    #: The same command's reply, with the same ``id``.
    COMMAND_COMPLETED = "command.completed"
    #: Commands that were not recorded one by one, with how many they were.
    COMMAND_COUNTED = "command.counted"
    #: A connection was cut: no frame, another protocol, too large, too slow, or not permitted.
    CLIENT_REJECTED = "client.rejected"

    #: taskmasterd serves; everything it found running is re-attached.
    DAEMON_STARTED = "daemon.started"
    #: It was told to end and begins to stop the jobs.
    DAEMON_STOPPING = "daemon.stopping"
    #: The last record of an orderly end. A daemon.started without it before: it was killed.
    DAEMON_STOPPED = "daemon.stopped"
    #: It re-executed itself in place: same pid, no process touched.
    DAEMON_UPGRADED = "daemon.upgraded"
    #: Nothing came of an upgrade; the program that ran goes on.
    DAEMON_UPGRADE_FAILED = "daemon.upgrade_failed"

    #: The port is somebody else's; the Unix socket is served, and the port is tried again.
    LISTENER_FAILED = "listener.failed"
    #: The port that was somebody else's is free and listened on.
    LISTENER_OPENED = "listener.opened"

    #: The configuration directory was read again and what changed was applied.
    CONFIG_RELOADED = "config.reloaded"
    #: The daemon's own file, or the job directory as a whole, cannot be used; what is in force stays.
    CONFIG_REJECTED = "config.rejected"
    #: A job file cannot be used; the definition in force, if any, stays.
    JOBFILE_REJECTED = "jobfile.rejected"

    #: A job is known from now on.
    JOB_ADDED = "job.added"
    #: A job has another definition from now on.
    JOB_CHANGED = "job.changed"
    #: A job is forgotten; it was stopped before.
    JOB_REMOVED = "job.removed"

    #: A watchdog was forked for a job.
    WATCHDOG_LAUNCHED = "watchdog.launched"
    #: A watchdog could not be forked; tried again after ``retryS``.
    WATCHDOG_LAUNCH_FAILED = "watchdog.launch_failed"
    #: A watchdog that had been running is connected again (taskmasterd was restarted).
    WATCHDOG_ATTACHED = "watchdog.attached"
    #: A watchdog died unasked; its processes run on, a replacement comes.
    WATCHDOG_LOST = "watchdog.lost"
    #: A watchdog does not answer; commands to its job fail meanwhile.
    WATCHDOG_UNRESPONSIVE = "watchdog.unresponsive"
    #: A watchdog that did not answer does so again.
    WATCHDOG_RECOVERED = "watchdog.recovered"
    #: A watchdog was killed by taskmasterd, for the reason given.
    WATCHDOG_KILLED = "watchdog.killed"
    #: A watchdog ended as asked: its job was removed, the daemon stops, or it was replaced.
    WATCHDOG_ENDED = "watchdog.ended"

    #: A program was exec'd.
    PROCESS_STARTED = "process.started"
    #: A process counts as RUNNING.
    PROCESS_READY = "process.ready"
    #: A process ended; with ``exitCode`` or ``signal``.
    PROCESS_EXITED = "process.exited"
    #: A process ended and nobody can say how: the kernel does not tell of other people's children.
    PROCESS_UNKNOWN_EXIT = "process.unknown_exit"
    #: A program could not be exec'd: the step that failed and the system's words.
    PROCESS_SPAWN_FAILED = "process.spawn_failed"
    #: A process is started again later.
    PROCESS_BACKOFF = "process.backoff"
    #: Too many failed starts in a row: given up until somebody asks.
    PROCESS_FATAL = "process.fatal"
    #: The stop signal was sent: to the main process, to all, or to what is left of a process.
    PROCESS_STOPPING = "process.stopping"
    #: SIGKILL was sent, because somebody asked or stopTime was over.
    PROCESS_KILLED = "process.killed"
    #: A process and what it has started took more than memoryMax, and were killed for it.
    PROCESS_MEMORY_EXCEEDED = "process.memory_exceeded"
    #: A process that ran already is watched by a new watchdog: same pid, not started again.
    PROCESS_ADOPTED = "process.adopted"
    #: The exit status of a process whose watchdog died was reaped here and given to the replacement.
    PROCESS_HANDED_OVER = "process.handed_over"

    #: Events of one user's processes that were not recorded one by one, with how many they were.
    PROCESS_COUNTED = "process.counted"

    #: What a dead watchdog recorded of a job cannot be used; the job begins anew.
    STATE_REJECTED = "state.rejected"

    #: Something of the state directory was removed by somebody, and is there again.
    STATE_RESTORED = "state.restored"
    #: It cannot be made again for now: what runs is watched, nothing new is started.
    STATE_LOST = "state.lost"

    #: Output of a process could not be kept.
    OUTPUT_DROPPED = "output.dropped"
    #: An output file is over its size and could not be rotated; output goes on in it.
    OUTPUT_ROTATE_FAILED = "output.rotate_failed"

    #: The end of the log was damaged when it was opened; what was found is in the record.
    AUDIT_REPAIRED = "audit.repaired"
    #: The log goes on in a new file; ``seal`` is the last that was made.
    AUDIT_ROTATED = "audit.rotated"
    #: The log's file was moved or deleted by somebody else; a new one was begun.
    AUDIT_REOPENED = "audit.reopened"
    #: Records were dropped while the log could not be written.
    AUDIT_LOST = "audit.lost"
    #: The file is over its size and could not be renamed; it grows on.
    AUDIT_ROTATE_FAILED = "audit.rotate_failed"
    #: A file of the log was deleted, because there are enough of them and it is old enough.
    AUDIT_DROPPED = "audit.dropped"
    #: The disk is full: the log lives on the room that was allocated in advance.
    AUDIT_RESERVE_USED = "audit.reserve_used"
    #: There is room again, and the reserve is whole.
    AUDIT_RESERVE_RESTORED = "audit.reserve_restored"
    #: All before it was sealed, and the sealing key evolved.
    AUDIT_SEALED = "audit.sealed"
    #: The log could not be sealed; tried again with the next epoch's end.
    AUDIT_SEAL_FAILED = "audit.seal_failed"
    #: Records did not reach the second sink; it takes them again.
    AUDIT_SINK_LOST = "audit.sink_lost"


#: Of every record, beside its own. Keys are sorted, ``hash`` is last.
COMMON_KEYS: Final = ("seq", "timestamp", "event", "prev", "hash")

_COMMAND: Final = ("id", "command", "job", "peer", "role", "sha256", "size")
_PROCESS: Final = ("job", "number", "pid")
_WATCHDOG: Final = ("job", "pid")

#: The keys a record of each event may have, beside ``COMMON_KEYS``.
KEYS: Final[dict[Event, tuple[str, ...]]] = {
    Event.COMMAND_REQUESTED: (*_COMMAND, "wait", "force", "reason"),
    Event.COMMAND_COMPLETED: (
        *(*_COMMAND, "outcome", "error", "durationMs"),
        *("before", "after"),
    ),
    Event.COMMAND_COUNTED: (
        *("command", "outcome", "code", "peer", "role", "count", "since", "until"),
    ),
    Event.CLIENT_REJECTED: ("peer", "reason", "count"),
    Event.DAEMON_STARTED: ("pid", "version", "user", "config", "jobs", "listening"),
    Event.DAEMON_STOPPING: ("pid", "reason"),
    Event.DAEMON_STOPPED: ("pid", "uptime"),
    Event.DAEMON_UPGRADED: ("pid", "version", "previousVersion"),
    Event.DAEMON_UPGRADE_FAILED: ("pid", "error"),
    Event.LISTENER_FAILED: ("address", "error"),
    Event.LISTENER_OPENED: ("address",),
    Event.CONFIG_RELOADED: ("reason", "added", "changed", "removed", "rejected"),
    Event.CONFIG_REJECTED: ("file", "error"),
    Event.JOBFILE_REJECTED: ("job", "file", "error"),
    Event.JOB_ADDED: ("job", "sha256", "cause"),
    Event.JOB_CHANGED: ("job", "sha256", "previousSha256", "changed", "restarted", "cause"),
    Event.JOB_REMOVED: ("job", "sha256", "reason", "cause"),
    Event.WATCHDOG_LAUNCHED: (*_WATCHDOG, "relaunches"),
    Event.WATCHDOG_LAUNCH_FAILED: ("job", "error", "relaunches", "retryS"),
    Event.WATCHDOG_ATTACHED: _WATCHDOG,
    Event.WATCHDOG_LOST: (*_WATCHDOG, "exitCode", "signal", "relaunches", "retryS"),
    Event.WATCHDOG_UNRESPONSIVE: (*_WATCHDOG, "silentS"),
    Event.WATCHDOG_RECOVERED: (*_WATCHDOG, "silentS"),
    Event.WATCHDOG_KILLED: (*_WATCHDOG, "reason"),
    Event.WATCHDOG_ENDED: (*_WATCHDOG, "reason"),
    Event.PROCESS_STARTED: (*_PROCESS, "restarts", "cause", "at"),
    Event.PROCESS_READY: (*_PROCESS, "startup", "cause", "at"),
    Event.PROCESS_EXITED: (*_PROCESS, "exitCode", "signal", "uptime", "expected", "cause", "at"),
    Event.PROCESS_UNKNOWN_EXIT: (*_PROCESS, "uptime", "cause", "at"),
    Event.PROCESS_SPAWN_FAILED: ("job", "number", "step", "error", "cause", "at"),
    Event.PROCESS_BACKOFF: ("job", "number", "failures", "retryS", "reason", "cause", "at"),
    Event.PROCESS_FATAL: ("job", "number", "failures", "reason", "cause", "at"),
    Event.PROCESS_STOPPING: (*_PROCESS, "signal", "stopTime", "reason", "cause", "at"),
    Event.PROCESS_KILLED: (*_PROCESS, "reason", "cause", "at"),
    Event.PROCESS_MEMORY_EXCEEDED: (*_PROCESS, "memory", "max", "by", "cause", "at"),
    Event.PROCESS_ADOPTED: (*_PROCESS, "uptime", "cause", "at"),
    Event.PROCESS_HANDED_OVER: (*_PROCESS, "exitCode", "signal"),
    Event.PROCESS_COUNTED: ("what", "user", "job", "count", "since", "until"),
    Event.STATE_REJECTED: ("job", "file", "error", "at"),
    Event.STATE_RESTORED: ("job", "what", "at"),
    Event.STATE_LOST: ("job", "error", "retryS", "at"),
    Event.OUTPUT_DROPPED: ("job", "number", "stream", "bytes", "reason", "at"),
    Event.OUTPUT_ROTATE_FAILED: ("job", "number", "stream", "reason", "at"),
    Event.AUDIT_REPAIRED: ("file", "bytes", "torn", "kept", "skippedBytes", "resumedAfter"),
    Event.AUDIT_ROTATED: ("file", "seal"),
    Event.AUDIT_REOPENED: ("file", "previousInode", "seal"),
    Event.AUDIT_LOST: ("count", "commands", "since", "until"),
    Event.AUDIT_ROTATE_FAILED: ("file", "size", "error"),
    Event.AUDIT_DROPPED: ("file", "firstSeq", "lastSeq", "lastHash", "bytes"),
    Event.AUDIT_RESERVE_USED: ("file", "left", "error"),
    Event.AUDIT_RESERVE_RESTORED: ("file",),
    Event.AUDIT_SEALED: ("epoch", "key", "mac", "sealedSeq", "sealedHash", "sealedAt"),
    Event.AUDIT_SEAL_FAILED: ("file", "error"),
    Event.AUDIT_SINK_LOST: ("sink", "count", "since", "until", "error"),
}
