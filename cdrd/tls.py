"""Turns ``[tls]`` into what our listeners speak TLS with.

The rule that must stay true: where a certificate is set nothing is received in clear text, and
where a client CA is set nobody is heard without a certificate of it.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdrd.config import Tls, secret_path
from cdrd.exits import ConfigError


def server_context(tls: Tls, config_path: Path) -> ssl.SSLContext | None:
    """Read the certificate and its key, or return None where there are none to be read.

    Raises ConfigError.
    """
    if not tls.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_certificate(context, tls, config_path)
    if tls.client_ca:
        client_ca = secret_path(tls.client_ca, config_path)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls: {client_ca} holds no certificate in PEM") from error
        except OSError as error:
            raise ConfigError(f"tls: {client_ca}: {_why(error)}") from error
    return context


def load_certificate(context: ssl.SSLContext, tls: Tls, config_path: Path) -> None:
    """Read the certificate and its key, for the handshakes from now on. Raises ConfigError."""
    certificate, key = (secret_path(name, config_path) for name in (tls.certificate, tls.key))
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls: {certificate} and {key} are no certificate with its key in PEM: {error.reason}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"tls: {certificate} and {key}: {_why(error)}") from error


def names_in(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the names of whom a peer's certificate is: its common name, and its DNS names."""
    told = certificate or {}
    subject = [pair for part in told.get("subject", ()) for pair in part]
    pairs = [*subject, *told.get("subjectAltName", ())]
    return frozenset(name for kind, name in pairs if kind in ("commonName", "DNS"))


def _no_passphrase() -> str:
    """Refuse an encrypted key, where OpenSSL would ask on the terminal."""
    raise ValueError("the key has a passphrase: store it without one, readable by cdrd alone")


def _why(error: OSError | ValueError) -> str:
    told = error.strerror if isinstance(error, OSError) else str(error)
    return told or type(error).__name__
