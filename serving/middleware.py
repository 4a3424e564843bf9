"""What every request passes: host and origin checks, size and time limits, ids, headers.

Plain ASGI throughout, so that streaming and disconnects work.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from serving.errors import ApiError, error_response, unexpected

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = b"x-request-id"
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class RequestGuard:
    """Outermost layer: request id, host, origin, body limits, unexpected errors, access log.

    Args:
        app: What is inside.
        allowed_hosts: Names of the ``Host`` header that are accepted; ``*`` accepts any.
        cors_origins: Origins other than the server's own that may write.
        max_bytes: Largest body.
        body_seconds: Longest time a body may take to arrive.
        observe: Called with method, route, status and seconds of every request.
    """

    def __init__(
        self,
        app: App,
        *,
        allowed_hosts: Sequence[str],
        cors_origins: Sequence[str],
        max_bytes: int,
        body_seconds: float,
        observe: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(cors_origins)
        self._max_bytes = max_bytes
        self._most_read = 8 * max_bytes
        self._body_seconds = body_seconds
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (REQUEST_ID, request_id.encode("ascii")),
                    *SECURITY_HEADERS,
                ]
            await send(message)

        try:
            _check_framing(scope, headers)
            self._check_host(headers)
            self._check_origin(scope, headers)
            replay = await self._read_body(headers, receive)
            await self._app(scope, replay, sending)
        except ClientGone:
            logger.info("%s: the client went away", request_id)
        except ApiError as error:
            await error_response(error)(scope, receive, sending)
        except Exception as error:  # the last line of defence; logged and answered
            if status:
                raise
            await unexpected(error)(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            self._observe(scope["method"], route, status or 499, seconds)
            logger.info(
                "%s %s %s %d %.3fs", request_id, scope["method"], route, status or 499, seconds
            )

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if "*" in self._hosts:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in self._hosts:
            raise ApiError(
                f"This server does not answer to the host {name[:100]!r}. "
                "Add it to serving.allowed_hosts.",
                status=403,
                code="host_not_allowed",
            )

    def _check_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse writes that a page of another site sends through a visitor's browser."""
        origin = headers.get(b"origin")
        if origin is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        text = origin.decode("latin-1")
        own = headers.get(b"host", b"").decode("latin-1").lower()
        try:
            theirs = urlsplit(text).netloc.lower()
        except ValueError:  # no address at all
            theirs = ""
        if text not in self._origins and (not theirs or theirs != own):
            raise ApiError(
                f"Pages of {text[:100]!r} may not call this server. "
                "Add the origin to serving.cors_origins.",
                status=403,
                code="origin_not_allowed",
            )

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the whole body within the limits; returns a ``receive`` that gives it again.

        What is too large is read on to a limit and forgotten, as most clients look for an answer
        only when they have sent everything.
        """
        declared = headers.get(b"content-length", b"0")
        length = int(declared) if declared.isdigit() else self._most_read + 1
        waits = b"expect" in headers  # sends no body before it is told to
        if length > (self._max_bytes if waits else self._most_read):
            raise self._too_large()
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._body_seconds):
                more = True
                while more and size <= self._most_read:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    size += len(message.get("body", b""))
                    if size <= self._max_bytes:
                        body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            if max(length, size) > self._max_bytes:
                raise self._too_large() from None
            raise ApiError(
                f"The body did not arrive within {self._body_seconds:g} seconds.",
                status=408,
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        if size > self._max_bytes:
            raise self._too_large()
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay

    def _too_large(self) -> ApiError:
        return ApiError(
            f"The body is larger than {self._max_bytes} bytes.",
            status=413,
            code="request_too_large",
            headers={"Connection": "close"},
        )


def _check_framing(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Refuse requests that a proxy in front may have read in another way."""
    both = b"transfer-encoding" in headers and b"content-length" in headers
    if both or scope["http_version"] not in ("1.0", "1.1", "2"):
        raise ApiError(
            "The request has both Transfer-Encoding and Content-Length."
            if both
            else "Use HTTP/1.1.",
            status=400,
            code="bad_framing",
            headers={"Connection": "close"},
        )


def _request_id(given: bytes | None) -> str:
    """The client's request id where it is harmless, else a new one."""
    text = (given or b"").decode("latin-1")
    return text if _REQUEST_ID_FORM.fullmatch(text) else uuid.uuid4().hex
