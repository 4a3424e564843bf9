"""One answer on its way to one client: admission, deadline, disconnect, pieces."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from rag_fti.errors import Overloaded, RagFtiError
from rag_fti.protocols import Cancellation
from serving.admission import Admission, Pump
from serving.errors import ApiError, describe, unexpected_body
from serving.middleware import ClientGone, Message, Receive, Scope, Send
from serving.services import Services

logger = logging.getLogger(__name__)

T = TypeVar("T")

Lane = Literal["requests", "writes", "probes"]
"""What a request queues with. Writes to the store go one after the other and would otherwise
take every place; probes (health, metrics) are to be answered when all places are taken."""

Events = AsyncIterator[list[dict[str, Any]]]


class Exchange:
    """Runs a blocking iterator for a request, and ends it when nobody waits any more.

    Args:
        services: The server's parts.
        receive: The request's ASGI ``receive``, its body read.
        lane: Which queue it waits in. A write that has begun has no time limit: it cannot be
            taken back.
    """

    def __init__(self, services: Services, receive: Receive, *, lane: Lane = "requests") -> None:
        self._services = services
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self.since = time.monotonic()
        self._deadline = self._loop.time() + services.settings.serving.request_timeout_seconds
        self._gone = self._loop.create_task(_until_gone(receive))
        self._pump: Pump[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.cancellation = Cancellation()
        services.exchanges.add(self)

    def __repr__(self) -> str:
        stage = "waits for a place" if self._pump is None else "is worked on"
        return f"<{self._lane}: {stage}, {time.monotonic() - self.since:.1f} s>"

    async def start(self, make: Callable[[], Iterator[Any]]) -> None:
        """Wait for a place and begin.

        Raises:
            Overloaded: If the queue is full.
            ClientGone: If the client left while it waited.
            ApiError: If the place did not come in time.
        """
        admission = self._services.lanes[self._lane]
        acquire = self._loop.create_task(admission.acquire())
        try:
            await asyncio.wait(
                {acquire, self._gone},
                timeout=self._deadline - self._loop.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not acquire.done():
                raise ClientGone if self._gone.done() else _timeout()
            since = acquire.result()
            pump = self._pump = Pump(
                self._services.executor,
                make,
                cancellation=self.cancellation,
                on_finished=lambda: admission.release(since),
            )
        except Overloaded as error:
            raise ApiError(
                str(error),
                status=429,
                kind="rate_limit_error",
                code="overloaded",
                headers={"Retry-After": str(admission.retry_after())},
            ) from error
        finally:
            if self._pump is None:  # a place that came too late, or was no use, goes back
                acquire.add_done_callback(lambda task: _give_back(admission, task))
                acquire.cancel()
        if self._lane != "writes":
            self._timer = self._loop.call_at(self._deadline, lambda: pump.interrupt(_timeout()))
        self._gone.add_done_callback(
            lambda task: None if task.cancelled() else pump.interrupt(ClientGone())
        )

    async def next(self) -> Any:
        """The next item, or None after the last."""
        assert self._pump is not None
        return await self._pump.next()

    def close(self) -> None:
        """Let go of everything; may be called at any time and twice."""
        self._services.exchanges.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._gone.cancel()
        if self._pump is not None:
            self._pump.cancel()


async def run_blocking(request: Request, work: Callable[[], T], *, lane: Lane = "requests") -> T:
    """Run a blocking function for a request on a place and thread of its lane.

    Raises:
        ApiError: With 429 if the queue is full, with 504 if it took too long.
        ClientGone: If the client left; what had begun ends on its own.
    """
    exchange = Exchange(request.app.state.services, request.receive, lane=lane)
    try:
        await exchange.start(lambda: iter((work(),)))
        result: T = await exchange.next()
        return result
    finally:
        exchange.close()


class EventStream(Response):
    """Server-sent events, ending with ``[DONE]``.

    Args:
        exchange: Closed when the response ends, however it ends.
        events: JSON objects to send; those of a list go out in one piece.
    """

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, events: Events) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._exchange = exchange
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come."""
        headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                async for ready in self._events:
                    await send(_body(json.dumps(event, allow_nan=False) for event in ready))
            # The status line is out: an error becomes the last event.
            except RagFtiError as error:
                status, body, _ = describe(error)
                if status >= 500:
                    logger.error("%s in a stream: %s", type(error).__name__, error)
                await send(_body([json.dumps(body)]))
            except ClientGone:
                return
            except Exception as error:  # a bug; logged and answered
                await send(_body([json.dumps(unexpected_body(error))]))
            await send(_body(["[DONE]"], more=False))
        finally:
            self._exchange.close()


def _body(events: Iterable[str], *, more: bool = True) -> Message:
    return {
        "type": "http.response.body",
        "body": "".join(f"data: {event}\n\n" for event in events).encode(),
        "more_body": more,
    }


def _give_back(admission: Admission, task: asyncio.Task[float]) -> None:
    if not task.cancelled() and task.exception() is None:
        admission.release(task.result())


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _timeout() -> ApiError:
    return ApiError(
        "The request took longer than serving.request_timeout_seconds.",
        status=504,
        kind="server_error",
        code="timeout",
    )
