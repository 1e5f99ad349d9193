"""Turns what the configuration says of a PBX's web API into who we are to it, and what it may be.

The rule that must stay true: a PBX is never spoken to over TLS without a check that it is the one.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NoReturn

from cdrd.config import Events, History, read_secret, secret_path
from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.sizes import MIB

Family = Literal["S-Series", "P-Series", ""]
"""Which interfaces a PBX has; the empty text: not known."""


class Unreachable(Exception):
    """A PBX's API gives no answer that can be used; the text says why, and what to do."""


class Unanswered(Unreachable):
    """A PBX was asked and gave no whole answer: it may have done what was asked."""


class Denied(Unreachable):
    """A PBX answers with an HTTP status that denies us what we ask; a login is refused with it."""


class LoginRefused(Exception):
    """A PBX refused user or password, or has locked the account: it counts for the guard."""


class NotOffered(Exception):
    """A PBX has no such interface: asking for it counts as nothing."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a PBX's certificate is checked by, beside the system's certificates.

    ``ca_file``: the certificates of a CA; the PBX's has to name the host that is spoken to.
    ``fingerprint``: the SHA-256 of the PBX's certificate in hexadecimal, which alone counts then.
    """

    ca_file: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are to a PBX; the password is read anew for every login."""

    username: str
    read_password: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a PBX may take, in seconds, and how much it may answer, in bytes."""

    connect: float = 10
    answer: float = 30  # to a request, connecting included
    download: float = 600  # likewise, but for the time in which we take what has come
    answer_bytes: int = 32 * MIB  # 10,000 rows of a P-Series page have some 10 MiB
    download_bytes: int = 256 * MIB


async def keep_holding(
    hold_one: Callable[[], Awaitable[None]],
    back_off: BackOff,
    log: Logger,
    *,
    pbx: str,
    address: str,
) -> NoReturn:
    """Come back whenever what is held of a PBX ends, or cannot be got; later each time."""
    log = log.bind(pbx=pbx, address=address)
    while True:
        try:
            await hold_one()
        except LoginRefused as error:
            # What a PBX says is no fault of ours, to be traced.
            log.error("login_refused", advice=str(error))  # noqa: TRY400
        except (Unreachable, NotOffered, OSError, ValueError) as error:
            # OSError, ValueError: a password that cannot be read, or is of two lines.
            log.warning("pbx_unreachable", error=str(error))
        await asyncio.sleep(back_off.wait())


def account_of(settings: Events | History, config_path: Path) -> Account:
    """Return the account that a table of the configuration names."""
    return Account(settings.username, partial(read_secret, settings.password_file, config_path))


def trust_of(settings: Events | History, config_path: Path) -> Trust:
    """Return the trust that a table of the configuration gives."""
    named = settings.ca_file
    return Trust(str(secret_path(named, config_path)) if named else "", settings.fingerprint)


@lru_cache(maxsize=64)  # reading the system's certificates takes its time
def client_context(ca_file: str) -> ssl.SSLContext:
    """Trust the system's certificates (SSL_CERT_FILE counts), and a CA's beside them.

    Raises Unreachable.
    """
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError as error:
            raise Unreachable(f"ca_file {ca_file} holds no certificate in PEM") from error
        except OSError as error:
            raise Unreachable(f"ca_file {ca_file} cannot be read: {error.strerror}") from error
    return context


def base_of(events: Events) -> str:
    """Return the base URL of the API that events come from."""
    return f"{'https' if events.tls else 'http'}://{events.address}"


def family_of(events: Events | None) -> Family:
    """Tell by the way a PBX delivers which interfaces it has."""
    if events is None:
        return ""
    return "S-Series" if events.kind in ("tcp", "http") else "P-Series"
