"""With a certificate nothing is received in clear text, with a client CA nobody without one."""

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cdrd.config import Tls
from cdrd.exits import ConfigError
from cdrd.simulate.reports import new_cdr
from cdrd.tls import server_context
from tests.running import (
    HQ,
    RunningDaemon,
    assert_accounted,
    cdrd,
    connect,
    count,
    rows,
    write_config,
)
from tests.test_http_listen import read_status, request

STARTED = 1571897930
LISTEN = 'http.listen = ["127.0.0.1:0"]\n'
TLS = '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
MUTUAL = TLS + 'client_ca = "ca.pem"\n'


@pytest.fixture
def daemon(directory: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(directory, LISTEN + HQ + TLS) as running:
        yield running
        assert not running.found("fault_caught")


def call(number: int) -> bytes:
    return new_cdr(number, "1.0.2", started=STARTED)


def secured(port: int, trusting: ssl.SSLContext) -> ssl.SSLSocket:
    return trusting.wrap_socket(connect(port), server_hostname="127.0.0.1")


def exchange(port: int, context: ssl.SSLContext, sent: bytes) -> int:
    """Send a request and read the status; raises what a peer that is cut off meets."""
    with secured(port, context) as sock:
        sock.sendall(sent)
        if not sock.recv(1):
            raise EOFError
        return 200


def test_reports_are_received_over_tls_streamed_and_posted(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    tcp, http = daemon.ports
    assert all(line["tls"] for line in daemon.found("listener_opened"))
    with secured(tcp, trusting) as sock:
        for number in range(100):
            sock.sendall(call(number))
        daemon.wait_for_calls(100)
    with secured(http, trusting) as sock:
        for number in range(100, 103):
            body = call(number)
            sock.sendall(request(body))
            assert read_status(sock) == 200
        sock.sendall(request(call(103), f"Content-Length: {len(call(103))}", "Connection: close"))
        assert read_status(sock) == 200
        assert sock.recv(1) == b""
    assert count(daemon.database) == 104
    status, stopped = daemon.stop()
    assert (status, stopped["stored"], stopped["quarantined"]) == (0, 104, 0)
    assert_accounted(stopped)


def test_what_comes_in_clear_text_is_never_read(daemon: RunningDaemon) -> None:
    for port in daemon.ports:
        with connect(port) as sock:
            sock.sendall(request(call(1)))
            with_alert = b""
            try:
                while chunk := sock.recv(1024):
                    with_alert += chunk
            except ConnectionResetError:
                pass
            assert b"HTTP" not in with_alert
    _, stopped = daemon.stop()
    assert (stopped["received"], count(daemon.database)) == (0, 0)


def test_what_is_received_before_sigterm_is_stored(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    with secured(daemon.port, trusting) as sock:
        sock.sendall(b"".join(map(call, range(2000))))
        daemon.wait_for_calls(1)
        _, stopped = daemon.stop()
    assert stopped["stored"] == count(daemon.database) >= 1
    assert_accounted(stopped)


def test_who_never_finishes_the_handshake_keeps_nobody_waiting(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    with connect(daemon.port), secured(daemon.port, trusting) as sock:
        sock.sendall(call(1))
        daemon.wait_for_calls(1)


def test_with_a_client_ca_who_shows_no_certificate_is_not_heard(
    directory: Path, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    with RunningDaemon(directory, LISTEN + HQ + MUTUAL) as daemon:
        tcp, http = daemon.ports
        stranger = ssl.create_default_context()
        authority.configure_trust(stranger)
        trustme.CA().issue_cert("pbx@example.com").configure_cert(stranger)
        for context in (trusting, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                exchange(http, context, request(call(1)))
        known = ssl.create_default_context()
        authority.configure_trust(known)
        authority.issue_cert("pbx@example.com").configure_cert(known)
        with secured(http, known) as sock:
            sock.sendall(request(call(2)))
            assert read_status(sock) == 200
        with secured(tcp, known) as sock:
            sock.sendall(call(3))
            daemon.wait_for_calls(2)
        _, stopped = daemon.stop()
    assert (stopped["received"], stopped["stored"]) == (2, 2)


def showing(authority: trustme.CA, *names: str, common_name: str = "") -> ssl.SSLContext:
    """Make what a PBX speaks TLS with whose certificate has these names."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    issued = authority.issue_cert(*names, common_name=common_name or None)
    issued.configure_cert(context)
    return context


def test_a_certificate_tells_which_pbx_of_an_address_it_is(
    directory: Path, authority: trustme.CA
) -> None:
    branch = HQ.replace("hq", "branch")
    context = showing(authority, "branch")
    with RunningDaemon(directory, LISTEN + HQ + branch + MUTUAL) as daemon:
        tcp, http = daemon.ports
        with secured(tcp, context) as streamed, secured(http, context) as posted:
            for number in (0, 2):
                streamed.sendall(call(number))
                posted.sendall(request(call(number + 1)))
                assert read_status(posted) == 200
                daemon.wait_for_calls(number + 2)
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for("reloaded", times=number // 2 + 1)
        with secured(http, showing(authority, "pbx.example")) as unnamed:
            unnamed.sendall(request(call(5)))
            assert read_status(unnamed) == 200
        daemon.stop()
    stored = rows(daemon.database)
    assert [row["pbx"] for row in stored] == ["branch"] * 4 + ["hq"]


def test_a_certificate_of_another_pbx_is_refused_and_told(
    directory: Path, authority: trustme.CA
) -> None:
    far = '[[pbx]]\nname = "far"\npeers = ["192.0.2.1"]\n'
    with RunningDaemon(directory, LISTEN + HQ + far + MUTUAL) as daemon:
        tcp, http = daemon.ports
        for port, context in (
            (tcp, showing(authority, "pbx@example.com", common_name="far")),
            (http, showing(authority, "far")),
        ):
            with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
                exchange(port, context, request(call(1)))
        _, stopped = daemon.stop()
    (told,) = daemon.found("handshake_failed", pbx="hq")
    assert told["reason"] == "its certificate (far) is another PBX's"
    assert (stopped["received"], daemon.found("peer_refused")) == (0, [])


# What is wrong with the files


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_context(Tls(), Path("config.toml")) is None


def encrypt(key: Path) -> None:
    """Put a passphrase on a key."""
    private = load_pem_private_key(key.read_bytes(), None)
    encrypted = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))


def test_each_fault_of_the_files_is_a_sentence(directory: Path, authority: trustme.CA) -> None:
    config = directory / "config.toml"
    (directory / "text").write_text("no certificate")
    authority.issue_cert("127.0.0.1").private_key_pem.write_to_path(directory / "other.key")
    encrypted = directory / "encrypted.key"
    encrypted.write_bytes((directory / "server.key").read_bytes())
    encrypt(encrypted)
    good = Tls(certificate="server.pem", key="server.key")
    for change, sentence in (
        ({"certificate": "gone"}, "No such file or directory"),
        ({"certificate": "text"}, "are no certificate with its key in PEM"),
        ({"key": "other.key"}, "KEY_VALUES_MISMATCH"),
        ({"key": "encrypted.key"}, "the key has a passphrase"),
        ({"client_ca": "gone"}, "gone: No such file or directory"),
        ({"client_ca": "text"}, "text holds no certificate in PEM"),
    ):
        with pytest.raises(ConfigError) as fault:
            server_context(good.model_copy(update=change), config)
        assert sentence in str(fault.value), change
    assert server_context(good, config) is not None


def test_a_certificate_that_is_not_there_ends_serve_with_78(tmp_path: Path) -> None:
    ended = cdrd("serve", "-c", write_config(tmp_path, HQ + TLS))
    assert ended.returncode == 78
    assert "server.pem" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_half_of_the_tls_settings_is_refused(tmp_path: Path) -> None:
    for table, sentence in (
        ('[tls]\ncertificate = "server.pem"\n', "certificate and key go together"),
        ('[tls]\nclient_ca = "ca.pem"\n', "client_ca needs certificate and key"),
    ):
        ended = cdrd("serve", "-c", write_config(tmp_path, HQ + table))
        assert ended.returncode == 78
        assert sentence in ended.stderr
