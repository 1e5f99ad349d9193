"""Turns the connections of PBXs that POST into custody of their reports, and commits into answers.

The rule that must stay true: a 200 is sent when all that its request held is durable, in
quarantine, or no record; and no connection waits for another one's bytes.
"""

import asyncio
import enum
import itertools
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache, partial
from typing import Final, assert_never, cast

from cdrd.address import format_address
from cdrd.door import Admitted, Entrance, Entrances, NotAdmitted
from cdrd.http_answer import METHODS, make_answer
from cdrd.http_request import ContinueExpected, Event, Fault, Request, RequestReader
from cdrd.intake import Intake, RateLimited, read_out, unread_bytes
from cdrd.listen import Listener
from cdrd.log import Logger
from cdrd.record import utc_milliseconds
from cdrd.tls import names_in

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

MOST_STRANGERS: Final = 100
"""So many are told at once why they are refused; more are ended without a word."""

GROUP: Final = 100
"""So many requests are taken at once, before it is asked again whether there is room."""

ANSWER_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 1.0
"""At a stop, how long the last answers may take to reach their peers."""

_EVENT_IN_QUERY = re.compile(r"[?&](?:action|event|msg|type)=")
"""As a webhook may send it by GET: a P-Series PBX offers that, and no page says how it looks."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a connection may take over what, in seconds."""

    request: float = 20  # to send one request, head and body
    idle: float = 75  # between two requests
    answer: float = ANSWER_SECONDS  # ours, to commit; a 503 tells the peer to come again
    linger: float = 2  # to read our last answer, before the connection is reset


class _State(enum.Enum):
    RECEIVING = enum.auto()  # a request, the first or one that has begun
    IDLE = enum.auto()  # between two requests
    HELD = enum.auto()  # with a whole request, until there is room for its reports
    UNCOMMITTED = enum.auto()  # its reports are in custody, and not yet durable
    ENDING = enum.auto()  # the last answer is written; what still comes is passed over


