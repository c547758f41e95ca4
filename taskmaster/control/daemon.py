"""The daemon put together, from its start to its end: orderly, leaving its jobs, or as its own successor.

``_turn_over`` is the order of everything: what watchdogs said is on record before they are told so, what
clients asked is on record before it is done.
"""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable

from msgspec import structs

from taskmaster import __version__, syscalls
from taskmaster.audit import AuditLog, Event, Sink
from taskmaster.audit.sink import SOCKETS
from taskmaster.config import tls
from taskmaster.config.daemon import DaemonConfig
from taskmaster.config.store import JobStore
from taskmaster.control.access import Access
from taskmaster.control.commands import Commands
from taskmaster.control.definitions import Change, Definitions
from taskmaster.control.directory import Directory
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.exchange import Exchange
from taskmaster.control.gate import Gate
from taskmaster.control.handover import Asked, HandedSession, HandOver
from taskmaster.control.jobfolder import JobFolder
from taskmaster.control.peers import user_name
from taskmaster.control.proofs import Proofs
from taskmaster.control.quota import Quotas
from taskmaster.control.rejections import Rejections
from taskmaster.control.review import Review
from taskmaster.control.say import Say
from taskmaster.control.server import Server
from taskmaster.control.statedir import StateDirectory
from taskmaster.control.status import timestamp
from taskmaster.control.stops import Stops
from taskmaster.control.supervisor import Supervisor
from taskmaster.control.upgrade import Upgrade, took_s
from taskmaster.errors import FileError
from taskmaster.eventloop import EventLoop, Timer
from taskmaster.stream import dismiss
from taskmaster.wire import replies
from taskmaster.wire.queries import Command
from taskmaster.wire.replies import Reply

#: On top of the longest stopTime: for watchdogs that have to be replaced before they can be told.
_END_GRACE_S = 20.0
#: How long a new program waits for all watchdogs to be found again before it goes on with its clients.
_HEARD_S = 2.0


