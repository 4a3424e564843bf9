"""The listening socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from rag_fti.config import load_settings
from rag_fti.errors import ConfigError
from rag_fti.feature_store import FeatureStore
from rag_fti.inference import ServedModel
from rag_fti.inference.model_pool import ModelPool
from rag_fti.retrieval import build_retriever
from serving.server import listen
from serving.services import build_services
from tests.inference.corpus import FirstSentence


def test_an_embedder_that_cannot_be_loaded_is_said_before_serving(tmp_path: Path) -> None:
    """It is loaded late; found out by the application's start, it ended in a trace and exit 3."""
    settings = load_settings(
        values={"storage.root": str(tmp_path), "embedder.device": "mps"}, environment={}
    )
    store = FeatureStore.open(settings.storage.features_uri)
    retriever = build_retriever(settings, store=store)
    model = FirstSentence()
    pool = ModelPool(settings, retriever=retriever, opener=lambda *_: ServedModel(model))
    with pytest.raises(ConfigError, match="'mps' is not available"):
        build_services(settings, store=store, retriever=retriever, pool=pool)
    assert model.closed


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
