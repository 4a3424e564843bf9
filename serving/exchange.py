"""One answer on its way to one client: admission, deadline, disconnect, pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from starlette.responses import Response

from rag_fti.errors import Overloaded, RagFtiError
from rag_fti.protocols import Cancellation
from serving.admission import Pump
from serving.errors import ApiError, describe
from serving.middleware import ClientGone, Message, Receive, Scope, Send
from serving.services import Services

T = TypeVar("T")

Events = AsyncIterator[dict[str, Any]]


class Exchange:
    """Runs a blocking iterator for a request, and ends it when nobody waits any more.

    Args:
        services: The server's parts.
        receive: The request's ASGI ``receive``, its body read.
    """

    def __init__(self, services: Services, receive: Receive) -> None:
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + services.settings.serving.request_timeout_seconds
        self._gone = self._loop.create_task(_until_gone(receive))
        self._pump: Pump[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.cancellation = Cancellation()

    async def start(self, make: Callable[[], Iterator[Any]]) -> None:
        """Wait for a place and begin.

        Raises:
            Overloaded: If the queue is full.
            ClientGone: If the client left while it waited.
            ApiError: If the place did not come in time.
        """
        admission = self._services.admission
        acquire = self._loop.create_task(admission.acquire())
        try:
            await asyncio.wait(
                {acquire, self._gone},
                timeout=self._deadline - self._loop.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            if not acquire.done():
                acquire.cancel()
        if not acquire.done():
            self.close()
            raise ClientGone if self._gone.done() else _timeout()
        try:
            since = acquire.result()
        except Overloaded as error:
            self.close()
            raise ApiError(
                str(error),
                status=429,
                kind="rate_limit_error",
                code="overloaded",
                headers={"Retry-After": str(admission.retry_after())},
            ) from error
        self._pump = Pump(
            self._services.executor,
            make,
            cancellation=self.cancellation,
            on_finished=lambda: admission.release(since),
        )
        pump = self._pump
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
        if self._timer is not None:
            self._timer.cancel()
        self._gone.cancel()
        if self._pump is not None:
            self._pump.cancel()


async def run_blocking(services: Services, work: Callable[[], T]) -> T:
    """Run a blocking function on a request's place and thread.

    Raises:
        ApiError: With 429 if the queue is full.
    """
    admission = services.admission
    try:
        since = await admission.acquire()
    except Overloaded as error:
        raise ApiError(
            str(error),
            status=429,
            kind="rate_limit_error",
            code="overloaded",
            headers={"Retry-After": str(admission.retry_after())},
        ) from error
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(services.executor, work)
    finally:
        admission.release(since)


class EventStream(Response):
    """Server-sent events, ending with ``[DONE]``.

    Args:
        exchange: Closed when the response ends, however it ends.
        events: JSON objects to send.
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
                async for event in self._events:
                    await send(_event(json.dumps(event, allow_nan=False)))
            except RagFtiError as error:
                # The status line is out: the error becomes the last event.
                _, body, _ = describe(error)
                await send(_event(json.dumps(body)))
            except ClientGone:
                return
            await send(_event("[DONE]"))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._exchange.close()


def _event(data: str) -> Message:
    return {
        "type": "http.response.body",
        "body": f"data: {data}\n\n".encode(),
        "more_body": True,
    }


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
