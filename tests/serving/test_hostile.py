"""Requests that mean no good: each gets a 4xx in bounded time and the server lives on."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest

from rag_fti.protocols import Cancellation, Generation, GenerationRequest
from tests.inference.corpus import FirstSentence
from tests.serving.conftest import Running, Start, start

GOOD = {"messages": [{"role": "user", "content": "Who keeps the cellar key?"}]}
ALLOWED = frozenset(range(400, 500))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    factory = start.__wrapped__(tmp_path_factory.mktemp("hostile"))  # type: ignore[attr-defined]
    yield next(factory)(
        serving__body_seconds=0.5, serving__max_request_bytes=100_000, serving__max_queue=4
    )
    factory.close()


@pytest.fixture(autouse=True)
def still_alive(server: Running) -> Iterator[None]:
    yield
    with server.client() as client:
        assert client.get("/health/ready").status_code == 200
        assert client.post("/v1/chat/completions", json=GOOD).status_code == 200


def head(path: str = "/v1/chat/completions", *lines: str, method: str = "POST") -> bytes:
    fixed = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode("latin-1")


def status_of(reply: bytes) -> int | None:
    return int(reply.split(b" ", 2)[1]) if reply.startswith(b"HTTP/1.1 ") else None


def with_body(body: bytes, *lines: str, path: str = "/v1/chat/completions") -> bytes:
    return head(path, f"Content-Length: {len(body)}", "Connection: close", *lines) + body


RAW: list[bytes] = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n",
    head("/", "Content-Length: 5", "Content-Length: 6") + b"hello!",
    head("/", "Content-Length: -5"),
    head("/", "Content-Length: 5x"),
    head("/", "Content-Length: 99999999999999999999", "Connection: close"),
    head("/", "Transfer-Encoding: chunked", "Content-Length: 3")
    + b"0\r\n\r\nGET /evil HTTP/1.1\r\n",
    head("/", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    head("/", "Transfer-Encoding: chunked") + b"zz\r\nxx\r\n",
    head("/", "X-Bad\x00Header: 1"),
    head("/", "X-Long: " + "a" * 100_000),
    head("/" + "a" * 100_000),
    head("/", *[f"X-{n}: {n}" for n in range(5000)]),
    with_body(b"x" * 100_001),
    head("/v1/chat/completions", "Transfer-Encoding: chunked", "Connection: close")
    + (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 8
    + b"0\r\n\r\n",
]


@pytest.mark.parametrize("number", range(len(RAW)))
def test_malformed_http(server: Running, number: int) -> None:
    reply = server.raw(RAW[number], timeout=1.5)
    status = status_of(reply)
    assert status is None or status in ALLOWED, reply[:200]
    assert b"evil" not in reply


def test_a_client_that_sends_everything_first_is_told_that_it_is_too_much(server: Running) -> None:
    chunk = b"20000\r\n" + b"x" * 0x20000 + b"\r\n"
    for pieces in (
        [head("/", "Content-Length: 300000"), *[b"x" * 100_000] * 3],
        [head("/", "Transfer-Encoding: chunked"), *[chunk] * 3, b"0\r\n\r\n"],
    ):
        with socket.create_connection(server.address, timeout=5) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.05)
            assert status_of(connection.recv(65536)) == 413
    waiting = head("/", "Content-Length: 300000", "Expect: 100-continue")
    assert status_of(server.raw(waiting)) == 413


def nested(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"1e999999",
    b"\xff\xfe\x00",
    b"9" * 50_000,
    nested(100),
    nested(40_000),
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    b'{"messages": [{"role": "user", "content": "x"}], "seed": 1' + b"0" * 4000 + b"}",
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e9}',
    b'{"messages": [{"role": "tool", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
    b'{"messages": [{"role": "user", "content": null}]}',
    b'{"messages": {"role": "user"}}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": ["a"]}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": "../../etc/passwd"}',
    b'{"messages": [{"role": "user", "content": "x"}], "model": "%s"}' % (b"m" * 300),
    b'{"messages": [{"role": "user", "content": "x"}], "model": "%s"}' % ("é" * 200).encode(),
    b'{"messages": [{"role": "user", "content": "x"}], "stream": "maybe"}',
    b'{"messages": [{"role": "user", "content": "x"}], "filter": "title = $1"}',
    b'{"messages": [{"role": "user", "content": "x"}], "stop": [1, 2]}',
    b'{"messages": [{"role": "user", "content": "x"}], "k": 100000}',
    b'{"messages": [{"role": "user", "content": "x"}], "filter": "x; DROP TABLE chunks"}',
    b'{"messages": [{"role": "user", "content": "x"}], "at": "../../x"}',
    json.dumps({"messages": [{"role": "user", "content": "x"}] * 501}).encode(),
]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_malformed_bodies(server: Running, number: int) -> None:
    reply = server.raw(with_body(BODIES[number]))
    assert status_of(reply) in ALLOWED, reply[:300]
    error = json.loads(reply.split(b"\r\n\r\n", 1)[1])["error"]
    assert error["message"]
    assert len(reply) < 5000


def test_a_bug_in_a_stream_is_its_last_event(start: Start) -> None:
    class Buggy(FirstSentence):
        def stream(
            self, request: GenerationRequest, cancellation: Cancellation | None = None
        ) -> Iterator[str | Generation]:
            yield "Ada keeps "
            raise ZeroDivisionError("secret details")

    with start(Buggy()).client() as client:
        streamed = client.post("/v1/chat/completions", json={**GOOD, "stream": True})
        whole = client.post("/v1/chat/completions", json=GOOD)
    *_, last, done = [line for line in streamed.text.split("\n") if line]
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: ")) == whole.json()
    assert whole.status_code == 500 and "secret" not in whole.text + streamed.text


VALID: list[bytes] = [
    with_body(json.dumps(body).encode(), path=path)
    for path, body in (
        ("/v1/chat/completions", GOOD),
        ("/v1/chat/completions", {**GOOD, "stream": True, "stop": ["x"], "filter": "page > 1"}),
        ("/v1/search", {"query": "key", "k": 3, "mode": "text", "collection": "default"}),
        ("/v1/embeddings", {"input": ["key", "boat"], "model": "hash"}),
        ("/v1/feedback", {"response_id": "chatcmpl-1", "rating": 1, "comment": "good"}),
    )
]


def mutations(seed: int) -> Iterator[bytes]:
    """Valid requests with random bytes changed, dropped, doubled or put in."""
    source = random.Random(seed)
    while True:
        data = bytearray(source.choice(VALID))
        for _ in range(source.randint(1, 12)):
            at = source.randrange(len(data))
            kind = source.randrange(4)
            if kind == 0:
                data[at] = source.randrange(256)
            elif kind == 1:
                del data[at : at + source.randint(1, 20)]
            elif kind == 2:
                data[at:at] = bytes(source.randrange(256) for _ in range(source.randint(1, 9)))
            else:
                data[at:at] = data[at : at + 30]
        yield bytes(data)


def is_refused(server: Running, data: bytes) -> bool:
    """Send damaged bytes; whether they were refused or dropped, without a 5xx."""
    status = status_of(reply := server.raw(data, timeout=1.5))
    # Some damage is harmless (inside the question, say): then it is answered.
    assert status is None or status < 500, (data, reply[:300])
    return status is None or status in ALLOWED


def test_random_damage_never_gives_a_server_error(server: Running) -> None:
    for data in islice(mutations(0), 90):
        is_refused(server, data)


@pytest.mark.slow
def test_five_hundred_hostile_requests_are_refused(server: Running) -> None:
    known = {*RAW, *map(with_body, BODIES)}
    refused = sum(is_refused(server, data) for data in known)
    assert refused == len(known)
    damaged = (data for data in mutations(1) if data not in known)
    with ThreadPoolExecutor(8) as threads:
        while refused < 500:
            batch = set(islice(damaged, 64))
            known |= batch
            refused += sum(threads.map(lambda data: is_refused(server, data), batch))
    assert server.services.lanes["requests"].idle
    assert server.services.exchanges == set()


def test_slow_heads_and_bodies_are_given_up(server: Running) -> None:
    for opening in (b"", b"GET / HT", head("/", "Content-Length: 10"), head("/")[:-2]):
        with socket.create_connection(server.address, timeout=30) as connection:
            connection.sendall(opening)
            reply = connection.recv(65536)  # the server ends it; nothing else would
            assert status_of(reply) in (None, 408)


def test_a_dripping_body_does_not_hold_a_place(server: Running) -> None:
    connections = []
    for _ in range(30):
        connection = socket.create_connection(server.address, timeout=5)
        connection.sendall(head("/v1/chat/completions", "Content-Length: 1000") + b"{")
        connections.append(connection)
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=GOOD).status_code == 200
    statuses = [status_of(connection.recv(65536)) for connection in connections]
    for connection in connections:
        connection.close()
    assert set(statuses) == {408}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/search", 405),
        ("GET", "/nothing", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/web/..%5c..%5capp.py", 404),
        ("GET", "/v1/documents/%00", 404),
        ("GET", "/v1/documents/' OR '1'='1", 404),
        ("DELETE", "/v1/documents/x", 404),
        ("GET", "/v1/lineage/'--", 404),
        ("GET", "/v1/models/../../x", 404),
        ("TRACE", "/", 405),
    ],
)
def test_wrong_paths_and_methods(server: Running, method: str, path: str, status: int) -> None:
    with server.client() as client:
        response: Any = client.request(method, path)
    assert response.status_code == status, response.text
    assert "error" in response.json()
