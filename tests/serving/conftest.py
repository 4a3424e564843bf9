"""A real server on a free port, over a real store and a stand-in model."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from rag_fti.config import Settings, load_settings
from rag_fti.feature_store import FeatureStore
from rag_fti.inference import ServedModel
from rag_fti.inference.model_pool import ModelPool
from rag_fti.protocols import Cancellation, Generation, GenerationRequest
from rag_fti.retrieval import build_retriever
from serving.app import create_app
from serving.server import address_of, listen, server_config
from serving.services import Services, build_services
from tests.inference.corpus import CORPUS, FirstSentence, HashEmbedder, fill


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    settings: Settings
    services: Services
    server: uvicorn.Server
    thread: threading.Thread

    def client(self, key: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def raw(self, data: bytes, *, timeout: float = 10.0) -> bytes:
        """Send bytes as they are; everything that comes back until the server closes."""
        with socket.create_connection(self.address, timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while block := connection.recv(65536):
                    received += block
            return received

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@contextlib.contextmanager
def running(settings: Settings, services: Services) -> Iterator[Running]:
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(create_app(settings, services), settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    made = Running(address_of(listener), settings, services, server, thread)
    try:
        yield made
    finally:
        made.stop()
        listener.close()


class Gate(FirstSentence):
    """Does not say a word, nor listen, before it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def stream(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> Iterator[str | Generation]:
        assert self.open.wait(30)
        yield from super().stream(request, cancellation)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def eventually(condition: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server; keyword arguments are settings, ``section__key=value``."""
    with contextlib.ExitStack() as stack:

        def made(
            generator: Any = None,
            *,
            corpus: dict[str, str] | None = None,
            opener: Callable[..., ServedModel] | None = None,
            **values: Any,
        ) -> Running:
            settings = load_settings(
                values={
                    "storage.root": str(tmp_path / "data"),
                    "serving.reload_seconds": 0.1,
                    **{key.replace("__", "."): value for key, value in values.items()},
                },
                environment={},
            )
            store = FeatureStore.open(settings.storage.features_uri)
            if not store.exists() and corpus != {}:
                fill(store, CORPUS if corpus is None else corpus)
            retriever = build_retriever(settings, store=store, embedder=HashEmbedder())
            answering = generator or FirstSentence()
            pool = ModelPool(
                settings,
                retriever=retriever,
                opener=opener or (lambda _, reference: ServedModel(answering)),
            )
            services = build_services(settings, store=store, retriever=retriever, pool=pool)
            return stack.enter_context(running(settings, services))

        yield made
