"""The daemon put together, from its start to its orderly end.

``after turn`` is the order of everything: what watchdogs said is on record before they are told so, what
clients asked is on record before it is done.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from taskmaster import __version__, syscalls
from taskmaster.audit import AuditLog, Event
from taskmaster.config.daemon import DaemonConfig
from taskmaster.config.store import JobStore
from taskmaster.control.commands import Commands
from taskmaster.control.definitions import Definitions
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.peers import user_name
from taskmaster.control.say import Say
from taskmaster.control.server import Server
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.supervisor import Supervisor
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.wire.replies import Reply

#: On top of the longest stopTime: for watchdogs that have to be replaced before they can be told.
_END_GRACE_S = 20.0


class Daemon:
    """taskmasterd. Raises TaskmasterError where it cannot start; ``limits``: rlimits for the jobs."""

    def __init__(
        self, config: DaemonConfig, limits: tuple[tuple[int, tuple[int, int]], ...]
    ) -> None:
        self._config = config
        self._began = time.monotonic()
        self._status = 0
        self._ending: Timer | None = None
        self._statedir = StateDirectory(config.state_directory)
        self._say = Say(config.verbosity)
        _make_log_folder(config)
        self._audit = AuditLog(
            config.audit_file, max_bytes=config.audit_max_bytes, backups=config.audit_backups
        )
        store = JobStore(config.config_directory, os.geteuid())
        self._loop = EventLoop()
        syscalls.become_subreaper()
        self._supervisor = Supervisor(
            self._loop,
            self._statedir,
            self._audit,
            self._say,
            logs=config.log_directory,
            limits=limits,
            deadline_s=config.command_deadline_s,
            watchdog_timeout_s=config.watchdog_timeout_s,
            wall_clock=time.time,
        )
        self._definitions = Definitions(
            self._supervisor, store, config.base, self._audit, self._say
        )
        self._dispatcher = Dispatcher(self._audit, self._say)
        Commands(self._supervisor, self._definitions).install(self._dispatcher)
        self._server = Server(
            self._loop,
            self._dispatcher,
            self._say,
            max_clients=config.max_clients,
            max_frame_bytes=config.max_frame_bytes,
        )

    def start(self) -> None:
        """Listen, read the jobs, bring their watchdogs up. Raises TaskmasterError."""
        config = self._config
        if config.port is not None:
            self._server.listen_tcp(config.port, remote=config.remote_connections)
        if config.socket is not None:
            self._server.listen_unix(config.socket)
        loop = self._loop
        loop.on_signal(signal.SIGCHLD, self._supervisor.reaper.collect)
        loop.on_signal(signal.SIGHUP, self._hung_up)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, self._told_to_end(number))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.after_turn = self._turn_over
        self._definitions.load()
        self._audit.record(
            Event.DAEMON_STARTED,
            pid=os.getpid(),
            version=__version__,
            user=user_name(os.geteuid()) or str(os.geteuid()),
            config=None if config.file is None else str(config.file),
            jobs=len(self._supervisor.jobs),
            listening=self._server.addresses,
        )
        self._audit.flush(durable=True)
        jobs = len(self._supervisor.jobs)
        self._say.connection(
            f"serving {jobs} job{'s' if jobs != 1 else ''} on {' and '.join(self._server.addresses)}"
        )

    def run(self) -> int:
        """Serve until the orderly end; the exit status."""
        self._loop.run()
        return self._status

    def _turn_over(self) -> None:
        self._dispatcher.turn_over()
        if self._audit.flush(durable=False):
            self._supervisor.acknowledge()

    # signals --------------------------------------------------------------------------------------

    def _hung_up(self) -> None:
        def done(reply: Reply) -> None:
            if reply.error:
                self._say.error(f"SIGHUP: {reply.error}")

        if self._ending is None:
            self._definitions.reload_all("SIGHUP", done)

    def _told_to_end(self, number: signal.Signals) -> Callable[[], None]:
        def told() -> None:
            if self._ending is None:
                self._end(number.name)
            else:
                self._say.error(f"{number.name} again: SIGKILL to what still runs")
                for job in list(self._supervisor.jobs.values()):
                    if job.spec is not None:
                        self._supervisor.act(job, "kill", lambda outcome, error: None)

        return told

    # the end --------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Stop every job, then leave."""
        self._say.connection(f"{reason}: stopping all jobs")
        self._audit.record(Event.DAEMON_STOPPING, pid=os.getpid(), reason=reason)
        self._dispatcher.closing = "taskmasterd is stopping"
        jobs = [job for job in self._supervisor.jobs.values() if job.spec is not None]
        longest_s = max((job.spec.stop_time_s for job in jobs if job.spec is not None), default=0.0)
        self._ending = self._loop.call_in(longest_s + _END_GRACE_S, self._out_of_time)
        left = {job.name for job in jobs}

        def gone(name: str) -> Callable[[str, str], None]:
            def done(outcome: str, error: str) -> None:
                job = self._supervisor.jobs.get(name)
                if outcome == "fail" and job is not None and name in left:
                    # Its watchdog was hung or dead: the replacement is asked again.
                    self._say.error(f"job {name}: {error}")
                    self._supervisor.retire(job, "the daemon stops", gone(name))
                    return
                left.discard(name)
                if job is not None:
                    self._supervisor.forget(job)
                if not left:
                    self._leave()

            return done

        for job in jobs:
            job.queue.clear()
            self._supervisor.retire(job, "the daemon stops", gone(job.name))
        if not jobs:
            self._leave()

    def _out_of_time(self) -> None:
        running = sorted(
            name for name, job in self._supervisor.jobs.items() if job.spec is not None
        )
        self._say.error(
            f"not stopped in time, left as they are: {', '.join(running[:20])}; "
            "the next taskmasterd takes them over"
        )
        self._status = 1
        self._leave()

    def _leave(self) -> None:
        uptime_s = round(time.monotonic() - self._began, 3)
        self._audit.record(Event.DAEMON_STOPPED, pid=os.getpid(), uptime=uptime_s)
        self._server.stop_listening()
        self._dispatcher.turn_over()
        for session in list(self._dispatcher.sessions):
            session.close("the daemon ends")
        if self._config.socket is not None:
            try:
                os.unlink(self._config.socket)
            except OSError:
                pass  # removed by somebody else
        self._audit.close()
        self._loop.stop()


def _make_log_folder(config: DaemonConfig) -> None:
    from taskmaster.errors import FileError

    for folder in {config.log_directory, config.audit_file.parent}:
        try:
            os.makedirs(folder, 0o750, exist_ok=True)
        except OSError as error:
            raise FileError(
                "logDirectory", str(folder), error.strerror or "", "a folder, or room to make one"
            ) from None
