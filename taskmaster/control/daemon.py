"""The daemon put together, from its start to its end: orderly, leaving its jobs, or as its own successor.

``_turn_over`` is the order of everything: what watchdogs said is on record before they are told so, what
clients asked is on record before it is done.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterable

from taskmaster import __version__, syscalls
from taskmaster.audit import Event
from taskmaster.config import jobfile, tls
from taskmaster.config.daemon import DaemonConfig
from taskmaster.control.access import Access
from taskmaster.control.allotment import Allotments
from taskmaster.control.churn import Churn
from taskmaster.control.commands import Commands
from taskmaster.control.definitions import Change, Definitions
from taskmaster.control.directory import Directory
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.gate import Gate
from taskmaster.control.handover import HandOver, OldProgram
from taskmaster.control.jobfolder import JobFolder
from taskmaster.control.lifetime import listeners
from taskmaster.control.lifetime.arrival import Arrival
from taskmaster.control.lifetime.ending import Ending
from taskmaster.control.lifetime.handing import Handing
from taskmaster.control.lifetime.life import Life
from taskmaster.control.lifetime.parts import Parts
from taskmaster.control.lifetime.premises import Premises
from taskmaster.control.lifetime.upgrade import Upgrade
from taskmaster.control.outputs import Outputs
from taskmaster.control.peers import user_name
from taskmaster.control.port import Port
from taskmaster.control.probes import Refused
from taskmaster.control.proofs import Proofs
from taskmaster.control.recording import Recording
from taskmaster.control.rejections import Rejections
from taskmaster.control.removals import Removals
from taskmaster.control.review import Review
from taskmaster.control.say import Say
from taskmaster.control.server import Server
from taskmaster.control.shares import Shares
from taskmaster.control.stops import Stops
from taskmaster.control.supervisor import Supervisor
from taskmaster.control.tally import Tally
from taskmaster.control.troubles import Troubles
from taskmaster.control.turns import Turns
from taskmaster.control.unfiled import Unfiled
from taskmaster.control.upkeep import Upkeep
from taskmaster.core import lifetime
from taskmaster.core.lifetime import Effect, Phase
from taskmaster.errors import FileError, Held
from taskmaster.eventloop import EventLoop
from taskmaster.wire.queries import Command
from taskmaster.wire.replies import Reply


class Daemon:
    """taskmasterd. Raises TaskmasterError where it cannot start.

    ``limits``: rlimits for the jobs. ``handed``: what the program before this one, in the same process, has
    handed over. ``premises``: what it stands on, taken or, on trial, only looked at. ``old``: what it takes to
    run this program again, for the next one.
    """

    def __init__(
        self,
        config: DaemonConfig,
        limits: tuple[tuple[int, tuple[int, int]], ...],
        handed: HandOver | None,
        premises: Premises,
        say: Say,
        old: OldProgram | None = None,
    ) -> None:
        self._config = config
        self._handed = handed
        self._began = time.monotonic()
        self._premises = premises
        self._say = say
        self._audit = premises.audit
        self._store = premises.store
        self._loop = EventLoop()
        self._proofs = Proofs(
            self._loop,
            self._audit,
            self._say,
            seal_s=config.audit_seal_s,
            anchor_s=config.audit_anchor_s,
            heads=premises.heads,
            sink=premises.sink,
        )
        syscalls.become_subreaper()
        churn = Churn(self._loop, self._audit, config.audit_bytes_per_day, time.time)
        self._supervisor = Supervisor(
            self._loop,
            premises.statedir,
            self._audit,
            self._say,
            logs=config.log_directory,
            limits=limits,
            deadline_s=config.command_deadline_s,
            watchdog_timeout_s=config.watchdog_timeout_s,
            wall_clock=time.time,
            churn=churn,
        )
        self._definitions = Definitions(
            self._supervisor,
            self._store,
            Stops(config.config_directory),
            Removals(config.config_directory),
            config.base,
            self._audit,
            self._say,
            outputs=Outputs(
                config,
                self._supervisor.jobs,
                lambda name: self._store.stamp(name) is not None,
            ),
            unfiled=Unfiled(self._supervisor.jobs, premises.statedir, self._store, self._say),
        )
        rejections = Rejections(self._loop, self._audit, self._say.connection)
        shares = Shares(
            self._loop.now,
            rate=config.commands_per_second,
            burst=config.commands_burst,
            max_connections=config.max_clients_per_user,
            max_frame_bytes=config.max_frame_bytes,
        )
        gate = Gate(push_enabled=config.push_enabled, reasons=config.require_reason)
        allotments = Allotments(self._loop.now, config.audit_bytes_per_day)
        recording = Recording(self._audit, allotments, Tally(self._loop, self._audit))
        recording.also_flushed = churn.flush
        turns = Turns(self._loop.now, self._loop.call_in)
        self._dispatcher = Dispatcher(self._audit, self._say, recording, rejections, gate, turns)
        self._review = Review(self._loop, self._audit)
        self._review.closing = lambda: self._dispatcher.closing
        self._directory = Directory(self._supervisor, self._definitions, self._store, self._audit)
        self._commands = Commands(
            self._supervisor,
            self._definitions,
            self._directory,
            self._review,
            config.secret_pattern,
        )
        self._commands.install(self._dispatcher)
        JobFolder(self._loop, str(config.config_directory), self._commands.board)
        self._server = Server(
            self._loop,
            self._dispatcher,
            self._say,
            max_clients=config.max_clients,
            max_frame_bytes=config.max_frame_bytes,
            access=Access(
                config.access,
                os.geteuid(),
                insecure_remote=config.allow_insecure_remote,
                output_max=config.job_output_max_bytes,
            ),
            shares=shares,
            idle_timeout_s=config.idle_timeout_s,
            tls=self._secured(),
        )
        self._troubles = Troubles(premises.statedir.fd)
        self._port = Port(
            self._loop,
            self._server,
            self._audit,
            self._say,
            self._troubles,
            remote=config.remote_connections,
            alone=config.socket is None,
        )
        self._compose_life(limits, old)
        self._upkeep = Upkeep(
            self._loop,
            premises.statedir,
            self._supervisor,
            self._server,
            self._audit,
            self._say,
            socket=None if config.socket is None else (config.socket, config.socket_mode),
            link=config.socket_link,
            usurped=self._usurped,
        )

    def _compose_life(
        self, limits: tuple[tuple[int, tuple[int, int]], ...], old: OldProgram | None
    ) -> None:
        """Who does what of ``core.lifetime``."""
        handed = self._handed
        effects: dict[Effect, Callable[[], None]] = {}
        self._life = Life(Phase.SERVING if handed is None else Phase.ARRIVING, effects)
        parts = Parts(
            self._loop,
            self._config,
            self._premises,
            self._supervisor,
            self._dispatcher,
            self._definitions.removing,
            self._server,
            self._say,
        )
        handing = Handing(parts, limits, old, self._listen)
        self._ending = ending = Ending(parts, self._life)
        installed = (sys.executable, *sys.orig_argv[1:]) if old is None else old.installed
        self._upgrade = upgrade = Upgrade(parts, self._life, handing, installed)
        self._arrival: Arrival | None = None
        if handed is not None:
            self._arrival = Arrival(handed, self._supervisor, self._audit, handing, self._life)
            effects[Effect.TAKE_OVER] = self._arrival.take_over
        effects |= {
            Effect.TRY: upgrade.try_,
            Effect.REFUSE: upgrade.refuse,
            Effect.HOLD: upgrade.hold,
            Effect.CUT_SHORT: upgrade.cut_short,
            Effect.BECOME: upgrade.become,
            Effect.GO_ON: upgrade.go_on,
            Effect.CANCEL: upgrade.cancel,
            Effect.REPLACE_WATCHDOGS: self._replace_watchdogs,
            Effect.STOP_JOBS: ending.stop_jobs,
            Effect.KILL_JOBS: ending.kill_jobs,
            Effect.LEAVE: self._leave,
        }
        self._dispatcher.handlers[Command.UPGRADE] = upgrade.ask
        self._dispatcher.handlers[Command.SHUTDOWN] = ending.shut_down

    def rehearse(self) -> None:
        """What can be tried of ``start`` with nothing written. Raises TaskmasterError."""
        found, _ = self._store.names()
        for name in found:
            try:
                jobfile.parse_job(name, self._store.read(name), self._config.base)
            except FileError:
                pass  # no reason not to start: the definition in force stays, and that is said then

    def lacks(self, refused: Iterable[Refused]) -> None:
        """The kernel refuses these: say what is lost. What was lost before this start may be there again."""
        self._troubles.forget()
        for one in refused:
            self._say.error(str(one))
            self._troubles.begin(one.probe.name, str(one))

    def start(self) -> None:
        """Listen, read the jobs, bring their watchdogs up. Raises TaskmasterError."""
        handed = self._handed
        if handed is None:
            self._supervisor.leave_to_caller()
            for kind in (listeners.TCP, listeners.UNIX):
                self._listen(kind)
        loop = self._loop
        loop.on_signal(signal.SIGCHLD, self._supervisor.reap)
        loop.on_signal(signal.SIGHUP, self._hung_up)
        loop.on_signal(signal.SIGUSR2, self._say.reopen)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.on_signal(number, self._ending.told_by(number.name))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.after_turn = self._turn_over
        if handed is not None:
            self._supervisor.reaper.know(handed.reaped)
            self._definitions.removing.know(handed.removals)
        self._definitions.load()
        if handed is not None:
            self._supervisor.orphans.know(handed.inherited)
            self._supervisor.take_over(handed.held)
            self._supervisor.ask_again(handed.not_begun)
        if self._arrival is None:
            self._tell_of_start()
        self._supervisor.reaper.collect()
        self._supervisor.silence.look_for_stopped()
        self._audit.flush(durable=True)
        self._upkeep.begin()
        self._proofs.begin()
        if self._arrival is not None:
            # Last: whatever fails before is the way back to the program that ran.
            self._arrival.begin()

    def _usurped(self) -> None:
        """Another daemon has the state directory: the jobs are its, and two must not be."""
        self._ending.status = Held.exit_status
        self._life.happens(lifetime.Event.LEAVE_ASKED)

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

    def _listen(self, kind: str) -> None:
        config = self._config
        if kind == listeners.TCP and config.port is not None:
            self._port.listen(config.port)
        if kind == listeners.UNIX and config.socket is not None:
            self._server.listen_unix(config.socket, config.socket_mode)

    def run(self) -> int:
        """Serve until the orderly end; the exit status."""
        self._loop.run()
        return self._ending.status

    def _turn_over(self) -> None:
        self._dispatcher.turn_over()
        if self._review.turn_over(self._dispatcher.held):
            self._dispatcher.turn_over()
        self._commands.turn_over()
        # A watchdog that retires waits until all that it told is on record. At the end of the daemon what
        # cannot be written has to do with being in line.
        if self._audit.flush(durable=False) or self._life.is_over:
            self._supervisor.acknowledge()
        self._upgrade.turn_over()
        self._proofs.turn_over()

    # signals --------------------------------------------------------------------------------------

    def _hung_up(self) -> None:
        self._say.reopen()
        self._proofs.look()

        def done(reply: Reply) -> None:
            if reply.error:
                self._say.error(f"SIGHUP: {reply.error}")

        self._read_certificates()
        if not self._life.is_over:
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

    # its end --------------------------------------------------------------------------------------

    def _replace_watchdogs(self) -> None:
        self._say_where()
        if self._arrival is not None and not self._arrival.failed:
            self._supervisor.replacing.replace_all()

    def _leave(self) -> None:
        self._ending.tell()
        self._dispatcher.tell_counted()
        uptime_s = round(time.monotonic() - self._began, 3)
        self._audit.record(Event.DAEMON_STOPPED, pid=os.getpid(), uptime=uptime_s)
        socket = self._config.socket
        is_ours = socket is not None and self._server.has_unix(socket)
        self._server.stop_listening()
        self._dispatcher.answer_all()
        for session in list(self._dispatcher.sessions):
            session.close("the daemon ends")
        self._upkeep.end()
        if socket is not None and is_ours:
            try:
                os.unlink(socket)
            except OSError:
                pass  # removed by somebody else
        self._proofs.end()
        self._audit.close()
        self._loop.stop()
