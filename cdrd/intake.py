"""Turns connections into streams: what accepted and dialled connections share.

The rule that must stay true: reading pauses when what waits has reached its bound, and goes on
when the writer has made room; nothing received is dropped.
"""

import asyncio
import fcntl
import resource
import socket
import struct
import termios
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol, cast

from cdrd.address import format_address
from cdrd.batch import Waiting
from cdrd.gap_watch import GapWatch, NoWatch
from cdrd.kept import Keeper
from cdrd.log import Logger
from cdrd.record import utc_milliseconds
from cdrd.sender import Origin
from cdrd.sizes import KIB
from cdrd.stream import ReportStream, Totals
from cdrd.systemd import Notifier

DRAIN_SECONDS: Final = 3.0
"""At a stop, how long what the kernel holds for us is still read while more keeps coming."""

READ_BYTES: Final = 256 * KIB
PAUSED_BYTES: Final = 256
"""So much is read at once, at most; and of a connection that comes while reading is paused."""

IDLE_LOOK_SECONDS: Final = 5.0
"""How often, at least, it is looked for who is idle: a reload may have set another timeout."""

KEEPALIVE: Final = {
    socket.TCP_KEEPIDLE: 60,  # seconds of silence until the first probe
    socket.TCP_KEEPINTVL: 10,  # seconds between probes
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,  # milliseconds that what we sent may stay unacknowledged
}
SUSPICION: Final = {
    socket.TCP_KEEPIDLE: 2,
    socket.TCP_KEEPINTVL: 2,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 6_000,
}
"""For the older connections of an address that connects anew: a dead one is gone in 8 seconds,
a living one answers the probes and stays."""


class Adopted(NamedTuple):
    """A connection that the process before has left to us."""

    name: str  # that it is kept under
    rest: bytes  # the beginning of a report


class Waker(Protocol):
    """What is told that something waits."""

    def wake(self) -> None:
        """Take what waits as soon as possible."""


