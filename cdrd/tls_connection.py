"""Turns a socket's ciphertext into the bytes of the connection above it, and what that writes back.

The rule that must stay true: what has been read from the socket is decrypted and handed up at once.
So nothing rests here while reading is paused, when the peer has ended, or at a stop; uvloop's own
layer drops it then. And a stranger gets no handshake, and nothing is made for one.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from cdrd.intake import Receiver, peer_of, unread_bytes
from cdrd.sizes import KIB
from cdrd.tls import names_in

HANDSHAKE_SECONDS: Final = 10.0
READ_BYTES: Final = 256 * KIB


class Gate(Protocol):
    """Who says which peers may begin, and is told which ones could not."""

    handshakes: "set[TlsConnection]"

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Tell whether a peer is a configured PBX; a stranger is counted."""

    def vouches(self, address: str, names: frozenset[str]) -> bool:
        """Tell whether a certificate may be shown from an address."""

    def handshake_failed(self, address: str, peer: str, reason: str) -> None:
        """Tell of a configured PBX that cannot be heard."""


class TlsConnection(asyncio.Transport, asyncio.Protocol):
    """A protocol to the socket below, and a transport to the connection above."""

    def __init__(
        self,
        context: ssl.SSLContext,
        accept: Callable[[], Receiver],
        gate: Gate,
        patience: float = HANDSHAKE_SECONDS,
    ) -> None:
        """``accept`` makes what receives the connection, once there is one."""
        super().__init__()
        self._context = context
        self._accept = accept
        self._gate = gate
        self._patience = patience
        self._below: asyncio.Transport
        self._tls: ssl.SSLObject
        self._above: Receiver | None = None  # until the hands are shaken
        self._deaf = True  # what arrives is nobody's
        self._peer_ended = False
        self._fault: ssl.SSLError | None = None

    # What the socket below calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a configured PBX's handshake, within a bound of time; refuse any other."""
        self._below = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if not self._gate.admits(transport):
            self._below.abort()
            return
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._context.wrap_bio(self._arrived, self._leaving, server_side=True)
        self._address, self._peer = peer_of(transport)
        self._gate.handshakes.add(self)
        self._deaf = False
        loop = asyncio.get_running_loop()
        self._limit = loop.call_later(self._patience, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Hand up what the bytes are in clear."""
        if self._deaf:
            return
        self._arrived.write(data)
        if self._above is None:
            self._shake_hands()
        if self._above is not None:
            self._read(self._above)

    def eof_received(self) -> bool:
        """End as the connection above wants: it may still have an answer to send."""
        return self._above is not None and not self._deaf and self._end_of_peer(self._above)

    def pause_writing(self) -> None:
        """Tell that the peer does not read what is written."""
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        """Tell that the peer reads again."""
        if self._above is not None:
            self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection above, where there is one."""
        self._deaf = True
        self._shaken()
        if self._above is not None:
            self._above.connection_lost(self._fault or exc)

    # What the connection above calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the context and the peer's certificate, or what the socket knows."""
        if name == "sslcontext":
            return self._context
        if name == "peercert":
            return self._tls.getpeercert()
        return self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Tell whether it is closed, or about to be."""
        return self._below.is_closing()

    def pause_reading(self) -> None:
        """Read no more from the socket; what is here is handed up all the same."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._below.resume_reading()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; once the end is written there are none."""
        if not self._deaf:
            self._tls.write(data)
            self._send()

    def can_write_eof(self) -> bool:
        """Tell that our side can end alone."""
        return True

    def write_eof(self) -> None:
        """End our side; what the peer still sends is passed over."""
        self._say_goodbye()
        self._below.write_eof()

    def close(self) -> None:
        """End both sides, once all that is written is sent."""
        self._say_goodbye()
        self._below.close()

    def abort(self) -> None:
        """End both sides at once."""
        self._deaf = True
        self._below.abort()

    # In between

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read."""
        return unread_bytes(self._below)

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:
            self._send()  # what we have against it
            self._refuse(_why(error))
        else:
            self._send()
            self._shaken()
            names = names_in(self._tls.getpeercert())
            if not self._gate.vouches(self._address, names):
                self._refuse(f"its certificate ({', '.join(sorted(names))}) is another PBX's")
                return
            self._above = self._accept()
            self._above.connection_made(self)

    def _shaken(self) -> None:
        """Wait for no handshake any more."""
        if self in self._gate.handshakes:
            self._gate.handshakes.discard(self)
            self._limit.cancel()

    def _refuse(self, reason: str) -> None:
        self._deaf = True
        self._gate.handshake_failed(self._address, self._peer, reason)
        self._below.close()

    def _give_up(self) -> None:
        if not self._deaf:
            self._refuse(f"no handshake within {self._patience:g} s")
        self._below.abort()

    def _read(self, above: Receiver) -> None:
        parts: list[bytes] = []
        try:
            while part := self._tls.read(READ_BYTES):  # a TLS record at a time
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLError as error:
            ended, self._fault = False, error
        if parts:
            above.data_received(b"".join(parts))
        self._send()
        if self._fault is not None:
            self.abort()
        elif ended and not self._deaf and not self._end_of_peer(above):
            self.close()

    def _end_of_peer(self, above: Receiver) -> bool:
        """Tell the connection above, once; return whether it stays open for an answer."""
        if self._peer_ended:
            return True
        self._peer_ended = True
        return bool(above.eof_received())

    def _say_goodbye(self) -> None:
        if not self._deaf:
            self._deaf = True
            with contextlib.suppress(ssl.SSLError):  # we do not wait for the peer's
                self._tls.unwrap()
            self._send()

    def _send(self) -> None:
        if (sent := self._leaving.read()) and not self._below.is_closing():
            self._below.write(sent)


def _why(error: ssl.SSLError) -> str:
    """Say what was wrong with a handshake in the fewest words that OpenSSL has."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return (error.reason or str(error)).lower().replace("_", " ")
