"""Turns a portal's MySQL into rows of its ConferenceCall2: the one module that knows the driver.

The rule that must stay true: it only ever reads, and nothing that a peer answers raises anything
but PortalLost and PortalRefused. Its methods block and are run in a thread.
"""

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import pymysql
from pymysql.constants import ER
from pymysql.converters import encoders
from pymysql.cursors import DictCursor

QUERY_SECONDS: Final = 30.0
"""Without a byte from the portal for so long, the connection is taken for lost."""

Fields = dict[str, object]

_REFUSALS: Final = frozenset(
    {
        ER.ACCESS_DENIED_ERROR,
        1698,  # access denied to an account without a password; MariaDB's for unix_socket
        ER.BAD_DB_ERROR,
        ER.COLUMNACCESS_DENIED_ERROR,
        ER.DBACCESS_DENIED_ERROR,
        ER.HOST_IS_BLOCKED,
        ER.HOST_NOT_PRIVILEGED,
        ER.NO_SUCH_TABLE,
        ER.NOT_SUPPORTED_AUTH_MODE,
        ER.TABLEACCESS_DENIED_ERROR,
    }
)
"""What stays as it is until someone mends the account, its grants or our configuration."""

_HANDING_OVER: Final = (
    "caching_sha2_password",  # by a key of RSA that whoever answers may have made
    "dialog",
    "mysql_clear_password",
    "sha256_password",  # likewise
)
"""Ways to log in that give the password to whoever answers, who chooses the way."""


class PortalLost(Exception):
    """The portal does not answer, or not any more: worth another try soon."""


class PortalRefused(Exception):
    """The portal does not let us read: somebody has to mend it."""


class NoTls(PortalLost):
    """The portal offers TLS and then cannot; old ones speak none that is still allowed."""


class PortalTable:
    """A connection to a portal's MySQL. Methods raise PortalLost and PortalRefused."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        host: str,
        username: str,
        password: str,
        database: str,
        tls: bool,
    ) -> None:
        # TLS takes the socket over; what is shut down here ends a wait there all the same.
        self._interrupt = socket.socket(fileno=os.dup(sock.fileno()))
        self._socket = sock
        self._connection = pymysql.connect(
            defer_connect=True,
            host=host,
            user=username,
            password=password.encode(),
            database=database,
            charset="utf8mb4",
            autocommit=True,  # else the first query's snapshot would be all that is ever seen
            conv=cast(Any, encoders),  # values stay text: the decoder of the files is theirs too
            use_unicode=False,  # one row with broken text must not cost its page
            cursorclass=DictCursor,
            read_timeout=QUERY_SECONDS,
            write_timeout=QUERY_SECONDS,
            ssl_disabled=not tls,  # if not: TLS where the portal offers it
            auth_plugin_map=dict.fromkeys(_HANDING_OVER, _refused_without_tls),
        )

    @property
    def tls(self) -> bool:
        """Whether the connection has TLS: against eavesdroppers, the certificate is not checked."""
        return bool(self._connection._secure)  # type: ignore[attr-defined]  # noqa: SLF001

    def connect(self) -> str:
        """Log in, and return the server's version."""
        with _translated():
            self._connection.connect(self._socket)
            return str(self._connection.get_server_info())  # type: ignore[no-untyped-call]

    def rows_after(self, call_id: int, limit: int) -> list[Fields]:
        """Read rows with a higher CallID, in order."""
        query = "SELECT * FROM ConferenceCall2 WHERE CallID > %s ORDER BY CallID LIMIT %s"
        return self._read(query, (call_id, limit))

    def rows_of(self, call_ids: Sequence[int]) -> list[Fields]:
        """Read the rows with these CallIDs that there still are, in order."""
        marks = ", ".join(["%s"] * len(call_ids))
        query = f"SELECT * FROM ConferenceCall2 WHERE CallID IN ({marks}) ORDER BY CallID"  # noqa: S608
        return self._read(query, call_ids)

    def newest(self) -> int | None:
        """Return the highest CallID, None where the table is empty."""
        rows = self._read("SELECT MAX(CallID) AS newest FROM ConferenceCall2", ())
        with _translated():
            newest = rows[0]["newest"]
            return int(newest) if isinstance(newest, bytes) else None

    def interrupt(self) -> None:
        """End whatever a thread waits for; the connection is of no use after it."""
        with contextlib.suppress(OSError):
            self._interrupt.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection without asking the portal."""
        self.interrupt()
        self._interrupt.close()
        with contextlib.suppress(pymysql.Error, OSError):
            self._connection.close()
        self._socket.close()

    def _read(self, query: str, values: Sequence[int]) -> list[Fields]:
        with _translated(), self._connection.cursor() as cursor:
            cursor.execute(query, values)
            rows: Any = cursor.fetchall()
            return list(rows)


class _Refusal:
    """Stands in the driver for a way to log in that is not taken."""

    def authenticate(self, packet: object) -> None:
        """Refuse, and send nothing."""
        del packet
        raise pymysql.OperationalError(
            ER.NOT_SUPPORTED_AUTH_MODE,
            "it asks for the password itself over a connection without TLS: give it a certificate,"
            " or the account mysql_native_password",
        )


def _refused_without_tls(connection: Any) -> _Refusal | None:
    """Return what stands for a way to log in; None is the driver's own."""
    return None if connection._secure else _Refusal()  # noqa: SLF001


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except pymysql.MySQLError as error:
        if isinstance(getattr(error, "original_exception", None), ssl.SSLError):
            raise NoTls(_sentence(error)) from error
        if error.args and error.args[0] in _REFUSALS:
            raise PortalRefused(_sentence(error)) from error
        raise PortalLost(_sentence(error)) from error
    except RuntimeError as error:  # a way to log in that the driver needs another package for
        raise PortalRefused(str(error)) from error
    except Exception as error:  # the driver raises most kinds, Exception itself too, for bad bytes
        raise PortalLost(f"it does not answer as MySQL does: {error!r}") from error


def _sentence(error: pymysql.MySQLError) -> str:
    return str(error.args[-1]) if error.args else repr(error)
