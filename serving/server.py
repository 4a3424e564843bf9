"""Running the application: sockets, signals, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rag_fti.config import Settings
from rag_fti.errors import ConfigError, InferenceError
from serving.app import create_app
from serving.services import build_services

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024


def serve(settings: Settings, *, announce: Callable[[str, str], None]) -> None:
    """Serve until a signal asks to stop; running answers are finished first.

    Args:
        settings: The whole configuration.
        announce: Called with the address and the model once requests are accepted.

    Raises:
        ConfigError: If the address is not allowed.
        InferenceError: If the port is taken.
        RagFtiError: If stores or model cannot be opened.
    """
    check_exposure(settings)
    listener = listen(settings.serving.host, settings.serving.port)
    with contextlib.closing(listener):
        services = build_services(settings)
        app = create_app(settings, services)
        config = server_config(app, settings)
        server = _AnnouncingServer(config, lambda: announce(address_of(listener), model()))

        def model() -> str:
            return services.pool.current().get("", "")

        asyncio.run(server.serve(sockets=[listener]))


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=guarded_protocol(settings.serving.body_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(settings.serving.shutdown_seconds) or 1,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


class _AnnouncingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal that was asked to stop by has been obeyed: do not die of it afterwards."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._ready()


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond this machine without keys.

    Raises:
        ConfigError: If that is asked for.
    """
    host = settings.serving.host
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and settings.serving.keys_file is None:
        raise ConfigError(
            f"serving.host is {host}, which others can reach, and there are no API keys.",
            next_step="Make one with rag-fti keys add NAME and set serving.keys_file, or listen "
            "on 127.0.0.1.",
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InferenceError: If the port is taken.
        ConfigError: If the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: without it every
    # answer waits 40 ms for the client's delayed acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InferenceError(
                f"Port {port} of {host} is in use by another program.",
                next_step="Choose another with --port, or 0 for any free one.",
            ) from error
        raise ConfigError(
            f"Cannot listen on {host} port {port}: {error}.",
            next_step="Check serving.host and serving.port.",
        ) from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


class GuardedProtocol(H11Protocol):
    """HTTP that drops connections of clients that leave it waiting.

    That is for the head of a request, or for them to read on in a long response.
    """

    patience_seconds: ClassVar[float] = 30.0
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the clock when the head is complete; start it for a further request's head."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to: start a clock."""
        super().pause_writing()
        self._stop_read_timer()
        self._read_timer = self.loop.call_later(self.patience_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stop_read_timer()
        super().resume_writing()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.patience_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def guarded_protocol(seconds: float) -> type[GuardedProtocol]:
    """The protocol with another limit."""
    return type("GuardedProtocol", (GuardedProtocol,), {"patience_seconds": seconds})
