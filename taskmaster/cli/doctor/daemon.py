"""What the doctor looks at of taskmasterd itself: who holds the lock, whether it answers, and what it says."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from typing import Any

from taskmaster.cli import outcomes
from taskmaster.cli.client import Client, loads
from taskmaster.cli.doctor import looking
from taskmaster.cli.doctor.jobs import Surroundings
from taskmaster.cli.doctor.looking import OK, PROBLEM, STATE, WARNING, Finding, Unusable
from taskmaster.cli.doctor.where import Where
from taskmaster.core import names
from taskmaster.errors import NotPermitted, TaskmasterError

#: A daemon that is well answers within milliseconds.
ANSWER_S = 5.0
_STATUS_WINDOW = 32
#: How much of what the daemon has written down for us is looked at.
_TROUBLES_BYTES, _TROUBLES = 65536, 32
_DAEMON, _AUDIT = "taskmasterd", "audit log"


class Daemon:
    """Whoever holds the lock of the state directory (a descriptor), and what it answers.

    ``watchdogs``: those of all jobs, for what only they know when it is gone.
    """

    def __init__(self, state: int, where: Where, watchdogs: dict[str, int]) -> None:
        self.findings: list[Finding] = []
        self.pid: int | None = None
        self._state = state
        self._where = where
        holder, unusable = None, ""
        try:
            holder = looking.lock_holder(state)
        except Unusable as error:
            unusable = str(error)
        if holder != looking.SOMEBODY:
            self.pid = holder
        itself = [] if self.pid is None else [self.pid]
        self.around = Surroundings(
            where.state,
            owner=os.fstat(state).st_uid,
            daemon=holder is not None,
            logs=_log_folders(self.pid, watchdogs, where.state),
            start=_start_command([*itself, *watchdogs.values()]) or _otherwise(where, state),
            ctl=where.ctl,
        )
        if unusable:
            path = shlex.quote(f"{where.state}/lock")
            self._is_ill(f"its lock cannot be looked at: {unusable}", f"ls -l {path}")
        else:
            self._examine()

    def _say(self, level: str, text: str, mend: str = "", about: str = _DAEMON) -> None:
        self.findings.append(Finding(level, about, text, mend))

    def _is_ill(self, text: str, mend: str) -> None:
        self._say(PROBLEM, text, mend)
        self.around.mend = mend

    def _examine(self) -> None:
        socket = looking.entry(self._state, "control.sock")
        if socket is not None and stat.S_ISSOCK(socket.st_mode) and socket.st_mode & 0o077:
            path = f"{self._where.state}/control.sock"
            text = f"{path} is open to other users, who can stop every job through it"
            self._say(PROBLEM, text, f"chmod 600 {shlex.quote(path)}", STATE)
        if not self.around.daemon:
            left = "" if socket is None else ": control.sock is left of one that is gone"
            self._is_ill(f"none runs with this state directory{left}", self.around.start)
        elif self.pid is None or self._is_well(self.pid):
            self._ask(has_socket=socket is not None)

    def _is_well(self, pid: int) -> bool:
        """Whether it is worth asking."""
        user, owner = looking.user(pid), self.around.owner
        if user is not None and user != owner:
            text = f"it is of uid {owner}, and taskmasterd (pid {pid}) of uid {user}"
            self._say(PROBLEM, text, f"chown -R {user} {shlex.quote(self._where.state)}", STATE)
        process = looking.process(pid)
        if looking.command_line(pid) and not looking.is_ours(pid):
            text = f"the lock is held by pid {pid} ({looking.name(pid)}), which is no taskmasterd"
            self._is_ill(text, f"kill {pid}")
        elif process is not None and process.stopped:
            text = f"pid {pid} is stopped and answers nobody; its jobs run on"
            self._is_ill(text, f"kill -CONT {pid}")
        else:
            return True
        return False

    def _ask(self, *, has_socket: bool) -> None:
        pid, where, around = self.pid, self._where, self.around
        who = "it" if pid is None else f"pid {pid}"
        # The jobs' processes survive this, and are found again.
        anew = around.start if pid is None else f"kill -KILL {pid}; {around.start}"
        if not has_socket and where.server.path == f"{where.state}/control.sock":
            text = (
                f"{who} runs, and there is no control.sock here: it was removed, or is elsewhere, as "
                "socket in the configuration says. Jobs run on when taskmasterd is started anew"
            )
            ctl = f"taskmasterctl -c SOCKETPATH doctor --state {shlex.quote(where.state)}"
            self._is_ill(text, f"{ctl}, if it is elsewhere; else {anew}")
            return
        client = Client(where.server, ANSWER_S)
        try:
            around.statuses = _statuses(client)
            listener = client.server_pid()
            # A question, not an attempt: nothing that fails is to be on record because of an examination.
            log = _state_of_log(next(client.ask([{"command": "audit", "cursor": "end"}])))
        except NotPermitted:
            path = where.server.path
            self._is_ill(f"{path} lets nobody in", f"chmod 600 {shlex.quote(path)}")
            return
        except TaskmasterError as error:
            # Its first words say why; what they advise is this very examination.
            why = str(error).partition(". ")[0].partition(";")[0]
            self._is_ill(
                f"{who} does not answer ({why}). Jobs run on when it is started anew", anew
            )
            return
        finally:
            client.close()
        if pid is not None and listener not in (0, pid):
            text = f"pid {listener} answers at {where.server}, and pid {pid} holds the lock"
            self._say(PROBLEM, text, f"ps -o pid,args -p {listener},{pid}")
            return
        jobs = len(around.statuses)
        self._say(OK, f"{who} answers; it has {jobs} job{'' if jobs == 1 else 's'}")
        self._tell_troubles()
        self._look_at_audit(log)

    def _tell_troubles(self) -> None:
        """What the daemon itself has found that it has to do without."""
        try:
            data = looking.read(self._state, "troubles.json", _TROUBLES_BYTES)
            known = {} if data is None else loads(data)
        except (Unusable, ValueError):  # it changes nothing of what works
            return
        if isinstance(known, dict):
            for about, text in sorted(known.items())[:_TROUBLES]:
                self._say(WARNING, str(text), about=str(about))

    def _look_at_audit(self, state: dict[str, Any]) -> None:
        path = _audit_file(self.pid)
        look = f"df -h {shlex.quote(path or '/')}"
        if state.get("writable") is False:
            text = (
                f"The audit log cannot be written ({path or 'its file'}: {state.get('error')}): "
                "nothing may be changed; stop, kill and status work"
            )
            self._say(PROBLEM, text, look, _AUDIT)
        elif state.get("onReserve") is True:
            text = (
                f"its disk is full, and it lives on its reserve, {state.get('reserveLeft')} bytes of {path}: "
                "only root and the user of taskmasterd may change anything"
            )
            self._say(PROBLEM, text, look, _AUDIT)
        elif state.get("closing"):
            self._say(WARNING, str(state["closing"]), f"{self._where.ctl} status")
        else:
            self._say(OK, path or "is written", about=_AUDIT)

    def ask_again(self) -> None:
        """Have the statuses that belong to another look at the jobs."""
        if self.around.statuses is None:
            return
        client = Client(self._where.server, ANSWER_S)
        try:
            self.around.statuses = _statuses(client)
        except TaskmasterError:  # it went meanwhile: what the files say still holds
            self.around.statuses = None
        finally:
            client.close()


def _statuses(client: Client) -> dict[str, dict[str, Any]]:
    statuses = {}
    jobs = outcomes.job_names(client)
    for found in outcomes.ask(client, "status", jobs, expected="status", window=_STATUS_WINDOW):
        if client.lost is not None:
            raise client.lost
        # A name that is none may hold what a shell acts upon, and goes into commands here.
        if not found.status and names.is_valid(str(found.job)):
            statuses[str(found.job)] = outcomes.document(found)
    return statuses


def _state_of_log(reply: dict[str, Any]) -> dict[str, Any]:
    """What the daemon says of its log; nothing where it is an older one, or says no."""
    found = outcomes.outcome(None, reply, "audit")
    if found.code == NotPermitted.code:
        raise NotPermitted(found.error)
    try:
        state = loads(outcomes.field(reply, "state"))
    except (TaskmasterError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _start_command(known: Sequence[int]) -> str:
    """What starts taskmasterd, told by one of its processes: each has the command line of the first.

    Only of processes of this very user: another's command line is not to be put into root's hand.
    """
    for pid in known:
        if looking.user(pid) != os.geteuid() or not looking.is_ours(pid):
            continue
        unit = looking.unit(pid)
        if unit:
            return f"systemctl {'--user ' if os.geteuid() else ''}start {unit}"
        folder = looking.working_directory(pid)
        begin = "" if folder == "/" else f"cd {shlex.quote(folder)} && "
        return begin + shlex.join(looking.command_line(pid))
    return ""


def _otherwise(where: Where, state: int) -> str:
    """What starts taskmasterd where no process of it is left that could tell."""
    if os.fstat(state).st_uid == os.geteuid():
        return where.start
    return f"taskmasterd (as user {looking.owner(where.state)}, with the -c CONFIG it always has)"


def _log_folders(pid: int | None, watchdogs: dict[str, int], state: str) -> list[str]:
    """Folders in which a job's log folder may be: where logs are open now, and beside the audit log."""
    found = [f"{os.path.dirname(_audit_file(pid))}/jobs"] if _audit_file(pid) else []
    for job, watchdog in watchdogs.items():
        for path in looking.opened(watchdog).values():
            folder, _, name = path.rpartition("/")
            if name == job and folder not in (f"{state}/jobs", *found):
                found.append(folder)
    return found


def _audit_file(pid: int | None) -> str:
    """The one file that the daemon has open for appending and reading: its messages it only writes."""
    wanted = os.O_APPEND | os.O_RDWR
    if pid is not None:
        for fd, path in looking.opened(pid).items():
            if fd > 2 and path.startswith("/") and looking.flags(pid, fd) & wanted == wanted:
                return path
    return ""
