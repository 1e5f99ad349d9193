"""Turns functions of a ``sqlite3.Connection`` into work in order, in a thread of its own.

The rule that must stay true: one connection, in one thread, does what it is asked for in the order
in which it is asked, each function whole.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, Self, TypeVar

import aiosqlite

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Connect = Callable[[], sqlite3.Connection]


class Connection(Protocol):
    """A database connection that works elsewhere, in a thread or in a process of its own."""

    @property
    def ended(self) -> bool:
        """Whether it can do nothing any more, by no will of ours."""

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run a function of the connection; raises what it raises."""

    async def close(self) -> object:
        """Close it once all that it was asked for is done; return what is known of its end."""


class ThreadConnection(aiosqlite.Connection):
    """aiosqlite's connection, able to run a whole transaction in one trip to its thread."""

    ended = False

    @classmethod
    async def open(cls, connect: Connect) -> Self:
        """Open a connection in a thread of its own; raises what ``connect`` raises."""
        connection = cls(connect, iter_chunk_size=64)
        try:
            await connection
        except BaseException:
            await asyncio.to_thread(connection._thread.join)  # it must not outlive us
            raise
        return connection

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run a function of the connection; raises what it raises."""
        execute: Callable[..., Awaitable[Result]] = self._execute
        return await execute(function, self._conn, *args, **kwargs)
