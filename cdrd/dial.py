"""Turns a PBX that is to be dialled into a connection that stays: log in, read, come back.

The rule that must stay true: on any break we come back, later each time, and a password that is
refused is never tried a fifth time in 10 minutes.
"""

import asyncio
import socket
import time
from typing import Final, cast

from cdrd.address import parse_address
from cdrd.intake import Adopted, Intake, PeerConnection
from cdrd.kept import Passed, digest
from cdrd.log import Logger
from cdrd.login import BackOff, LoginAnswer, Verdict, login_block
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import Account, LoginRefused
from cdrd.sender import Origin, Sender
from cdrd.source import DIAL

CONNECT_SECONDS: Final = 10.0
LOGIN_SECONDS: Final = 10.0
UNANSWERED_SECONDS: Final = 220.0
"""Between logins that are cut off without an answer, from the second on: they may be refusals, and
four of them in 10 minutes are still none too many; but a relay in front of the PBX does so too."""

STEADY_SECONDS: Final = 30.0
"""A connection that lasted this long makes the next wait short again."""


class DialledConnection(PeerConnection):
    """A connection that we hold to a PBX: a login first, then the stream."""

    def __init__(
        self, intake: Intake, origin: Origin, login: bytes, adopted: Adopted | None = None
    ) -> None:
        """``adopted``: the connection was kept for us, and we are logged in."""
        super().__init__(intake, adopted)
        self._origin = origin
        self._login = login
        self._answer: LoginAnswer | None = LoginAnswer()
        loop = asyncio.get_running_loop()
        self.verdict: asyncio.Future[Verdict] = loop.create_future()
        self.answered = False
        self.lost: asyncio.Future[str] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Log in, unless the PBX has reset the connection by now: then it has no peer any more."""
        if transport.get_extra_info("peername") is None:
            self.transport = cast(asyncio.Transport, transport)
            self._answer = None
            self.verdict.set_exception(ConnectionResetError("reset before the login"))
            return
        self.begin(transport, self._origin, DIAL)
        if self._adopted is None:
            self.transport.write(self._login)
        else:
            self.decide(Verdict.ACCEPTED)

    def data_received(self, data: bytes | memoryview) -> None:
        """Read the answer first; the stream passes over its text, and loses nothing behind it."""
        if self._answer is not None:
            self.answered = True
            verdict = self._answer.receive(data)
            if verdict is Verdict.REFUSED:
                self.decide(verdict)
                return
            if verdict is Verdict.ACCEPTED:
                self.decide(verdict)
        super().data_received(data)

    def decide(self, verdict: Verdict) -> None:
        """Settle what the PBX said of the login."""
        if self._answer is not None:
            self._answer = None
            self.verdict.set_result(verdict)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the stream, where there was one."""
        if hasattr(self, "stream"):
            super().connection_lost(exc)

    def ended(self, reason: str) -> None:
        """Wake whoever holds the connection; an end before an answer may have been a refusal."""
        self.decide(Verdict.REFUSED)
        if not self.lost.done():  # at a stop, who waited for it was cancelled, and it with them
            self.lost.set_result(reason)


class Dialer:
    """Keeps one connection to one PBX."""

    def __init__(
        self,
        sender: Sender,
        address: str,
        account: Account,
        *,
        intake: Intake,
        log: Logger,
        guard: LoginGuard,
    ) -> None:
        self.pbx = sender.name
        self._sender = sender
        self._address = address
        self._account = account
        self._intake = intake
        self._log = log.bind(pbx=sender.name, address=address)
        self._guard = guard
        self._back_off = BackOff()
        self._unanswered = 0  # logins in a row that were cut off without an answer
        self._owner = f"{sender.name}\0{address}\0{account.username}"
        self._kept: tuple[socket.socket, Adopted] | None = None
        self.connected = False

    def adopt(self, passed: Passed) -> None:
        """Go on with the connection that was kept for us, if there is one."""
        for name, sock, rest in passed.take(f"{DIAL}-{digest(self._owner)}"):
            self._kept = sock, Adopted(name, rest)

    async def run(self) -> None:
        """Hold the connection until cancelled."""
        while True:
            try:
                await self._hold_one()
            except LoginRefused:
                self._log.error("login_refused", advice="check username and password_file")
                if self._unanswered > 1:
                    await asyncio.sleep(UNANSWERED_SECONDS)
            except (OSError, ValueError) as error:
                # ValueError: a password of two lines, a host name that cannot be one.
                self._log.warning("pbx_unreachable", error=str(error) or "no answer in time")
            await asyncio.sleep(self._back_off.wait())

    async def _hold_one(self) -> None:
        connection: DialledConnection | None = None
        try:
            if self._kept is not None:
                (sock, adopted), self._kept = self._kept, None
                connection = await self._go_on(sock, adopted)
                await self._await_verdict(connection)
                await self._follow(connection)
                return
            async with self._guard.attempt() as login:
                connection = await self._connect()
                login.unsure = not await self._await_verdict(connection)
                answers = connection.stream.understood  # to the login, if we are unsure
            try:
                await self._follow(connection)
            finally:  # cancelled too, or each stop would leave a login counted
                if login.unsure and connection.stream.understood > answers:
                    await self._guard.take_back(login)
        finally:
            self.connected = False
            if connection is not None:
                connection.transport.close()

    async def _connect(self) -> DialledConnection:
        host, port = parse_address(self._address)
        password = self._account.read_password()
        login = login_block(self._account.username, password)
        origin = Origin([self._sender])
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await loop.create_connection(
                lambda: DialledConnection(self._intake, origin, login), host, port
            )
        return connection

    async def _go_on(self, sock: socket.socket, adopted: Adopted) -> DialledConnection:
        origin = Origin([self._sender])
        _, connection = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: DialledConnection(self._intake, origin, b"", adopted), sock
        )
        return connection

    async def _await_verdict(self, connection: DialledConnection) -> bool:
        """Wait for what the PBX says of the login; tell whether it has. Raises LoginRefused."""
        await asyncio.wait([connection.verdict], timeout=LOGIN_SECONDS)
        is_decided = connection.verdict.done()
        if not is_decided:
            # The answer's form is documented nowhere: a PBX may well stream without any.
            self._log.warning("login_unanswered", seconds=LOGIN_SECONDS)
            connection.decide(Verdict.ACCEPTED)
        is_refused = connection.verdict.result() is Verdict.REFUSED
        self._unanswered = self._unanswered + 1 if is_refused and not connection.answered else 0
        if is_refused:
            raise LoginRefused
        return is_decided

    async def _follow(self, connection: DialledConnection) -> None:
        began = time.monotonic()
        self.connected = True
        connection.keep(DIAL, self._owner)
        self._log.info("pbx_connected", peer=connection.peer)
        self._intake.gaps.mended(self.pbx)
        reason = await connection.lost
        self._intake.gaps.broke(self.pbx)
        self._log.warning(
            "pbx_disconnected",
            peer=connection.peer,
            reports=connection.stream.reports,
            reason=reason,
        )
        if time.monotonic() - began >= STEADY_SECONDS or connection.stream.understood:
            self._back_off.reset()
