"""The listening socket."""

from __future__ import annotations

import asyncio
import socket

from serving.server import listen


def test_connections_do_not_wait_for_acknowledgements() -> None:
    """With Nagle's algorithm on, every answer takes 40 ms more."""
    delayed: list[int] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        delayed.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect() -> None:
        listener = listen("127.0.0.1", 0)
        server = await asyncio.start_server(accept, sock=listener)
        async with server:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            assert await reader.read() == b""
            writer.close()

    asyncio.run(connect())
    assert delayed and all(delayed)
