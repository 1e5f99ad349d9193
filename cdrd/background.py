"""Turns coroutines into tasks that run beside everything else, until they are cancelled.

The rule that must stay true: a task that fails is a fault of ours, and never goes unseen.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

Work = Coroutine[Any, Any, None]
Result = TypeVar("Result")


class Background:
    """All tasks that run beside; ``fault`` gets the exception of the first that fails."""

    def __init__(self) -> None:
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work) -> asyncio.Task[None]:
        """Run something until it ends, or is ended."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """See to it that a task's failure is seen, and leave its end to others."""
        task.add_done_callback(self._ended)

    async def end(self, tasks: Iterable[asyncio.Task[None]] | None = None) -> None:
        """Cancel tasks, or all, and wait until they have ended."""
        ending = list(self._tasks if tasks is None else tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.fault.done():
            self.fault.set_exception(error)


async def to_its_end(
    work: Coroutine[Any, Any, Result], hurry: Callable[[], None] = lambda: None
) -> Result:
    """Do work that must not be left half done, also when we are cancelled meanwhile.

    ``hurry`` is called then, for what can be made to end early.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        hurry()
        await asyncio.gather(running, return_exceptions=True)
        raise
