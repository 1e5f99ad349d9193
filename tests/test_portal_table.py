"""What answers in a portal's place gets no password and brings nothing down."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import trustme

from cdrd.portal_table import PortalLost, PortalRefused, PortalTable
from tests.running import DEADLINE_SECONDS

PASSWORD = "secret of the portal"
SWITCH = b"\xfe%s\0abcdefghijklmnopqrst\0"
MORE = b"\x01"
OK = b"\0\0\0\2\0\0\0"
END = b"\xfe\0\0\2\0"
TLS = 1 << 11


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def greeting(plugin: bytes = b"mysql_native_password", *, tls: bool = False) -> bytes:
    """Return the first packet of a server."""
    capabilities = 0x000F_F7FF | (TLS if tls else 0)
    low, high = (capabilities & 0xFFFF).to_bytes(2, "little"), b"\x0f\0"
    return packet(
        0,
        b"\x0a5.5.5-10.11.6-MariaDB\0\1\0\0\0abcdefgh\0%b\x21\2\0%b\x15%bijklmnopqrst\0%b\0"
        % (low, high, bytes(10), plugin),
    )


def column(name: bytes) -> bytes:
    texts = (b"def", b"portal2", b"ConferenceCall2", b"ConferenceCall2", name, name)
    shape = b"\x0c\x3f\0\x0b\0\0\0\x03\0\0\0\0\0"
    return b"".join(bytes([len(text)]) + text for text in texts) + shape


def session(name: bytes, cell: bytes) -> bytes:
    """Return all that a server says: to a login, and to a query that finds one cell."""
    return b"".join(
        [
            greeting(),
            packet(2, OK),  # to the login
            packet(1, OK),  # to SET NAMES
            packet(1, b"\1") + packet(2, column(name)) + packet(3, END),
            packet(4, cell) + packet(5, END),
        ]
    )


ANSWERS = session(b"newest", b"\x02" + b"41")


@contextlib.contextmanager
def connected(answers: bytes, *, tls: bool = False) -> Iterator[tuple[PortalTable, socket.socket]]:
    """Let a table talk to what has said all its answers already, and then ended."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(opened(ours, tls=tls)) as table:
        theirs.sendall(answers)
        theirs.shutdown(socket.SHUT_WR)
        yield table, theirs


def opened(sock: socket.socket, *, tls: bool) -> PortalTable:
    return PortalTable(
        sock,
        host="portal.example",
        username="cdraccess",
        password=PASSWORD,
        database="portal2",
        tls=tls,
    )


def received(sock: socket.socket) -> bytes:
    """Return all that was sent to a peer whose other end is closed."""
    return b"".join(iter(lambda: sock.recv(4096), b""))


def test_a_session_is_read() -> None:
    with connected(ANSWERS) as (table, _):
        assert table.connect() == "5.5.5-10.11.6-MariaDB"
        assert table.newest() == 41
        assert not table.tls


# The password


@pytest.mark.parametrize(
    ("greeted", "asked"),
    [
        (b"mysql_native_password", SWITCH % b"mysql_clear_password"),
        (b"mysql_native_password", b"\xfedialog\0\2Password: "),
        (b"mysql_native_password", SWITCH % b"sha256_password"),
        (b"mysql_native_password", SWITCH % b"caching_sha2_password"),
        (b"sha256_password", MORE + b"-----BEGIN PUBLIC KEY-----"),
        (b"caching_sha2_password", MORE + b"\x04"),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_without_tls_the_password_is_not_handed_over(
    greeted: bytes, asked: bytes, *, tls: bool
) -> None:
    """``tls``: whether we want it; the server does not offer it."""
    more = packet(4, MORE + b"-----BEGIN PUBLIC KEY-----")
    with connected(greeting(greeted) + packet(2, asked) + more, tls=tls) as (table, peer):
        with pytest.raises(PortalRefused, match="the password itself over a connection without T"):
            table.connect()
        table.close()
        sent = received(peer)
    assert PASSWORD.encode() not in sent
    assert len(sent) == 4 + int.from_bytes(sent[:3], "little")  # its first answer alone


def test_a_server_may_name_another_way_first() -> None:
    """MySQL 8 greets with its default, also where the account has the old one."""
    greeted = greeting(b"caching_sha2_password")
    native = packet(2, SWITCH % b"mysql_native_password") + packet(4, OK) + packet(1, OK)
    with connected(greeted + native) as (table, _):
        table.connect()


def test_with_tls_an_account_may_need_it() -> None:
    sent: list[bytes] = []
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(opened(ours, tls=True)) as table:
        answering = threading.Thread(target=_answer_in_tls, args=(theirs, sent))
        answering.start()
        table.connect()
        answering.join(DEADLINE_SECONDS)
        assert table.tls
    assert sent[1] == packet(4, PASSWORD.encode() + b"\0")


def _answer_in_tls(sock: socket.socket, sent: list[bytes]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("portal.example").configure_cert(context)
    sock.settimeout(DEADLINE_SECONDS)
    sock.sendall(greeting(tls=True))
    sock.recv(4 + 32)
    with context.wrap_socket(sock, server_side=True) as tls:
        for answer in (packet(3, SWITCH % b"mysql_clear_password"), packet(5, OK), packet(1, OK)):
            sent.append(tls.recv(4096))
            tls.sendall(answer)


# What is no answer


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
