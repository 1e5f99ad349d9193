"""What holds for every test."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
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
