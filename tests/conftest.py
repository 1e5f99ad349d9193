"""What holds for every test, and the certificates of those about TLS."""

import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import trustme
from hypothesis import settings

from cdrd.store import Store
from tests.committing import opened

# A shell's background job is born deaf to Ctrl-C, and so would be every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine takes its time, and that is no fault.
settings.register_profile("cdrd", deadline=None)
settings.load_profile("cdrd")


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Open a store on a database that is thrown away, in a thread of this process."""
    async with opened(tmp_path / "cdr.sqlite3", "normal") as store:
        yield store


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def directory(tmp_path: Path, authority: trustme.CA) -> Path:
    """Make a directory with a server's certificate, its key, and the CA's certificate."""
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    for part in issued.cert_chain_pems:
        part.write_to_path(tmp_path / "server.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Make what a client trusts that knows the CA."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