class HttpConnections:
    """All connections of PBXs that POST."""

    def __init__(
        self,
        intake: Intake,
        listener: Listener,
        entrance_of: Entrances,
        log: Logger,
        bounds: Bounds | None = None,
    ) -> None:
        self.intake = intake
        self.listener = listener
        self.entrance_of = entrance_of
        self.bounds = bounds or Bounds()
        self.connections: set[HttpConnection] = set()
        self.stopping = False
        self._held: dict[HttpConnection, None] = {}  # the longest held first
        self._awaits_commit = False
        self._log = log
        self._refused: tuple[HttpConnection, int, str] | None = None
        self._refusal = RateLimited(self._say_refused)
        self._sweeper: asyncio.TimerHandle | None = None
        self._deserted = asyncio.Event()
        self._deserted.set()

    def accept(self) -> "HttpConnection":
        """Make what receives a connection of ``[http] listen``."""
        return HttpConnection(self)

    def admit(self, entrance_of: Entrances) -> None:
        """Admit other PBXs from now on, on the connections that are open too."""
        self.entrance_of = entrance_of
        for connection in self.connections:
            connection.find_entrance()

    def joined(self, connection: "HttpConnection") -> None:
        """Count a connection in."""
        self.connections.add(connection)
        self._deserted.clear()
        self._make_way(connection)
        if self._sweeper is None:
            self._sweep()

    def _make_way(self, newest: "HttpConnection") -> None:
        """Where a PBX, or all strangers, hold more than they may, end the longest that waits."""
        most = self.intake.most_connections
        if newest.is_stranger:
            most = min(most, MOST_STRANGERS)
        if len(self.connections) > most:
            others = [each for each in self.connections if each.is_beside(newest)]
            if len(others) >= most:
                min(others, key=lambda each: each.since).give_way()

    def left(self, connection: "HttpConnection") -> None:
        """Count a connection out."""
        self.connections.discard(connection)
        if not self.connections:
            self._deserted.set()

    def hold(self, connection: "HttpConnection") -> None:
        """Hold a request, to be taken with all that come until the commit that runs has ended.

        It could not be in that commit any more, and many are taken together at a fifth of the cost
        of each: with 200 posters this made 2,200 posts a second 5,100.
        """
        if not self._held:
            asyncio.get_running_loop().call_soon(self._take_held)
        self._held[connection] = None

    def release(self, connection: "HttpConnection") -> None:
        """Hold a request no longer: it is not answered, or 503, and the PBX sends it again."""
        self._held.pop(connection, None)

    def _take_held(self) -> None:
        """Take custody of the requests that are held, as far as there is room."""
        waiting = self.intake.waiting
        while self._held and not (waiting.committing or waiting.full):
            group = list(itertools.islice(self._held, GROUP))
            by_origin: defaultdict[Admitted, list[HttpConnection]] = defaultdict(list)
            for connection in group:
                del self._held[connection]
                by_origin[connection.admitted].append(connection)
            for admitted, posting in by_origin.items():
                self._take(admitted, posting)
            self.intake.arrived()
        if self._held and not self._awaits_commit:
            self._awaits_commit = True
            waiting.when_committed(self._commit_ended)

    def _commit_ended(self) -> None:
        self._awaits_commit = False
        self._take_held()

    def _take(self, admitted: Admitted, posting: Sequence["HttpConnection"]) -> None:
        """Take custody of one request each; the answers follow the commit."""
        waiting = self.intake.waiting
        stream = self.intake.open_stream(admitted.origin, "", admitted.source)
        bodies = [connection.body for connection in posting]
        taken = stream.take_whole(bodies, utc_milliseconds(time.time()))
        if taken.waiting:
            in_custody = [posting[place] for place in taken.waiting]
            for connection in in_custody:
                connection.wait_for_commit(whole=True)
            waiting.when_committed(partial(_answer, in_custody))
        for place in taken.left:
            posting[place].take_alone()
        _answer(posting[place] for place in taken.passed_over)

    def refused(self, connection: "HttpConnection", status: int, reason: str) -> None:
        """Tell of a request that was refused, once a minute at most."""
        self._refused = (connection, status, reason)
        self._refusal.happened(time.monotonic())

    async def drain(self) -> None:
        """Read what the kernel has acknowledged to the peers for us, within a bound of time."""
        await read_out(self.connections)

    def stop(self) -> None:
        """Take no further request; those that are here are still answered."""
        self._take_held()
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()

    async def close(self) -> None:
        """Let the last answers reach their peers, within a bound of time; reset who stays."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._deserted.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.transport.abort()
            await self._deserted.wait()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        """End what has taken too long; one timer for all, since most connections are short."""
        self._sweeper = None
        if not self.connections:
            return
        loop, bounds = asyncio.get_running_loop(), self.bounds
        interval = min(bounds.request, bounds.idle, bounds.answer, bounds.linger) / 4
        self._sweeper = loop.call_later(interval, self._sweep)
        for connection in list(self.connections):
            connection.check(loop.time())

    def _say_refused(self, count: int) -> None:
        assert self._refused is not None
        connection, status, reason = self._refused
        self._log.warning(
            "request_refused",
            pbx=connection.entrance.origin.name,
            peer=connection.peer,
            status=status,
            reason=reason,
            count=count,
        )


class HttpConnection(asyncio.Protocol):
    """One connection, whose requests are answered one after the other."""

    transport: asyncio.Transport
    entrance: Entrance  # of a stranger there is none
    admitted: Admitted  # whose the request is that is held
    address: str
    peer: str

    def __init__(self, connections: HttpConnections) -> None:
        self._connections = connections
        self._intake = connections.intake
        self._names: frozenset[str] = frozenset()  # in its certificate
        self._loop = asyncio.get_running_loop()
        self.is_stranger = False
        self._reader = RequestReader(self._intake.max_report_bytes)
        self._request: Request | None = None  # the one that is not answered yet
        self._state = _State.RECEIVING
        self.since = self._loop.time()  # when the state began
        self._is_paused = False
        self._peer_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        peername = transport.get_extra_info("peername")
        if peername is None or self._connections.stopping:
            # The peer has reset it already, and nobody can tell any more whose it was.
            self._state = _State.ENDING
            self.transport.abort()
            return
        self.address, port = peername[:2]
        self.peer = format_address(self.address, port)
        self._names = names_in(transport.get_extra_info("peercert"))
        self.find_entrance()
        self._connections.joined(self)
        if self.is_stranger:
            self._connections.listener.count_refused(self.address)

    def find_entrance(self) -> None:
        """Find out who the peer may be."""
        entrance = self._connections.entrance_of(self.address, self._names)
        self.is_stranger = entrance is None
        if entrance is not None:
            self.entrance = entrance

    def data_received(self, data: bytes) -> None:
        """Take the requests that the bytes complete; a stranger's bytes are nobody's."""
        if self._state is _State.ENDING:
            return
        if self.is_stranger:
            self._refuse_stranger()
            return
        self._reader.max_body_bytes = self._intake.max_report_bytes  # a reload may have changed it
        self._reader.receive(data)
        if self._request is None:
            self._go_on()
        elif not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Take the end of what the peer sends for the end of a body; the answer is still sent."""
        self._peer_ended = True
        if self._request is None and self._reader.pending:
            self._go_on()
        return self._request is not None

    def pause_writing(self) -> None:
        """Drop a peer that sends on and on and reads no answer."""
        self._request = None
        self._enter(_State.ENDING)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep what came of a request that never became whole; count the connection out."""
        del exc
        self._keep_rest()
        self._request = None
        self._state = _State.ENDING
        self._connections.release(self)
        self._connections.left(self)

    @property
    def body(self) -> bytes:
        """The body of the request that is held."""
        assert self._request is not None
        return self._request.body

    def wait_for_commit(self, *, whole: bool) -> None:
        """Leave the request unanswered until its reports, in custody now, are durable.

        ``whole``: they are, though the body may have been told to be longer than it is.
        """
        assert self._request is not None
        if whole and not self._request.whole:
            self._request = self._request._replace(whole=True)
        self._enter(_State.UNCOMMITTED)

    def take_alone(self) -> None:
        """Take custody of a request whose body is more, or less, than one report."""
        request, waiting = self._request, self._intake.waiting
        assert request is not None
        before = waiting.mark
        self._take_custody(request.body)
        after = waiting.mark
        if after == before:
            self.answer()  # there was no call in it
            return
        self.wait_for_commit(whole=before.quarantined == after.quarantined)
        waiting.when_committed(partial(_answer, [self]))

    def answer(self) -> None:
        """Answer the request, whose reports are safe, and go on to the next one."""
        if self._request is None or self.transport.is_closing():
            return  # the answer was 503 meanwhile, or there is nobody any more to answer
        self._answer(self._request)
        if self._is_paused and not self.transport.is_closing():
            self._is_paused = False
            self.transport.resume_reading()
        if self._reader.pending:
            self._go_on()
        elif self._peer_ended:
            self.transport.close()

    def is_beside(self, other: "HttpConnection") -> bool:
        """Tell whether it waits for its peer, and is of the same PBXs as another one."""
        if self is other or self.transport.is_closing():
            return False
        if self.is_stranger or other.is_stranger:
            return self.is_stranger and other.is_stranger
        waits = self._state in (_State.RECEIVING, _State.IDLE)
        return waits and self.entrance.origin.names == other.entrance.origin.names

    def give_way(self) -> None:
        """End at once, for a newer connection."""
        self._keep_rest()
        self._state = _State.ENDING
        self.transport.abort()

    def stop(self) -> None:
        """Close the connection, unless it waits for an answer."""
        if self._state in (_State.RECEIVING, _State.IDLE):
            self._keep_rest()
            self._state = _State.ENDING
            self.transport.close()

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read and want to."""
        wanted = self._state in (_State.RECEIVING, _State.IDLE)
        return unread_bytes(self.transport) if wanted else 0

    def check(self, now: float) -> None:
        """End the connection when it has been in its state for too long."""
        bounds = self._connections.bounds
        lasted = now - self.since
        match self._state:
            case _State.RECEIVING:
                if lasted >= bounds.request:
                    self._give_up_receiving()
            case _State.IDLE:
                if lasted >= bounds.idle:
                    self.transport.close()
            case _State.HELD | _State.UNCOMMITTED:
                if lasted >= bounds.answer:
                    self._keep_rest()  # and the repeat of the report is a duplicate
                    self._end(503, "the database does not take records now")
            case _State.ENDING:
                if lasted >= bounds.linger:
                    self.transport.abort()
            case _:
                assert_never(self._state)

    def _enter(self, state: _State) -> None:
        self._state = state
        self.since = self._loop.time()

    def _go_on(self) -> None:
        """Work off what has been received, up to a request that has to wait for its answer."""
        while self._request is None and self._state is not _State.ENDING:
            match self._reader.next_event():
                case Request() as request:
                    self._begin(request)
                case None:
                    if self._reader.closed:
                        self._state = _State.ENDING
                        self.transport.close()
                    elif self._peer_ended:
                        self._reader.close()
                    else:
                        self._wait_for_more()
                        return
                case ContinueExpected():
                    self._write(CONTINUE)
                case Fault(status, reason):
                    self._refuse(status, reason)

    def _wait_for_more(self) -> None:
        state = _State.RECEIVING if self._reader.pending else _State.IDLE
        if self._state is not state:
            self._enter(state)

    def _begin(self, request: Request) -> None:
        """Answer what holds no report at once, and hold everything else."""
        self._request = request
        if request.method not in METHODS:
            self._end(405, f"reports are taken with {' or '.join(METHODS[:2])}")
        elif not request.body and _EVENT_IN_QUERY.search(request.target):
            self._refuse(400, "the event is in the query: set the webhook's request method to POST")
        elif not request.body:
            self._answer(request)
        elif reason := self._refusal_of(request):
            self._refuse(403, reason)
        else:
            self._enter(_State.HELD)
            self._connections.hold(self)

    def _refusal_of(self, request: Request) -> str:
        """Find out whose report a request brings; return why it is nobody's."""
        admitted = self.entrance.admit(request.target, request.signature, request.body)
        if isinstance(admitted, NotAdmitted):
            return admitted.reason
        self.admitted = admitted
        return ""

    def _answer(self, request: Request) -> None:
        if not request.whole:
            self._end(400, "the connection ended in the middle of the request")
        elif not request.keep_alive or self._connections.stopping:
            self._end(200)
        else:
            self._write_answer(200, keep_alive=True)
            self._request = None
            self._enter(_State.IDLE)

    def _take_custody(self, body: bytes) -> None:
        received_at = utc_milliseconds(time.time())
        origin, source = self.admitted
        stream = self._intake.open_stream(origin, self.peer, source)
        stream.receive(body, received_at)
        stream.close("the request ended in the middle of a report", received_at)
        self._intake.arrived()

    def _refuse(self, status: int, reason: str) -> None:
        self._connections.refused(self, status, reason)
        self._end(status, reason)

    def _end(self, status: int, sentence: str = "") -> None:
        """Send the last answer, and read on until the peer has had time to read it.

        To close at once with bytes unread would reset the connection, and take the answer along.
        """
        self._write_answer(status, sentence, keep_alive=False)
        self._request = None
        self._connections.release(self)
        self._enter(_State.ENDING)
        transport = self.transport
        if self._peer_ended:
            transport.close()
        elif not transport.is_closing():
            transport.write_eof()
            if self._is_paused:
                self._is_paused = False
                transport.resume_reading()

    def _write_answer(self, status: int, sentence: str = "", *, keep_alive: bool) -> None:
        without_body = self._request is not None and self._request.method == "HEAD"
        date = _date(int(time.time()))
        self._write(make_answer(status, date, sentence, keep_alive, without_body))

    def _write(self, part: bytes) -> None:
        if not self.transport.is_closing():  # uvloop raises where asyncio passes over it
            self.transport.write(part)

    def _refuse_stranger(self) -> None:
        self._end(403, "this address is no configured PBX")

    def _give_up_receiving(self) -> None:
        if self.is_stranger:
            self.transport.abort()
            return
        self._keep_rest()
        reason = f"the request took longer than {self._connections.bounds.request:g} s"
        self._refuse(408, reason)

    def _keep_rest(self) -> None:
        """Take custody of what will not be answered with a 200, whole or (for quarantine) torn.

        Without room it is dropped: it is not answered, so the PBX sends it again.
        """
        if self._intake.waiting.full:
            if self._state is _State.HELD:
                self._tell_gap()
            return
        rest: Event | None = None
        if self._state is _State.HELD:
            rest = self._request
        elif self._state is _State.RECEIVING:
            self._reader.close()
            rest = self._reader.next_event()
        if isinstance(rest, Request) and rest.body and not self._refusal_of(rest):
            self._take_custody(rest.body)

    def _tell_gap(self) -> None:
        """Have the PBX asked for its history: how often it sends a report again is not known."""
        for pbx in self.admitted.origin.names:
            self._intake.gaps.missed(pbx)


def _answer(connections: Iterable[HttpConnection]) -> None:
    for connection in connections:
        connection.answer()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Spell a time (Unix seconds) as HTTP does."""
    return formatdate(second, usegmt=True)