class Intake:
    """All connections, and the custody that they read into."""

    def __init__(
        self,
        waiting: Waiting,
        totals: Totals,
        *,
        log: Logger,
        max_report_bytes: int,
        idle_timeout: float = 0,
        keeper: Keeper | None = None,
    ) -> None:
        self.waiting = waiting
        self.keeper = keeper or Keeper(Notifier({}))
        self.totals = totals
        self.log = log
        self.connections: set[PeerConnection] = set()
        self.paused = False
        self.room = asyncio.Event()  # set unless paused: for whoever has no transport to pause
        self.room.set()
        self.gaps: GapWatch = NoWatch()
        self.max_report_bytes = max_report_bytes
        self.idle_timeout = idle_timeout
        self.most_connections = most_connections()
        self.buffer = memoryview(bytearray(READ_BYTES))  # what is read stays no longer than a call
        self._unsuspected: defaultdict[str, set[PeerConnection]] = defaultdict(set)
        self._writer: Waker | None = None
        self._deserted = asyncio.Event()
        self._deserted.set()

    def feed(self, writer: Waker) -> None:
        """Name the writer that takes what waits."""
        self._writer = writer

    def tell_gaps(self, gaps: GapWatch) -> None:
        """Name who is told when a PBX's connection ends and begins."""
        self.gaps = gaps

    def open_stream(self, origin: Origin, peer: str, source: str) -> ReportStream:
        """Make the stream of a new connection."""
        return ReportStream(
            origin,
            peer=peer,
            source=source,
            waiting=self.waiting,
            totals=self.totals,
            max_report_bytes=self.max_report_bytes,
        )

    def read_buffer(self) -> memoryview:
        """Return where bytes are read to: little of it once what waits has reached its bound."""
        return self.buffer[:PAUSED_BYTES] if self.paused else self.buffer

    def arrived(self) -> None:
        """Wake the writer, and pause all reading once what waits has reached its bound."""
        assert self._writer is not None
        if self.waiting:
            self._writer.wake()
        if self.waiting.full and not self.paused:
            self.paused = True
            self.room.clear()
            for connection in self.connections:
                connection.transport.pause_reading()

    def room_made(self) -> None:
        """Go on reading after a pause."""
        if self.paused:
            self.paused = False
            self.room.set()
            for connection in self.connections:
                connection.read_on()

    def joined(self, connection: "PeerConnection") -> None:
        """Count a connection in; look hard at older ones of its address, which may be dead."""
        older = self._unsuspected[connection.address]
        for other in older:
            set_options(other.transport, SUSPICION)
        self._unsuspected[connection.address] = {connection}
        self.connections.add(connection)
        self._deserted.clear()

    def make_way(self, newest: "PeerConnection") -> None:
        """Where a PBX holds more than it may, end the connection that was silent for longest.

        Half a report of it is quarantined; one that the kernel holds bytes of comes last.
        """
        if len(self.connections) <= self.most_connections:
            return
        names = newest.stream.origin.names
        others = [other for other in self.connections if other.is_beside(newest, names)]
        if len(others) >= self.most_connections:
            longest = min(others, key=lambda other: (other.unread_bytes() > 0, other.last_byte))
            longest.drop(f"gave way to a newer one: {self.most_connections} at most")

    def left(self, connection: "PeerConnection") -> None:
        """Count a connection out."""
        self.connections.discard(connection)
        if not self.connections:
            self._deserted.set()
        unsuspected = self._unsuspected[connection.address]
        unsuspected.discard(connection)
        if not unsuspected:
            del self._unsuspected[connection.address]

    async def drain(self) -> None:
        """Read what the kernel has acknowledged to the peers for us, within a bound of time."""
        await read_out(self.connections)

    def hand_over(self) -> None:
        """Leave the connections that are kept to the next process, with what is held of them."""
        if self.keeper.works:
            rests = {c.kept_as: c.leave() for c in self.connections if c.kept_as}
            self.keeper.hand_over(rests)

    async def close(self) -> None:
        """Close every connection; what was held of half a report goes to quarantine."""
        for connection in list(self.connections):
            connection.transport.close()
        await self._deserted.wait()

    async def drop_idle(self) -> None:
        """Drop connections that have been silent for longer than the idle timeout."""
        while True:
            await asyncio.sleep(min(self.idle_timeout / 4 or IDLE_LOOK_SECONDS, IDLE_LOOK_SECONDS))
            silent_since = time.monotonic() - self.idle_timeout
            if self.paused or not self.idle_timeout:
                continue  # it is we who do not listen, or who wait for ever
            for connection in list(self.connections):
                if connection.last_byte < silent_since:
                    connection.drop(f"silent for {self.idle_timeout:g} s")


