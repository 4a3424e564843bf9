"""Nothing waits for ever: full queues, writes, probes, clients that leave or stop reading."""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag_fti.config import Settings
from rag_fti.inference import ServedModel
from rag_fti.protocols import Cancellation, Generation, GenerationRequest
from rag_fti.registry import Registry
from serving.auth import add_key, remove_key
from tests.inference.corpus import FirstSentence
from tests.serving.conftest import Gate, Running, Start, eventually

QUESTION = {"messages": [{"role": "user", "content": "Who keeps the cellar key?"}]}


def post(server: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    with server.client() as client:
        return client.post(path, json=body)


def send(server: Running, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent and whose answer nobody reads yet."""
    data = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return connection


def test_probes_are_answered_when_every_place_is_taken(start: Start, gate: Gate) -> None:
    server = start(gate, serving__max_running=1, serving__max_queue=1)
    lane = server.services.lanes["requests"]
    with ThreadPoolExecutor(2) as threads, server.client() as client:
        asked = [threads.submit(post, server, "/v1/chat/completions", QUESTION) for _ in range(2)]
        assert eventually(lambda: lane.running == lane.waiting == 1)
        assert post(server, "/v1/search", {"query": "key"}).status_code == 429
        assert client.get("/health/ready").json()["status"] == "ready"
        metrics = client.get("/metrics").text
        assert "rag_fti_num_requests_waiting 1.0" in metrics
        age = [x for x in metrics.split("\n") if x.startswith("rag_fti_oldest_request_seconds ")]
        assert float(age[0].split()[1]) > 0
        gate.open.set()
        assert [item.result().status_code for item in asked] == [200, 200]
    assert eventually(lambda: lane.idle and not server.services.exchanges)


def test_writes_that_wait_for_the_store_leave_questions_their_places(start: Start) -> None:
    server = start(serving__max_running=2)
    lock = Path(server.settings.storage.features_uri) / ".lock"
    with ThreadPoolExecutor(4) as threads, lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        pushed = [
            threads.submit(
                post, server, "/v1/documents", {"source": f"{n}.txt", "text": f"Lamp {n} is red."}
            )
            for n in range(4)
        ]
        writes = server.services.lanes["writes"]
        assert eventually(lambda: writes.running + writes.waiting == 4)
        assert post(server, "/v1/chat/completions", QUESTION).status_code == 200
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert [item.result().status_code for item in pushed] == [200] * 4
    assert eventually(lambda: writes.idle)


def test_who_leaves_the_queue_is_not_worked_for(start: Start, gate: Gate) -> None:
    server = start(gate, serving__max_running=1)
    lane = server.services.lanes["requests"]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(post, server, "/v1/chat/completions", QUESTION)
        assert eventually(lambda: lane.running == 1)
        waiting = [send(server, "/v1/search", {"query": "key"}) for _ in range(3)]
        assert eventually(lambda: lane.waiting == 3)
        for connection in waiting:
            connection.close()
        assert eventually(lambda: lane.waiting == 0)
        gate.open.set()
        assert asked.result().status_code == 200
    assert eventually(lambda: lane.idle and not server.services.exchanges)


def test_a_search_that_waits_too_long_is_told_so(start: Start, gate: Gate) -> None:
    server = start(gate, serving__max_running=1, serving__request_timeout_seconds=0.5)
    lane = server.services.lanes["requests"]
    assert post(server, "/v1/chat/completions", QUESTION).status_code == 504
    assert lane.running == 1  # the model does not listen
    late = post(server, "/v1/search", {"query": "key"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    gate.open.set()
    assert eventually(lambda: lane.idle)
    assert post(server, "/v1/search", {"query": "key"}).status_code == 200


def test_a_client_that_stops_reading_is_dropped(start: Start) -> None:
    pages = "\n\n".join("a" * 1_000_000 for _ in range(12))
    server = start(corpus={"long.md": pages}, serving__body_seconds=1.0)
    (row,) = server.services.store.documents(columns=["document_id"]).to_pylist()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(
            f"GET /v1/documents/{row['document_id']} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        )
        time.sleep(3)
        connection.settimeout(10)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while block := connection.recv(1 << 20):
                received += len(block)
        assert received < len(pages)


def test_a_model_that_ends_without_an_answer_is_an_error_at_once(start: Start) -> None:
    class Mute(FirstSentence):
        def stream(
            self, request: GenerationRequest, cancellation: Cancellation | None = None
        ) -> Iterator[str | Generation]:
            yield from ()

    response = post(start(Mute()), "/v1/chat/completions", QUESTION)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "generation_failed")


class Opener:
    """Opens stand-ins; one version cannot be opened, another takes its time."""

    def __init__(self) -> None:
        self.loading = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, _: Settings, reference: str) -> ServedModel:
        if reference.endswith("@2"):
            raise OSError("the disk is gone")
        if reference.endswith("@3"):
            self.loading.set()
            assert self.may_end.wait(30)
        return ServedModel(FirstSentence(reference))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry.open(str(tmp_path / "data" / "registry"))
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights.safetensors").write_bytes(b"weights")
    for _ in range(4):
        made.publish("assistant", files, {})
    made.set_alias("assistant", "champion", 1, who="t", why="t")
    return made


def test_the_watcher_outlives_an_unexpected_error(start: Start, registry: Registry) -> None:
    server = start(opener=Opener())

    def ready() -> dict[str, Any]:
        with server.client() as client:
            return dict(client.get("/health/ready").json())

    assert ready()["model"] == "assistant@1"
    registry.set_alias("assistant", "champion", 2, who="t", why="t")
    assert eventually(lambda: ready()["status"] == "degraded")
    assert "the disk is gone" in str(ready()["problems"])
    registry.set_alias("assistant", "champion", 4, who="t", why="t")
    assert eventually(lambda: ready()["model"] == "assistant@4")
    assert eventually(lambda: ready()["status"] == "ready")


def test_a_key_is_revoked_while_a_model_loads(
    start: Start, registry: Registry, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    _, secret = add_key(keys, name="one", scopes=["chat"], collections=["*"])
    opener = Opener()
    server = start(opener=opener, serving__keys_file=str(keys))
    with server.client(secret) as client:
        assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
        registry.set_alias("assistant", "champion", 3, who="t", why="t")
        assert opener.loading.wait(10)
        remove_key(keys, "one")
        assert eventually(
            lambda: client.post("/v1/chat/completions", json=QUESTION).status_code == 401
        )
    opener.may_end.set()
    assert eventually(lambda: server.services.pool.current().get("") == "assistant@3")


def test_the_rate_limit_is_exact_under_concurrent_requests(start: Start) -> None:
    server = start(serving__requests_per_minute=7)
    with ThreadPoolExecutor(16) as threads:
        made: Sequence[httpx.Response] = list(
            threads.map(lambda _: post(server, "/v1/search", {"query": "key"}), range(32))
        )
    assert sorted(response.status_code for response in made) == [200] * 7 + [429] * 25
