"""How many requests run, how many wait, and how blocking work reaches the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from rag_fti.errors import Overloaded
from rag_fti.protocols import Cancellation

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Admission:
    """A bounded queue in front of a bounded number of running requests.

    Args:
        max_running: Requests that are worked on at once.
        max_waiting: Requests that may wait for that; one more is refused.
    """

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        self._slots = asyncio.Semaphore(max_running)
        self._max_running = max_running
        self._max_waiting = max_waiting
        self.running = 0
        self.waiting = 0
        self._seconds = 1.0

    async def acquire(self) -> float:
        """Wait for a place, in order of arrival.

        Returns:
            A token for :meth:`release`.

        Raises:
            Overloaded: If the queue is full.
        """
        if self._slots.locked() and self.waiting >= self._max_waiting:
            raise Overloaded(
                f"{self.running} requests are running and {self.waiting} wait, which is the limit."
            )
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        return time.monotonic()

    def release(self, since: float) -> None:
        """Give a place back."""
        self.running -= 1
        self._slots.release()
        # A moving average of how long a request holds its place, for Retry-After.
        self._seconds += 0.1 * (time.monotonic() - since - self._seconds)

    @property
    def idle(self) -> bool:
        """Whether nobody holds or waits for a place."""
        return self.running == 0 and self.waiting == 0

    def retry_after(self) -> int:
        """Seconds after which a place in the queue is likely free, at least 1."""
        return max(1, min(60, round(self._seconds * (1 + self.waiting) / self._max_running)))


class Pump(Generic[T]):
    """Runs a blocking iterator on a thread and hands its items to the event loop.

    Args:
        executor: Where it runs.
        make: Makes the iterator; called on the thread.
        cancellation: Raised by :meth:`cancel`; the iterator is expected to end soon after.
        on_finished: Called on the event loop once the thread has let go.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        make: Callable[[], Iterator[T]],
        *,
        cancellation: Cancellation,
        on_finished: Callable[[], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._cancellation = cancellation
        self._on_finished = on_finished
        self._future = executor.submit(self._run, make)
        self._future.add_done_callback(lambda _: self._call(self._on_finished))

    def cancel(self) -> None:
        """Nobody reads on: ask the iterator to end."""
        self._cancellation.cancel()
        self._future.cancel()

    def interrupt(self, reason: BaseException) -> None:
        """Make the reader see an error next; called on the event loop."""
        self._items.put_nowait(("error", reason))

    async def next(self) -> T | None:
        """The next item, or None after the last.

        Raises:
            BaseException: Whatever the iterator raised, or the reason of an interruption.
        """
        kind, value = await self._items.get()
        if kind == "error":
            raise value
        return None if kind == "end" else value

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                self._call(self._items.put_nowait, ("item", item))
            self._call(self._items.put_nowait, ("end", None))
        except BaseException as error:  # handed to the reader, whatever it is
            self._call(self._items.put_nowait, ("error", error))

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the process is going down
            logger.debug("an answer came after the server had stopped")