class PeerConnection(asyncio.BufferedProtocol):
    """One connection whose bytes are a stream of reports."""

    transport: asyncio.Transport
    stream: ReportStream

    def __init__(self, intake: Intake, adopted: Adopted | None = None) -> None:
        """``adopted``: the connection was kept for us, and is no new one."""
        self._intake = intake
        self._adopted = adopted
        self._is_left = False
        self.kept_as = ""
        self.address = ""
        self.peer = ""
        self.last_byte = time.monotonic()
        self._reason = "closed by the peer"

    def begin(self, transport: asyncio.BaseTransport, origin: Origin, source: str) -> None:
        """Begin the stream: keepalive set, counted in."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.address, self.peer = peer_of(transport)
        self.stream = self._intake.open_stream(origin, self.peer, source)
        set_options(transport, KEEPALIVE)
        self._intake.joined(self)
        if self._adopted is not None:
            self.kept_as = self._adopted.name
            self.stream.receive(self._adopted.rest, utc_milliseconds(time.time()))

    def keep(self, kind: str, owner: str = "") -> None:
        """Have the connection outlive this process, unless it has ended by now.

        One over TLS cannot, for its keys do not.
        """
        if self.kept_as or self.transport.is_closing():
            return
        if self.transport.get_extra_info("sslcontext") is None:
            sock = self.transport.get_extra_info("socket")
            self.kept_as = self._intake.keeper.keep(kind, sock, owner)

    def read_on(self) -> None:
        """Read again after a pause; what is left to the next process, or closed, stays unread."""
        if not (self._is_left or self.transport.is_closing()):
            self.last_byte = time.monotonic()
            self.transport.resume_reading()

    def leave(self) -> bytes:
        """Read no more, and return what is held: the next process goes on with it."""
        self._is_left = True
        self.transport.pause_reading()
        return self.stream.leave()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - we know what we have room for
        """Return where the next bytes go."""
        return self._intake.read_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has been read there."""
        self.data_received(self._intake.buffer[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        """Take custody of what arrived, at once."""
        self.last_byte = time.monotonic()
        self.stream.limit(self._intake.max_report_bytes)  # a reload may have changed it
        self.stream.receive(data, utc_milliseconds(time.time()))
        self._intake.arrived()
        if self._intake.paused:
            # uvloop begins to read after connection_made, so a pause made there would not last:
            # each of a thousand that connect meanwhile is read once, but little.
            self.transport.pause_reading()

    def is_beside(self, other: "PeerConnection", names: tuple[str, ...]) -> bool:
        """Tell whether it is open and of the same PBXs as another one."""
        same = self is not other and self.stream.origin.names == names
        return same and not self.transport.is_closing()

    def drop(self, reason: str) -> None:
        """Close the connection from our side."""
        self._reason = reason
        self.transport.close()

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read."""
        return unread_bytes(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream and count the connection out."""
        if exc is not None:
            self._reason = str(exc) or type(exc).__name__
        if not self._is_left:
            reason = f"the connection ended in the middle of a report: {self._reason}"
            self.stream.close(reason, utc_milliseconds(time.time()))
            if self.kept_as:
                self._intake.keeper.forget(self.kept_as)
        self._intake.left(self)
        self._intake.arrived()
        self.ended(self._reason)

    def ended(self, reason: str) -> None:
        """Say that the connection has ended; for the two kinds of connection to tell."""


Receiver = asyncio.Protocol | PeerConnection
"""What is handed the bytes of an accepted connection."""


class _Read(Protocol):
    """A connection that is read whenever the kernel has something for it."""

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read."""


def most_connections() -> int:
    """Return how many connections a PBX may hold, so that it cannot take all descriptors."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed // 2


async def read_out(connections: Iterable[_Read]) -> None:
    """Let the loop read what the kernel holds for the connections, within a bound of time."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        if not any(connection.unread_bytes() for connection in connections):
            return
        await asyncio.sleep(0.005)  # the kernel tells what is unread only when asked


def unread_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel holds for a connection that we have not read."""
    if transport.is_closing():
        return 0
    return unread_in(transport.get_extra_info("socket"))


def unread_in(sock: socket.socket) -> int:
    """Return how many bytes the kernel holds for a socket that nobody has read."""
    descriptor = sock.fileno()
    if descriptor < 0:
        return 0
    (unread,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))
    return int(unread)


def peer_of(transport: asyncio.BaseTransport) -> tuple[str, str]:
    """Return the peer's address, and address and port as one text."""
    host, port = transport.get_extra_info("peername")[:2]
    return host, format_address(host, port)


def set_options(transport: asyncio.BaseTransport, options: dict[int, int]) -> None:
    """Set TCP options on a connection's socket."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in options.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class RateLimited:
    """Something said once a minute at most, with how often it happened meanwhile."""

    def __init__(self, say: Callable[[int], None], interval: float = 60.0) -> None:
        self._say = say
        self._interval = interval
        self._said_at = -interval
        self._count = 0

    def happened(self, now: float) -> None:
        """Count it, and say it when it is time."""
        self._count += 1
        if now - self._said_at >= self._interval:
            self._said_at = now
            self._say(self._count)
            self._count = 0