class Daemon:
    """taskmasterd. Raises TaskmasterError where it cannot start.

    ``limits``: rlimits for the jobs. ``handed``: what the program before this one, in the same process, has
    handed over.
    """

    def __init__(
        self,
        config: DaemonConfig,
        limits: tuple[tuple[int, tuple[int, int]], ...],
        handed: HandOver | None = None,
    ) -> None:
        self._config = config
        self._limits = limits
        self._handed = handed
        self._began = time.monotonic()
        self._status = 0
        self._ending: Timer | None = None
        self._told_at_the_end: list[Exchange] = []
        self._statedir = StateDirectory(
            config.state_directory, None if handed is None else handed.lock
        )
        self._say = Say(config.verbosity)
        _make_log_folder(config)
        sink = None if config.audit_sink is None else self._sink(config.audit_sink)
        self._audit = AuditLog(
            config.audit_file,
            max_bytes=config.audit_max_bytes,
            backups=config.audit_backups,
            seal=config.audit_seal_file,
            sink=sink,
        )
        store = JobStore(config.config_directory, os.geteuid())
        self._loop = EventLoop()
        self._proofs = Proofs(
            self._loop,
            self._audit,
            self._say,
            seal_s=config.audit_seal_s,
            anchor_s=config.audit_anchor_s,
            heads=self._sink(config.audit_sink or "syslog"),
            sink=sink,
        )
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
            self._supervisor,
            store,
            Stops(config.config_directory),
            config.base,
            self._audit,
            self._say,
        )
        self._rejections = Rejections(self._loop, self._audit, self._say.connection)
        quotas = Quotas(
            self._loop.now,
            rate=config.commands_per_second,
            burst=config.commands_burst,
            max_connections=config.max_clients_per_user,
        )
        gate = Gate(push_enabled=config.push_enabled, reasons=config.require_reason)
        self._dispatcher = Dispatcher(self._audit, self._say, self._rejections, gate, quotas)
        self._review = Review(self._audit)
        self._directory = Directory(self._supervisor, self._definitions, store, self._audit)
        self._commands = Commands(
            self._supervisor,
            self._definitions,
            self._directory,
            self._review,
            config.secret_pattern,
        )
        self._commands.install(self._dispatcher)
        JobFolder(self._loop, str(config.config_directory), self._commands.board)
        self._upgrade = Upgrade(
            self._loop,
            self._supervisor,
            self._dispatcher,
            self._audit,
            self._say,
            self._collect,
            lambda handed: self._take_over(handed, upgraded=False),
        )
        self._dispatcher.handlers[Command.UPGRADE] = self._upgrade.ask
        self._dispatcher.handlers[Command.SHUTDOWN] = self._shut_down
        self._server = Server(
            self._loop,
            self._dispatcher,
            self._say,
            max_clients=config.max_clients,
            max_frame_bytes=config.max_frame_bytes,
            access=Access(
                config.access, os.geteuid(), insecure_remote=config.allow_insecure_remote
            ),
            quotas=quotas,
            idle_timeout_s=config.idle_timeout_s,
            tls=self._secured(),
        )

    def _sink(self, kind: str) -> Sink:
        path = self._config.audit_sink_socket or SOCKETS[kind]
        return Sink(kind, str(path), lambda: timestamp(time.time()), self._say.error)

    def start(self) -> None:
        """Listen, read the jobs, bring their watchdogs up. Raises TaskmasterError."""
        handed = self._handed
        if handed is None:
            self._listen()
        loop = self._loop
        loop.on_signal(signal.SIGCHLD, self._supervisor.reaper.collect)
        loop.on_signal(signal.SIGHUP, self._hung_up)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, self._told_to_end(number))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.after_turn = self._turn_over
        if handed is not None:
            self._supervisor.reaper.know(handed.reaped)
        self._definitions.load()
        if handed is not None:
            self._supervisor.orphans.know(handed.inherited)
            self._supervisor.take_over(handed.held)
        if handed is not None:
            self._go_on(handed)
        else:
            self._tell_of_start()
        self._supervisor.reaper.collect()
        self._supervisor.silence.look_for_stopped()
        self._audit.flush(durable=True)
        self._proofs.begin()

    def _secured(self) -> ssl.SSLContext | None:
        """What TLS connections are secured with. Raises FileError."""
        named = self._config.tls
        if named is None:
            return None
        return tls.context(named, os.geteuid(), str(self._config.file))

    def _say_where(self) -> None:
        jobs = len(self._supervisor.jobs)
        self._say.connection(
            f"serving {jobs} job{'s' if jobs != 1 else ''} on {' and '.join(self._server.addresses)}"
        )

    def _tell_of_start(self) -> None:
        self._audit.record(
            Event.DAEMON_STARTED,
            pid=os.getpid(),
            version=__version__,
            user=user_name(os.geteuid()) or str(os.geteuid()),
            config=None if self._config.file is None else str(self._config.file),
            jobs=len(self._supervisor.jobs),
            listening=self._server.addresses,
        )
        self._say_where()

    def _listen(self) -> None:
        config = self._config
        if config.port is not None:
            self._server.listen_tcp(config.port, remote=config.remote_connections)
        if config.socket is not None:
            self._server.listen_unix(config.socket, config.socket_mode)

    def run(self) -> int:
        """Serve until the orderly end; the exit status."""
        self._loop.run()
        return self._status

    def _turn_over(self) -> None:
        self._dispatcher.turn_over()
        if self._review.turn_over(self._dispatcher.held):
            self._dispatcher.turn_over()
        self._commands.turn_over()
        # A watchdog that retires waits until all that it told is on record. At the end of the daemon what
        # cannot be written has to do with being in line.
        if self._audit.flush(durable=False) or self._ending is not None:
            self._supervisor.acknowledge()
        self._upgrade.turn_over()
        self._proofs.turn_over()

    # signals --------------------------------------------------------------------------------------

    def _hung_up(self) -> None:
        self._proofs.look()

        def done(reply: Reply) -> None:
            if reply.error:
                self._say.error(f"SIGHUP: {reply.error}")

        self._read_certificates()
        if self._ending is None:
            self._directory.reload("SIGHUP", Change("SIGHUP"), done)

    def _read_certificates(self) -> None:
        """Those that are on the disk now are for connections from now on; broken ones change nothing."""
        try:
            secured = self._secured()
        except FileError as error:
            self._audit.record(Event.CONFIG_REJECTED, file=error.file, error=str(error))
            self._say.error(f"SIGHUP: {error}; those in force stay")
            return
        if secured is not None:
            self._server.secure(secured)

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

    # upgrade --------------------------------------------------------------------------------------

    def _collect(self, exchange: Exchange) -> HandOver:
        """Let go of everything that the next program goes on with."""
        self._rejections.flush()
        self._audit.close()
        listeners = self._server.hand_over()
        sessions: list[HandedSession] = []
        asked = None
        for session in list(self._dispatcher.sessions):
            asking = exchange in session.unanswered()
            query = exchange.query
            codes = query is not None and query.codes
            reply = replies.success().frame(exchange.query_id, with_code=codes) if asking else b""
            connection = session.hand_over(reply)
            self._dispatcher.sessions.discard(session)
            if connection is None:
                continue
            if asking:
                asked = Asked(
                    len(sessions),
                    exchange.query_id.decode("utf-8", "replace"),
                    exchange.id,
                    took_s(exchange),
                    codes,
                )
            fd, received, unsent, last = connection
            sessions.append(HandedSession(fd, session.peer, received, unsent, last))
        return HandOver(
            version=__version__,
            lock=self._statedir.lock,
            limits=self._limits,
            listeners=tuple(listeners),
            sessions=tuple(sessions),
            reaped=self._supervisor.statuses(),
            inherited=self._supervisor.orphans.known(),
            held=self._supervisor.hand_over(),
            asked=asked,
            waiting=self._server.let_go(),
        )

    def _take_over(self, handed: HandOver, *, upgraded: bool = True) -> None:
        """Go on with listeners and clients: of the program before, or after an exec that failed."""
        for listener in handed.listeners:
            self._server.take_over(listener)
        kept = [one for one in handed.sessions if one.last is None]
        sessions = [self._server.serve(one.fd, one.peer) for one in kept]
        for session, one in zip(sessions, kept, strict=True):
            session.take_over(one.received, one.unsent)
        for one in handed.sessions:
            if one.last is not None:
                dismiss(self._loop, one.fd, one.unsent + (one.last if upgraded else b""))
        for connection in handed.waiting:
            self._server.take_in(connection)

    def _go_on(self, handed: HandOver) -> None:
        """This program is the new one: take over, say so, and have the watchdogs replaced too."""
        asked = handed.asked
        if asked is not None and handed.sessions[asked.session].last is None:
            # Its reply goes out before what the same client has asked since.
            one = handed.sessions[asked.session]
            reply = replies.success().frame(asked.query_id.encode(), with_code=asked.codes)
            sessions = list(handed.sessions)
            sessions[asked.session] = structs.replace(one, unsent=one.unsent + reply)
            handed = structs.replace(handed, sessions=tuple(sessions))
        self._audit.record(
            Event.DAEMON_UPGRADED,
            pid=os.getpid(),
            version=__version__,
            previousVersion=handed.version,
        )
        if asked is not None:
            self._audit.record(
                Event.COMMAND_COMPLETED,
                id=asked.exchange,
                command=Command.UPGRADE.value,
                job=None,
                outcome=replies.SUCCESS,
                durationMs=round((time.monotonic() - self._began + asked.took_s) * 1000, 3),
            )
        self._audit.flush(durable=True)

        def go_on() -> None:
            self._take_over(handed)
            self._say_where()
            self._supervisor.replacing.replace_all()

        # Clients are kept waiting, not turned away, until there is something to tell them.
        self._supervisor.when_heard(go_on, _HEARD_S)

    # the end --------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Stop every job, then leave."""
        self._say.connection(f"{reason}: stopping all jobs")
        self._audit.record(Event.DAEMON_STOPPING, pid=os.getpid(), reason=reason)
        self._dispatcher.closing = "taskmasterd is stopping"
        self._supervisor.closing = "taskmasterd is stopping; what was begun is not waited for."
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
            job.refuse_all("taskmasterd is stopping; this was not begun.")
            self._supervisor.retire(job, "the daemon stops", gone(job.name))
        if not jobs:
            self._leave()

    def _shut_down(self, exchange: Exchange) -> None:
        """The command ``shutdown``: as SIGTERM, or the daemon alone."""
        query = exchange.query
        assert query is not None
        reason = f"shutdown by {exchange.peer.who()}"
        if not query.leave_jobs:
            if query.wait_s is None:
                exchange.done(replies.success())
            else:
                self._told_at_the_end.append(exchange)
            self._loop.call_in(0, lambda: self._end(reason) if self._ending is None else None)
            return
        exchange.done(replies.success())

        def leave() -> None:
            if self._ending is None:
                self._audit.record(
                    Event.DAEMON_STOPPING, pid=os.getpid(), reason=f"{reason}, leaving the jobs"
                )
                self._leave()

        # The reply goes out with the end of this turn; this is the next one.
        self._loop.call_in(0, leave)

    def _out_of_time(self) -> None:
        running = sorted(
            name for name, job in self._supervisor.jobs.items() if job.spec is not None
        )
        text = (
            f"not stopped in time, left as they are: {', '.join(running[:20])}; "
            "the next taskmasterd takes them over"
        )
        self._say.error(text)
        for exchange in self._told_at_the_end:
            exchange.done(replies.fail(text))
        self._status = 1
        self._leave()

    def _leave(self) -> None:
        for exchange in self._told_at_the_end:
            exchange.done(replies.success())
        self._rejections.flush()
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
        self._proofs.end()
        self._audit.close()
        self._loop.stop()


def _make_log_folder(config: DaemonConfig) -> None:
    for folder in {config.log_directory, config.audit_file.parent}:
        try:
            os.makedirs(folder, 0o750, exist_ok=True)
        except OSError as error:
            raise FileError(
                "logDirectory", str(folder), error.strerror or "", "a folder, or room to make one"
            ) from None
