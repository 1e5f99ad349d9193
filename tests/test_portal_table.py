"""What answers in a portal's place brings nothing down."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from cdrd.portal_table import PortalLost, PortalRefused, PortalTable

PASSWORD = "secret of the portal"
OK = b"\0\0\0\2\0\0\0"
END = b"\xfe\0\0\2\0"


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def greeting() -> bytes:
    """Return the first packet of a server."""
    return packet(
        0,
        b"\x0a5.5.5-10.11.6-MariaDB\0\1\0\0\0abcdefgh\0\xff\xf7\x21\2\0\x0f\0\x15%bijklmnopqrst\0"
        b"mysql_native_password\0" % bytes(10),
    )


def column(name: bytes) -> bytes:
    texts = (b"def", b"portal2", b"ConferenceCall2", b"ConferenceCall2", name, name)
    shape = b"\x0c\x3f\0\x0b\0\0\0\x03\0\0\0\0\0"
    return b"".join(bytes([len(text)]) + text for text in texts) + shape


ANSWERS = b"".join(
    [
        greeting(),
        packet(2, OK),  # to the login
        packet(1, OK),  # to SET NAMES
        packet(1, b"\1") + packet(2, column(b"newest")) + packet(3, END),
        packet(4, b"\x02" + b"41") + packet(5, END),
    ]
)
"""A whole session: a login, and the newest CallID."""


@contextlib.contextmanager
def connected(answers: bytes) -> Iterator[tuple[PortalTable, socket.socket]]:
    """Let a table talk to what has said all its answers already, and then ended."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(opened(ours)) as table:
        theirs.sendall(answers)
        theirs.shutdown(socket.SHUT_WR)
        yield table, theirs


def opened(sock: socket.socket) -> PortalTable:
    return PortalTable(
        sock,
        host="portal.example",
        username="cdraccess",
        password=PASSWORD,
        database="portal2",
        tls=False,
    )


def test_a_session_is_read() -> None:
    with connected(ANSWERS) as (table, _):
        assert table.connect() == "5.5.5-10.11.6-MariaDB"
        assert table.newest() == 41


@pytest.mark.parametrize("byte", [0, 1, 251, 252, 254, 255])
def test_whatever_byte_is_another_it_is_an_answer_or_ours_to_tell(byte: int) -> None:
    for position in range(len(ANSWERS)):
        changed = bytearray(ANSWERS)
        changed[position] = byte
        with (
            connected(bytes(changed)) as (table, _),
            contextlib.suppress(PortalLost, PortalRefused),
        ):
            table.connect()
            assert isinstance(table.newest(), int | None)
            table.rows_after(0, 1)


def test_a_column_without_a_name_is_told() -> None:
    nameless = ANSWERS.replace(b"\x06newest\x06newest", b"\xfb\xfb")
    cut = len(ANSWERS) - len(nameless)
    length = len(column(b"newest"))
    nameless = nameless.replace(bytes([length, 0, 0, 2]), bytes([length - cut, 0, 0, 2]))
    with connected(nameless) as (table, _):
        table.connect()
        with pytest.raises(PortalLost, match="it does not answer as MySQL does"):
            table.newest()
