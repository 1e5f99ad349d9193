"""Turns listening addresses into connections of the PBXs that connect to us.

The rule that must stay true: a peer that is no configured PBX is refused at once, and costs no
more than that.
"""

import asyncio
import errno
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from typing import Final, cast

from cdrd.address import format_address, parse_address
from cdrd.intake import Adopted, Intake, PeerConnection, RateLimited, Receiver, peer_of
from cdrd.kept import Passed
from cdrd.log import Logger
from cdrd.sender import Origin, Sender, origin_of
from cdrd.source import TCP
from cdrd.tls import names_in
from cdrd.tls_connection import TlsConnection

ACCEPT_SECONDS: Final = 1.0
BACKLOG: Final = 4096

_ADVICE: Final = {
    errno.EADDRINUSE: "end the program that listens there, or name another port",
    errno.EACCES: "name a port of 1024 or more",
}


class Listener:
    """All listening sockets, and who may connect to them."""

    def __init__(
        self,
        intake: Intake,
        senders: Sequence[Sender],
        log: Logger,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._intake = intake
        self._tls = tls
        self.over_tls = tls is not None
        self._senders = tuple(senders)
        self._log = log
        self._servers: list[asyncio.Server] = []
        self.refused = 0
        self._last_refused = ""
        self._refusal = RateLimited(self._say_refused)
        self.handshakes: set[TlsConnection] = set()
        self._failed = ("", "", "")
        self._failure = RateLimited(self._say_failed)

    def accept(self, adopted: Adopted | None = None) -> "AcceptedConnection":
        """Make what receives a connection of ``[tcp] listen``."""
        return AcceptedConnection(self._intake, self, adopted)

    async def adopt(self, passed: Passed) -> None:
        """Go on with the connections that were kept for us; what may not stay is ended by it."""
        loop = asyncio.get_running_loop()
        for name, sock, rest in passed.take(TCP):
            accept = partial(self.accept, Adopted(name, rest))
            await loop.connect_accepted_socket(accept, sock)

    async def open(
        self,
        addresses: Sequence[str],
        source: str,
        accept: Callable[[], Receiver],
        passed: Sequence[socket.socket] = (),
    ) -> list[int]:
        """Listen on each ``host:port``; ``accept`` makes what receives a connection there.

        ``passed``: sockets that listen already, in place of the addresses. Returns the ports as
        bound. Raises OSError.
        """
        loop = asyncio.get_running_loop()
        if self._tls is not None:
            accept = partial(TlsConnection, self._tls, accept, self)
        ports: list[int] = []
        for place in passed or addresses:
            if isinstance(place, socket.socket):
                server = await loop.create_server(accept, sock=place, backlog=BACKLOG)
            else:
                host, port = parse_address(place)
                try:
                    server = await loop.create_server(accept, host, port, backlog=BACKLOG)
                except OSError as error:
                    raise cannot_listen(source, place, error) from error
            self._servers.append(server)
            for sock in server.sockets:
                name = sock.getsockname()
                ports.append(name[1])
                opened = format_address(name[0], name[1])
                self._log.info("listener_opened", address=opened, source=source, tls=self.over_tls)
        return ports

    async def drain(self) -> None:
        """Accept, within a bound of time, whoever the kernel has already said yes to.

        Whose handshake is here, and what followed it, is read too.
        """
        deadline = time.monotonic() + ACCEPT_SECONDS
        sockets = [sock.fileno() for server in self._servers for sock in server.sockets]
        while time.monotonic() < deadline:
            poll = select.poll()
            for descriptor in sockets:
                poll.register(descriptor, select.POLLIN)
            if not poll.poll(0) and not any(each.unread_bytes() for each in self.handshakes):
                return
            await asyncio.sleep(0)

    def close(self) -> None:
        """Accept no more, and end what is not a connection yet."""
        for server in self._servers:
            server.close()
        for handshake in list(self.handshakes):
            handshake.abort()

    def admit(self, senders: Sequence[Sender], begun: Container[str]) -> None:
        """Admit other PBXs from now on; who is none of them any more is dropped.

        ``begun``: the PBXs that are new or have changed: that they are connected is told anew.
        """
        self._senders = tuple(senders)
        for connection in list(self._intake.connections):
            if isinstance(connection, AcceptedConnection):
                connection.admit(begun)

    def origin_of(
        self, address: str, names: frozenset[str] = frozenset(), *, unsigned: bool = False
    ) -> Origin | None:
        """Return the PBXs that an address, and the names in a certificate, may stand for.

        ``unsigned``: of what nobody signs, as over ``[tcp] listen``.
        """
        return origin_of(address, self._senders, names, unsigned=unsigned)

    def vouches(self, address: str, names: frozenset[str]) -> bool:
        """Tell whether a certificate may be shown from an address."""
        return self.origin_of(address, names) is not None

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Tell whether a peer is a configured PBX; a stranger is counted."""
        if transport.get_extra_info("peername") is None:
            return False  # it has reset the connection already
        address, _ = peer_of(transport)
        if self.origin_of(address) is not None:
            return True
        self.count_refused(address)
        return False

    def handshake_failed(self, address: str, peer: str, reason: str) -> None:
        """Tell of a configured PBX that cannot be heard, once a minute at most."""
        origin = self.origin_of(address)
        self._failed = (origin.name if origin else "", peer, reason)
        self._failure.happened(time.monotonic())

    def count_refused(self, address: str) -> None:
        """Count a stranger, and tell it once a minute at most."""
        self.refused += 1
        self._last_refused = address
        self._refusal.happened(time.monotonic())

    def _say_refused(self, count: int) -> None:
        self._log.warning(
            "peer_refused",
            address=self._last_refused,
            count=count,
            advice="add the address to the peers of its [[pbx]]; one with a secret_file only POSTs",
        )

    def _say_failed(self, count: int) -> None:
        pbx, peer, reason = self._failed
        self._log.warning("handshake_failed", pbx=pbx, peer=peer, reason=reason, count=count)


def cannot_listen(source: str, address: str, error: OSError) -> OSError:
    """Return the error that names the setting whose address cannot be listened at."""
    number = error.errno or 0
    why = os.strerror(number) if number > 0 else error.strerror  # below 0: getaddrinfo's own
    advice = _ADVICE.get(number, "name an address of this machine")
    return OSError(f"{source}.listen: {address}: {why}; {advice}")


class AcceptedConnection(PeerConnection):
    """A connection that a PBX or a relay holds to us."""

    def __init__(self, intake: Intake, listener: Listener, adopted: Adopted | None = None) -> None:
        super().__init__(intake, adopted)
        self._listener = listener
        self._known = False
        self._names: frozenset[str] = frozenset()  # in its certificate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a configured PBX's connection, refuse any other."""
        if transport.get_extra_info("peername") is None:
            # The peer has reset it already, and nobody can tell any more whose it was.
            self._give_up(transport)
            return
        address, peer = peer_of(transport)
        self._names = names_in(transport.get_extra_info("peercert"))
        origin = self._listener.origin_of(address, self._names, unsigned=True)
        if origin is None:
            self._listener.count_refused(address)
            self._give_up(transport)
            return
        if self._adopted is not None and self._listener.over_tls:
            self._say_in_clear(origin.name, peer)
            self._give_up(transport)
            return
        self._known = True
        self.begin(transport, origin, TCP)
        self.keep(TCP)
        self._intake.log.info(
            "peer_connected", pbx=origin.name, peer=self.peer, kept=self._adopted is not None
        )
        self._tell_gaps(self._intake.gaps.mended, origin.names)
        self._intake.make_way(self)

    def _say_in_clear(self, pbx: str, peer: str) -> None:
        """Tell the end of a connection that was kept from before there was TLS.

        Nobody has shown a certificate on it, so what it holds is not read; a PBX comes again.
        """
        reason = "it was kept from before [tls], and is not over TLS"
        self._intake.log.info("peer_disconnected", pbx=pbx, peer=peer, reports=0, reason=reason)

    def _give_up(self, transport: asyncio.BaseTransport) -> None:
        """Close what is not read; what was kept for us would else stay open."""
        if self._adopted is not None:
            self._intake.keeper.forget(self._adopted.name)
        cast(asyncio.Transport, transport).abort()

    def admit(self, begun: Container[str]) -> None:
        """Find out anew whose connection it is."""
        origin = self._listener.origin_of(self.address, self._names, unsigned=True)
        if origin is None:
            self.drop("its address is of no configured PBX any more")
            return
        before = self.stream.origin.names
        if origin.names != before:
            self._tell_gaps(self._intake.gaps.broke, before)
            begun = origin.names
        self.stream.origin = origin
        self._tell_gaps(self._intake.gaps.mended, [pbx for pbx in origin.names if pbx in begun])

    def _tell_gaps(self, tell: Callable[[str], None], pbxs: Iterable[str]) -> None:
        """Tell what has become of PBXs; where it may be another's connection, that each is asked.

        While it stands, nobody knows which of them it is that is connected.
        """
        is_own = len(self.stream.origin.names) == 1
        for pbx in pbxs:
            (tell if is_own else self._intake.gaps.missed)(pbx)

    def data_received(self, data: bytes | memoryview) -> None:
        """Take custody of what arrived; a stranger's bytes are nobody's."""
        if self._known:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream, where there was one."""
        if self._known:
            super().connection_lost(exc)

    def ended(self, reason: str) -> None:
        """Log the end; until another connection begins, reports may be missing."""
        stream = self.stream
        self._tell_gaps(self._intake.gaps.broke, stream.origin.names)
        self._intake.log.info(
            "peer_disconnected",
            pbx=stream.origin.name,
            peer=self.peer,
            reports=stream.reports,
            reason=reason,
        )
