"""What each command of the protocol does: two tables, for those that read and those that change.

The only place where a command's word leads to what is done for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import msgspec

from taskmaster.config.history import sha256
from taskmaster.control import ceiling, status
from taskmaster.control.access import Rights
from taskmaster.control.definitions import Change, Definitions
from taskmaster.control.directory import Directory
from taskmaster.control.dispatcher import Dispatcher, Handler, Reader
from taskmaster.control.exchange import Exchange
from taskmaster.control.job import Job
from taskmaster.control.pulling import Pulling
from taskmaster.control.review import Review
from taskmaster.control.supervisor import Supervisor
from taskmaster.core.states import State
from taskmaster.errors import FileError, NoSuchJob, TaskmasterError, TimedOut
from taskmaster.wire import replies
from taskmaster.wire.queries import Command, Query
from taskmaster.wire.replies import Reply

_GONE: Final = "Nobody waits for it any more: the client is gone."


class Commands:
    """The commands, on these jobs."""

    def __init__(
        self,
        supervisor: Supervisor,
        definitions: Definitions,
        directory: Directory,
        review: Review,
        secret_pattern: str,
    ) -> None:
        self._review = review
        self._supervisor = supervisor
        self._definitions = definitions
        self._directory = directory
        self.board = status.Board(definitions.path)
        #: To be called at the end of each turn of the loop.
        self.turn_over = self.board.turn_over
        self._pulling = Pulling(secret_pattern)

    def install(self, dispatcher: Dispatcher) -> None:
        """Fill the dispatcher's tables."""
        dispatcher.state_of = self._state_of
        dispatcher.readers = self.readers()
        dispatcher.handlers = self.handlers()

    def _state_of(self, name: str) -> str | None:
        job = self._supervisor.jobs.get(name)
        return None if job is None else job.state.value

    def readers(self) -> dict[Command, Reader]:
        """Commands that change nothing: a query to its reply."""
        return {
            Command.STATUS: self._status,
            Command.LIST: self._list,
            Command.PULL: self._pull,
            Command.HISTORY: self._history,
            Command.AUDIT: self._audit,
        }

    def handlers(self) -> dict[Command, Handler]:
        """Commands that change something, or wait: they answer through the exchange, now or later."""
        handlers = {
            Command.STATUS: lambda exchange: self._wait_to_read(exchange, self._status),
            Command.PULL: lambda exchange: self._wait_to_read(exchange, self._pull),
            Command.LIST: lambda exchange: self._wait_to_read(exchange, self._list),
            Command.HISTORY: lambda exchange: exchange.done(
                self._history(asked(exchange), exchange.rights)
            ),
            Command.AUDIT: self._review.wait,
            Command.ROLLBACK: self._rollback,
            Command.START: lambda exchange: self._act(exchange, "start"),
            Command.STOP: lambda exchange: self._act(exchange, "stop"),
            Command.KILL: lambda exchange: self._act(exchange, "kill"),
            Command.REPAIR: lambda exchange: self._act(exchange, "repair"),
            Command.RESTART: self._restart,
            Command.RELOAD: self._reload,
            Command.PUSH: self._push,
            Command.DELETE: self._delete,
        }
        return {command: self._in_time(handler) for command, handler in handlers.items()}

    def _in_time(self, handler: Handler) -> Handler:
        """The handler, answered for when the time that its client would wait is over."""

        def handle(exchange: Exchange) -> None:
            query = exchange.query
            assert query is not None
            if query.wait_s is not None:
                loop = self._supervisor.loop
                over = functools.partial(self._out_of_time, exchange, query)
                exchange.timer = loop.call_at(exchange.begun + query.wait_s, over)
            handler(exchange)

        return handle

    def _out_of_time(self, exchange: Exchange, query: Query) -> None:
        if query.command is Command.AUDIT:
            exchange.done(self._guarded(self._audit, query, exchange.rights))
            return
        job = self._supervisor.jobs.get(query.job or "")
        reached = "Not done" if job is None else self._reached(job)
        text = f"{reached}; not settled within {query.wait_s:g} s, what was begun goes on"
        exchange.done(replies.fail(text, TimedOut.code))

    # reading --------------------------------------------------------------------------------------

    def _status(self, query: Query, rights: Rights) -> Reply:
        return self.board.reply(self._definitions.find(query.job))

    def _list(self, query: Query, rights: Rights) -> Reply:
        self.board.forget(self._supervisor.jobs)
        seen = sorted(job for job in self._supervisor.jobs if rights.sees(job))
        return replies.job_list(seen, old_dialect=query.old_dialect)

    def _pull(self, query: Query, rights: Rights) -> Reply:
        if query.version is not None:
            name, data = (
                query.job or "",
                self._definitions.versions.version(query.job, query.version),
            )
            self._pulling.check(name, data, rights)
            return replies.file(name, data)
        job = self._definitions.find(query.job)
        versions = self._definitions.versions
        return self._pulling.reply(
            job.name, versions.stamp(job.name), lambda: versions.current(job.name), rights
        )

    def _history(self, query: Query, rights: Rights) -> Reply:
        before = query.version if isinstance(query.version, int) else None
        document = self._definitions.versions.document(query.job, before)
        return replies.history(query.job or "", msgspec.json.encode(document))

    def _audit(self, query: Query, rights: Rights) -> Reply:
        return self._review.page(query)

    def _wait_to_read(self, exchange: Exchange, reader: Reader) -> None:
        query = exchange.query
        assert query is not None
        if query.command is Command.LIST:
            exchange.done(reader(query, exchange.rights))
            return
        job = self._definitions.find(query.job)

        def look() -> bool:
            if exchange.reply is None and self._supervisor.jobs.get(job.name) is not job:
                exchange.done(_failed(NoSuchJob(job.name)))
            elif exchange.reply is None and job.settled():
                exchange.done(self._guarded(reader, query, exchange.rights))
            return exchange.reply is not None

        if not look():
            exchange.on_end = job.watch(look)
            exchange.on_gone = lambda: exchange.done(replies.fail(_GONE))
            if exchange.gone:
                exchange.on_gone()

    def _guarded(self, reader: Reader, query: Query, rights: Rights) -> Reply:
        try:
            return reader(query, rights)
        except TaskmasterError as error:
            return _failed(error)

    # changing -------------------------------------------------------------------------------------

    def _act(self, exchange: Exchange, verb: str) -> None:
        query = exchange.query
        assert query is not None
        job = self._definitions.find(query.job)
        if job.spec is None:
            if verb in ("stop", "kill"):
                exchange.done(replies.redundant())
            else:
                exchange.done(replies.fail(job.problem, FileError.code))
            return

        def done(outcome: str, error: str) -> None:
            if outcome == replies.FAIL:
                reply = replies.fail(error)
            elif outcome != replies.REDUNDANT:
                reply = replies.success()
            else:
                reply = replies.unchanged() if verb == "repair" else replies.redundant()
            self._answer(exchange, job, reply)

        def ask() -> None:
            if self._supervisor.jobs.get(job.name) is not job:
                exchange.done(_failed(NoSuchJob(job.name)))
                return
            if verb in ("stop", "kill"):
                self._definitions.stopped(job, exchange.peer.who())
            elif verb in ("start", "restart"):
                self._definitions.started(job)
            self._supervisor.act(job, verb, done, exchange.id)

        if verb in ("stop", "kill"):
            ask()  # they wait for nothing, least of all for a delete that waits for the job to stop
        else:
            job.run(ask, lambda why: exchange.done(replies.fail(why)))

    def _restart(self, exchange: Exchange) -> None:
        query = exchange.query
        assert query is not None
        if query.job is None:
            reason = f"restart by {exchange.peer.who()}"
            self._directory.reload(reason, _change(exchange), exchange.done, force=query.force)
        else:
            self._act(exchange, "restart")

    def _reload(self, exchange: Exchange) -> None:
        query = exchange.query
        assert query is not None
        self._definitions.reload(query.job, _change(exchange), self._then_answer(exchange))

    def _push(self, exchange: Exchange) -> None:
        query = exchange.query
        assert query is not None
        assert query.data is not None
        ceiling.weigh(query.job, query.data, exchange.rights, query.command)
        self._definitions.push(
            query.job, query.data, _change(exchange), self._then_answer(exchange)
        )

    def _rollback(self, exchange: Exchange) -> None:
        query = asked(exchange)

        def chosen(data: bytes) -> None:
            exchange.outcome |= {"sha256": sha256(data), "size": len(data)}

        change = msgspec.structs.replace(_change(exchange), action="rolled-back")
        self._definitions.rollback(
            query.job, query.version, change, self._then_answer(exchange), chosen
        )

    def _delete(self, exchange: Exchange) -> None:
        query = exchange.query
        assert query is not None
        job = self._definitions.find(query.job)
        self._definitions.delete(job, _change(exchange), exchange.done)

    # waiting --------------------------------------------------------------------------------------

    def _then_answer(self, exchange: Exchange) -> Callable[[Reply], None]:
        query = exchange.query
        assert query is not None
        name = query.job

        def done(reply: Reply) -> None:
            job = self._supervisor.jobs.get(name or "")
            if job is None:
                exchange.done(reply)
            else:
                self._answer(exchange, job, reply)

        return done

    def _answer(self, exchange: Exchange, job: Job, reply: Reply) -> None:
        """Answer, if asked to wait when the job has settled or the time is over."""
        query = exchange.query
        assert query is not None
        if query.wait_s is None or reply.response == replies.FAIL or exchange.gone:
            exchange.done(reply)
            return
        wants_up = query.command not in (Command.STOP, Command.KILL)

        def look() -> bool:
            if exchange.reply is not None:
                return True
            if self._supervisor.jobs.get(job.name) is not job:
                gone = self._supervisor.closing or str(NoSuchJob(job.name))
                exchange.done(replies.fail(gone, NoSuchJob.code))
            elif job.settled():
                if wants_up and job.state is State.FATAL:
                    exchange.done(replies.fail(self._reached(job)))
                else:
                    exchange.done(reply)
            return exchange.reply is not None

        if not look():
            exchange.on_end = job.watch(look)
            exchange.on_gone = lambda: exchange.done(reply)

    def _reached(self, job: Job) -> str:
        reason = status.reason(job)
        return f'Job "{job.name}" is {job.state.value}' + (f": {reason}" if reason else "")


def asked(exchange: Exchange) -> Query:
    """The query of an exchange that is being carried out."""
    assert exchange.query is not None
    return exchange.query


def _change(exchange: Exchange) -> Change:
    query = asked(exchange)
    permit = functools.partial(ceiling.check, exchange.rights, query.command)
    return Change(exchange.peer.who(), query.reason, exchange.id, query.if_hash, permit=permit)


def _failed(error: TaskmasterError) -> Reply:
    return replies.fail(str(error), error.code)
