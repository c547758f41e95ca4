"""The listeners: TCP and Unix socket, and how many clients there may be.

A client over the limit is told so and gone; who has to go for somebody else is decided in ``seats``. With no
descriptor left a spare one is given up to accept whoever knocks, and drop all but root: a connection that is
never accepted would wake the loop without end.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from taskmaster import sockdiag
from taskmaster.channel import PLAIN, Channel
from taskmaster.config.access import Role
from taskmaster.control import peers
from taskmaster.control.access import Access, Rights
from taskmaster.control.dispatcher import Dispatcher
from taskmaster.control.handover import HandedConnection, HandedListener
from taskmaster.control.handshakes import Handshakes
from taskmaster.control.idle import Idle
from taskmaster.control.lifetime.listeners import file_of
from taskmaster.control.peers import Kernel, Peer, Unidentified
from taskmaster.control.say import Say
from taskmaster.control.seats import Seats, who_goes
from taskmaster.control.session import Session
from taskmaster.control.shares import Share, Shares
from taskmaster.control.tls import TlsChannel
from taskmaster.errors import TaskmasterError
from taskmaster.eventloop import EventLoop, Watch
from taskmaster.wire import replies
from taskmaster.wire.frames import Allowance

_BACKLOG: Final = 1024
#: The largest frame of a client that may not push anything: room for every command but that, and every refusal.
_NO_FILE_BYTES: Final = 128 * 1024
#: Accepted before the loop gets its turn: so many, and for so long, seconds.
_ACCEPTS_A_TURN: Final = 16
_ACCEPT_S: Final = 0.001
_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
Address = tuple[str, int]
#: What becomes of a connection that was accepted.
Receive = Callable[[socket.socket, Address], None]
_NOT_THIS_ONE: Final = frozenset({errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM})


class CannotListen(TaskmasterError):
    """An address that cannot be listened on."""

    code = "cannot-listen"

    def __init__(self, text: str, address: str = "", number: int = 0) -> None:
        super().__init__(text)
        self.address, self.number = address, number


class Server:
    """Everything that clients connect to."""

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        say: Say,
        *,
        max_clients: int,
        max_frame_bytes: int,
        access: Access,
        shares: Shares,
        idle_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._access = access
        self._shares = shares
        self._kernel = Kernel(loop.now)
        dispatcher.has_left = self._kernel.has_left
        self._idle = Idle(loop, dispatcher.sessions, idle_timeout_s)
        self._dispatcher = dispatcher
        self._say = say
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._seats = Seats(
            max_clients=max_clients, max_each=shares.max_connections, descriptors=descriptors
        )
        shares.max_connections = self._seats.max_each
        dispatcher.on_over = self._seats.leave
        self._max_frame_bytes = max_frame_bytes
        #: Unfinished frames of those who may do everything: what others leave unfinished must not keep them from
        #: pushing.
        self._own_allowance = Allowance(shares.unfinished.max_bytes)
        shares.unfinished.relieve = self._relieve
        self._listeners: list[tuple[HandedListener, Watch]] = []
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._handshakes: Handshakes | None = None
        if tls is not None:
            self._handshakes = Handshakes(
                loop,
                tls,
                plain=self._welcome_tcp,
                welcome=self._welcome_tls,
                rejected=lambda peer, why: dispatcher.turned_away(peer, why, "handshake"),
                at_most=self._seats.max_each,
            )
            dispatcher.handshakes = self._handshakes
        #: Where clients can connect, for people.
        self.addresses: list[str] = []
        self.port: int | None = None
        #: It takes no more clients, for good.
        self.is_over = False

    def listen_tcp(self, port: int, *, remote: bool) -> None:
        """Listen on loopback, or with ``remote`` on every address. Raises CannotListen."""
        host = "" if remote else "127.0.0.1"
        family = socket.AF_INET6 if remote and socket.has_dualstack_ipv6() else socket.AF_INET
        try:
            listener = socket.create_server(
                (host, port),
                family=family,
                backlog=_BACKLOG,
                dualstack_ipv6=family == socket.AF_INET6,
            )
        except OSError as error:
            raise CannotListen(
                f"cannot listen on {host or '*'}:{port}: {os.strerror(error.errno or 0)}; "
                'another program has it? "port" in the configuration takes another, or null for none',
                f"{host or '*'}:{port}",
                error.errno or 0,
            ) from None
        self.port = listener.getsockname()[1]
        self.addresses.append(f"{host or '*'}:{self.port}")
        self._kernel.try_out(listener)
        self._add(listener, "tcp")

    def has_unix(self, path: Path) -> bool:
        """Whether the socket at this path is the one that is listened on."""
        there = file_of(path)
        return any(one.kind == "unix" and one.file == there for one, _ in self._listeners)

    def listen_unix_anew(self, path: Path, mode: int) -> None:
        """The socket's file was removed, and nobody can connect: listen at a new one. Raises CannotListen."""
        before = [one for one in self._listeners if one[0].kind == "unix"]
        self.listen_unix(path, mode)
        for entry in before:
            self.addresses.remove(entry[0].address)
            self._loop.unwatch(entry[1])
            os.close(entry[0].fd)
            self._listeners.remove(entry)

    def listen_unix(self, path: Path, mode: int) -> None:
        """Listen on a Unix socket of this mode; one that is left from before is replaced. Raises CannotListen."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _remove_socket(path.name, folder)
                # A socket's path holds 107 bytes; through a descriptor, the folder may be deeper.
                umask = os.umask(0o777 & ~mode)
                try:
                    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
                finally:
                    os.umask(umask)
                about = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(folder)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise CannotListen(f"cannot listen on {path}: {error.strerror or error}") from None
        self.addresses.append(str(path))
        self._add(listener, "unix", (about.st_dev, about.st_ino))

    def listening(self) -> tuple[HandedListener, ...]:
        """All listeners, as they would be handed over."""
        return tuple(one for one, _ in self._listeners)

    def hand_over(self) -> tuple[HandedListener, ...]:
        """Let go of all listeners, for the program that comes."""
        handed = self.listening()
        for _, watch in self._listeners:
            self._loop.unwatch(watch)
        self._listeners.clear()
        self.addresses.clear()
        return handed

    def take_over(self, handed: HandedListener) -> None:
        """Go on listening where the program before did."""
        self.addresses.append(handed.address)
        listener = socket.socket(fileno=handed.fd)
        if handed.kind == "tcp":
            self.port = listener.getsockname()[1]
            self._kernel.try_out(listener)
        self._add(listener, handed.kind, handed.file)

    def let_in_and_close(self, handed: HandedListener) -> None:
        """Close a listener of the program before, once all who have knocked there are let in."""
        os.set_blocking(handed.fd, False)
        self._accept(handed.fd, self._receiver(handed), _BACKLOG)
        os.close(handed.fd)

    def take_in(self, handed: HandedConnection) -> None:
        """Go on with a connection that the program before has not read from."""
        self._receive_tcp(socket.socket(fileno=handed.fd), handed.address)

    def _add(self, listener: socket.socket, kind: str, file: tuple[int, int] | None = None) -> None:
        listener.setblocking(False)
        one = HandedListener(kind, listener.detach(), self.addresses[-1], file)
        receive = self._receiver(one)
        watch = self._loop.watch(one.fd, lambda: self._accept(one.fd, receive, _ACCEPTS_A_TURN))
        self._listeners.append((one, watch))

    def _receiver(self, one: HandedListener) -> Receive:
        return self._receive_unix(one.address) if one.kind == "unix" else self._receive_tcp

    def secure(self, tls: ssl.SSLContext) -> None:
        """Use other certificates from the next handshake on."""
        if self._handshakes is not None:
            self._handshakes.context = tls

    def let_go(self) -> tuple[HandedConnection, ...]:
        """Let go of all connections that are no clients yet, for the program that comes."""
        if self._handshakes is None:
            return ()
        return tuple(HandedConnection(*one) for one in self._handshakes.hand_over())

    def stop_listening(self) -> None:
        """Take no more clients."""
        self.is_over = True
        if self._handshakes is not None:
            self._handshakes.close()
        for one, watch in self._listeners:
            self._loop.unwatch(watch)
            os.close(one.fd)
        self._listeners.clear()

    def _accept(self, fd: int, receive: Receive, at_most: int) -> None:
        listener = socket.socket(fileno=fd)
        end = self._loop.now() + _ACCEPT_S
        try:
            for number in range(at_most):
                if at_most == _ACCEPTS_A_TURN and number and self._loop.now() >= end:
                    return
                try:
                    connection, address = listener.accept()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno in _NOT_THIS_ONE:
                        continue
                    if error.errno not in _SHORT:
                        raise
                    self._squeeze_in(listener, receive, error)
                    return
                receive(connection, address[:2])
        finally:
            listener.detach()

    def _receive_unix(self, path: str) -> Receive:
        return lambda connection, _: self._welcome(
            connection, lambda: peers.of_unix(connection, path)
        )

    def _receive_tcp(self, connection: socket.socket, address: Address) -> None:
        if self._handshakes is None:
            self._welcome_tcp(connection, address)
        else:
            self._handshakes.receive(connection, address, local=sockdiag.is_loopback(address[0]))

    def _welcome_tcp(self, connection: socket.socket, address: Address) -> None:
        self._welcome(connection, lambda: self._kernel.of_tcp(connection, address))

    def _welcome(self, connection: socket.socket, identify: Callable[[], Peer]) -> None:
        try:
            peer = identify()
        except Unidentified as error:
            self._refuse(connection.detach(), error.peer, str(error), error.code)
            return
        except OSError:
            connection.close()  # ENOTCONN: gone before it was looked at
            return
        self._let_in(connection.detach(), peer)

    def _welcome_tls(self, fd: int, peer: Peer, channel: TlsChannel) -> None:
        session = self._let_in(fd, peer, channel)
        if session is None:
            return
        try:
            session.take_over(channel.early(), b"")
        except OSError as error:  # EPROTO: what came behind the handshake is none of its
            session.close(f"connection lost: {error.strerror}")

    def _let_in(self, fd: int, peer: Peer, channel: Channel = PLAIN) -> Session | None:
        rights = self._access.rights(peer)
        share = None if rights.everything else self._shares.of(rights.identity)
        reason = self._no_seat(fd, peer, rights, share)
        if reason:
            self._refuse(fd, peer, reason, "too-many-clients", channel)
            return None
        if share is not None:
            share.connections += 1
        session = self._begin(fd, peer, rights, share, channel)
        self._say.everything(f"client {peer.who()} connected")
        return session

    def _no_seat(self, fd: int, peer: Peer, rights: Rights, share: Share | None) -> str:
        """Why there is none for this peer; empty where there is, or somebody has made room."""
        seats, by_root = self._seats, share is None
        if share is not None and share.connections >= seats.max_each:
            return (
                f"Too many clients: {rights.who} has {share.connections} connections "
                "(maxClientsPerUser); try again later."
            )
        if seats.is_full(peer.transport, by_root=by_root):
            taken = seats.taken(peer.transport, by_root=by_root)
            reason = f"Too many clients: {taken} are connected (maxClients); try again later."
            if by_root or not self._make_room(share, rights, peer.transport):
                return reason
        if not by_root and seats.is_short(fd) and not self._make_room(share, rights):
            return "Too many clients: few descriptors are left (RLIMIT_NOFILE); try again later."
        return ""

    def _make_room(self, share: Share | None, rights: Rights, transport: str = "") -> bool:
        """Have somebody give up their connection, if anybody has to."""
        gone = who_goes(
            self._dispatcher.sessions,
            share,
            is_stranger=not (rights.everything or rights.rules),
            transport=transport,
        )
        if gone is not None:
            gone.close("made room for somebody who has less, or for root")
        return gone is not None

    def serve(self, fd: int, peer: Peer) -> Session:
        """Make a connection, which was let in before, a session; what it may do is decided anew."""
        rights = self._access.rights(peer)
        share = None if rights.everything else self._shares.enter(rights.identity, let_in=True)
        return self._begin(fd, peer, rights, share, PLAIN)

    def _begin(
        self, fd: int, peer: Peer, rights: Rights, share: Share | None, channel: Channel
    ) -> Session:
        pushes = rights.everything or any(rule.role >= Role.ADMIN for rule in rights.rules)
        session = Session(
            self._loop,
            fd,
            peer,
            self._max_frame_bytes if pushes else min(self._max_frame_bytes, _NO_FILE_BYTES),
            self._own_allowance if share is None else share.unfinished,
            self._dispatcher,
            rights,
            share,
            channel,
        )
        self._dispatcher.sessions[session] = None
        self._seats.take(session)
        self._idle.watch()
        return session

    def _relieve(self) -> None:
        """Of all who hold unfinished frames, those who hold most are cut off until there is room again."""
        unfinished = self._shares.unfinished
        sessions = [one for one in self._dispatcher.sessions if one.share is not None]
        while unfinished.used > unfinished.max_bytes:
            most = max(sessions, key=_unfinished)
            if not _unfinished(most)[1]:
                return
            most.close("too much unfinished input")

    def _refuse(
        self, fd: int, peer: Peer, reason: str, code: str, channel: Channel = PLAIN
    ) -> None:
        told = channel.seal(replies.fail(reason, code).frame(with_code=True), last=True)
        connection = socket.socket(fileno=fd)
        connection.setblocking(False)
        try:
            connection.send(told)
        except OSError:
            pass  # it is going anyway
        connection.close()
        self._dispatcher.turned_away(peer, reason, code)

    def _squeeze_in(self, listener: socket.socket, receive: Receive, error: OSError) -> None:
        """No descriptor for another client: root is let in with the spare one, and somebody else goes for it.

        Everybody else is dropped; who is not accepted would wake the loop without end.
        """
        os.close(self._spare)
        try:
            connection, address = listener.accept()
        except OSError:
            connection = None  # gone already, or not even the spare one was enough
        rights = None if connection is None else self._rights_of(connection, address[:2])
        is_let_in = rights is not None and rights.everything and self._make_room(None, rights)
        if connection is not None and not is_let_in:
            connection.close()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if connection is not None and is_let_in:
            receive(connection, address[:2])
        else:
            self._say.error(f"a client was dropped: {error.strerror}", "clients")

    def _rights_of(self, connection: socket.socket, address: Address) -> Rights | None:
        """What a connection may do that just came, as far as that is known of one within this host."""
        try:
            if connection.family == socket.AF_UNIX:
                return self._access.rights(peers.of_unix(connection, ""))
            return self._access.rights(self._kernel.of_tcp(connection, address))
        except (Unidentified, OSError):
            return None  # gone, or there is no descriptor to ask with


def _unfinished(session: Session) -> tuple[int, int]:
    """By whom most is held, and of theirs in which connection."""
    share = session.share
    return (0 if share is None else share.unfinished.used), session.unfinished_bytes


def _remove_socket(name: str, folder: int) -> None:
    import stat

    try:
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(about.st_mode):
        raise OSError(errno.EEXIST, "there is a file of that name, and it is no socket")
    os.unlink(name, dir_fd=folder)
