"""The remote generator against a real HTTP server that misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rag_fti.config.models import RemoteGeneratorConfig
from rag_fti.errors import ConfigError, ContextTooLong, InferenceError
from rag_fti.models.remote import CircuitBreaker, RemoteGenerator, build_remote_generator
from rag_fti.protocols import Cancellation, Generation, GenerationRequest


class Upstream:
    """Answers in the order of ``plan``: a status, ``slow``, ``broken``, ``garbage`` or ``ok``."""

    def __init__(self) -> None:
        self.plan: list[Any] = []
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sent_pieces = 0
        self.silent = threading.Event()
        self.may_speak = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                upstream.seen.append(body)
                upstream.headers.append(dict(self.headers))
                upstream.answer(self, body, upstream.plan.pop(0) if upstream.plan else "ok")

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # connections of many requests at once do not time out
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def keep_silent(self) -> None:
        self.silent.set()
        self.may_speak.wait(60)

    def stop(self) -> None:
        self.may_speak.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, handler: Any, body: dict[str, Any], step: Any) -> None:
        if isinstance(step, tuple):
            status, text, headers = step
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(text.encode())
            return
        if step == "slow":
            time.sleep(1.0)
        if step == "mute":
            self.keep_silent()
        if step == "half an error":
            handler.send_response(503)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b"the server is")
            handler.close_connection = True
            return
        words = ["The ", "answer", ".", " [1]"]
        usage = {"prompt_tokens": 11, "completion_tokens": 4}
        if not body.get("stream"):
            choice = {"message": {"content": "".join(words)}, "finish_reason": "stop"}
            if step == "filtered":
                choice["finish_reason"] = "content_filter"
            if step == "only thought":
                choice = {"message": {"content": None}, "finish_reason": "length"}
            text = (
                "nope" if step == "garbage" else json.dumps({"choices": [choice], "usage": usage})
            )
            self.answer(handler, body, (200, text, {}))
            return
        self.stream(handler, step, words, usage)

    def stream(self, handler: Any, step: Any, words: list[str], usage: dict[str, int]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        events: list[Any] = [{"choices": [{"delta": {"content": word}}]} for word in words]
        if step == "broken":
            events = events[:2]
        elif step == "error":
            events = [events[0], {"error": {"message": "out of memory"}}]
        else:
            events += [{"choices": [{"delta": {}, "finish_reason": "length"}]}]
            events += [{"choices": [], "usage": usage}]
        for event in events:
            if step == "trickle":
                time.sleep(0.1)
            if step == "queue":
                self.keep_silent()
            try:
                handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                handler.wfile.flush()
            except OSError:
                return
            self.sent_pieces += 1
        if step not in ("broken", "error"):
            handler.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.stop()


@pytest.fixture
def generator(upstream: Upstream) -> Iterator[RemoteGenerator]:
    made = RemoteGenerator(
        base_url=upstream.url, model="big", api_key="secret", timeout_seconds=0.6, retries=2
    )
    yield made
    made.close()


ASKED = GenerationRequest(
    messages=({"role": "user", "content": "Why?"},), max_tokens=9, stop=("x",), seed=3, top_p=0.5
)


def test_parameters_key_usage_and_text(upstream: Upstream, generator: RemoteGenerator) -> None:
    (made,) = generator.generate([ASKED])
    assert made == Generation("The answer. [1]", 11, 4, "stop")
    sent = upstream.seen[0]
    assert sent["messages"] == [{"role": "user", "content": "Why?"}]
    assert (sent["model"], sent["max_tokens"], sent["stop"], sent["seed"]) == ("big", 9, ["x"], 3)
    assert (sent["temperature"], sent["top_p"]) == (0.0, 0.5)
    assert upstream.headers[0]["Authorization"] == "Bearer secret"


def test_streaming(generator: RemoteGenerator) -> None:
    *pieces, last = generator.stream(ASKED)
    assert pieces == ["The ", "answer", ".", " [1]"]
    assert last == Generation("The answer. [1]", 11, 4, "length")


def test_many_requests_keep_their_order(upstream: Upstream, generator: RemoteGenerator) -> None:
    assert len(generator.generate([ASKED] * 20)) == 20
    assert len(upstream.seen) == 20


@pytest.mark.parametrize("problem", [(503, "busy", {}), (429, "", {"Retry-After": "0.05"}), "slow"])
def test_passing_trouble_is_tried_again(
    upstream: Upstream, generator: RemoteGenerator, problem: Any
) -> None:
    upstream.plan = [problem]
    assert generator.generate([ASKED])[0].text == "The answer. [1]"
    assert len(upstream.seen) == 2


def test_lasting_trouble_is_an_error_that_names_the_server(
    upstream: Upstream, generator: RemoteGenerator
) -> None:
    upstream.plan = [(500, "boom", {})] * 3
    with pytest.raises(InferenceError, match=r"HTTP 500: boom \(3 tries\)"):
        generator.generate([ASKED])


@pytest.mark.parametrize(
    ("status", "text", "kind", "word"),
    [
        (400, '{"error": {"code": "context_length_exceeded"}}', ContextTooLong, "does not fit"),
        (400, '{"error": {"type": "exceed_context_size_error"}}', ContextTooLong, "does not fit"),
        (400, "bad", InferenceError, "refuses"),
        (401, "who are you", InferenceError, "api_key_env"),
        (404, "no such model", InferenceError, "generator.model"),
    ],
)
def test_a_refusal_is_not_tried_again(
    upstream: Upstream, generator: RemoteGenerator, status: int, text: str, kind: Any, word: str
) -> None:
    upstream.plan = [(status, text, {})]
    with pytest.raises(kind, match=word):
        generator.generate([ASKED])
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("problem", ["broken", "error", "garbage", "filtered", "only thought"])
def test_half_an_answer_is_never_taken_for_a_whole_one(
    upstream: Upstream, generator: RemoteGenerator, problem: str
) -> None:
    upstream.plan = [problem]
    with pytest.raises(InferenceError):
        if problem not in ("broken", "error"):
            generator.generate([ASKED])
        else:
            list(generator.stream(ASKED))


def test_models_that_take_no_sampling_parameters(upstream: Upstream) -> None:
    generator = RemoteGenerator(
        base_url=upstream.url,
        model="thinker",
        max_tokens_field="max_completion_tokens",
        sends_sampling=False,
    )
    generator.generate([ASKED])
    generator.close()
    sent = upstream.seen[0]
    assert sent["max_completion_tokens"] == 9
    assert not {"max_tokens", "temperature", "top_p"} & set(sent)


def test_cancelling_closes_the_stream(upstream: Upstream, generator: RemoteGenerator) -> None:
    upstream.plan = ["trickle"]
    cancellation = Cancellation()
    stream = generator.stream(ASKED, cancellation)
    next(stream)
    cancellation.cancel()
    *_, last = stream
    assert isinstance(last, Generation)
    assert last.finish_reason == "cancelled"
    assert upstream.sent_pieces < 6


@pytest.mark.parametrize("silence", ["queue", "mute"])
def test_cancelling_does_not_wait_for_a_server_that_says_nothing(
    upstream: Upstream, silence: str
) -> None:
    generator = RemoteGenerator(
        base_url=upstream.url, model="big", timeout_seconds=60, concurrency=1
    )
    upstream.plan = [silence]
    cancellations = [Cancellation(), Cancellation()]
    with ThreadPoolExecutor(2) as threads:
        # The first reads from a server that is silent, the second waits for its place.
        asked = [
            threads.submit(lambda c=c: list(generator.stream(ASKED, c))) for c in cancellations
        ]
        assert upstream.silent.wait(30)
        for cancellation in reversed(cancellations):
            cancellation.cancel()
        made = [item.result(30)[-1] for item in asked]
    assert not upstream.may_speak.is_set()
    assert all(isinstance(m, Generation) and m.finish_reason == "cancelled" for m in made)
    assert generator.generate([ASKED])[0].text == "The answer. [1]"
    generator.close()


def test_cancelling_ends_the_tries(upstream: Upstream) -> None:
    generator = RemoteGenerator(base_url=upstream.url, model="big", retries=9)
    upstream.plan = [(503, "busy", {"Retry-After": "20"})] * 9
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(lambda: list(generator.stream(ASKED, cancellation)))
        while not upstream.seen:
            time.sleep(0.01)
        cancellation.cancel()
        (last,) = asked.result()
    assert len(upstream.seen) == 1
    assert isinstance(last, Generation)
    assert last.finish_reason == "cancelled"
    generator.close()


def test_an_error_that_breaks_off_leaves_the_circuit_to_close_again(upstream: Upstream) -> None:
    now = [0.0]
    breaker = CircuitBreaker(threshold=1, cooldown_seconds=5, clock=lambda: now[0])
    generator = RemoteGenerator(base_url=upstream.url, model="big", retries=0, breaker=breaker)
    upstream.plan = [(500, "boom", {}), "half an error"]
    for wait in (6.0, 12.0):
        with pytest.raises(InferenceError):
            generator.generate([ASKED])
        now[0] = wait
    assert generator.generate([ASKED])[0].text == "The answer. [1]"
    generator.close()


def test_a_dead_server_is_left_alone_for_a_while() -> None:
    now = [0.0]
    breaker = CircuitBreaker(threshold=3, cooldown_seconds=10, clock=lambda: now[0])
    generator = RemoteGenerator(
        base_url="http://127.0.0.1:9/v1", model="gone", retries=0, breaker=breaker
    )
    for _ in range(3):
        with pytest.raises(InferenceError, match="does not answer"):
            generator.generate([ASKED])
    with pytest.raises(InferenceError, match="again in 10 s"):
        generator.generate([ASKED])
    now[0] = 11.0
    with pytest.raises(InferenceError, match="does not answer"):
        generator.generate([ASKED])
    with pytest.raises(InferenceError, match="tried again"):
        generator.generate([ASKED])
    generator.close()


def test_a_try_that_nobody_waited_for_leaves_the_circuit_to_the_next() -> None:
    now = [0.0]
    breaker = CircuitBreaker(threshold=1, cooldown_seconds=5, clock=lambda: now[0])
    breaker.failed("boom")
    now[0] = 6.0
    assert breaker.wait_seconds() == 0.0
    assert breaker.wait_seconds() > 0.0
    breaker.given_up()
    assert breaker.wait_seconds() == 0.0


def test_one_try_closes_the_circuit_again() -> None:
    now = [0.0]
    breaker = CircuitBreaker(threshold=1, cooldown_seconds=5, clock=lambda: now[0])
    breaker.failed("boom")
    assert breaker.wait_seconds() == 5.0
    now[0] = 6.0
    assert breaker.wait_seconds() == 0.0  # one may try,
    assert breaker.wait_seconds() > 0.0  # the others wait for it
    breaker.succeeded()
    assert breaker.wait_seconds() == 0.0


def test_building_from_the_environment(upstream: Upstream) -> None:
    config = RemoteGeneratorConfig(type="openai", model="big")
    made = build_remote_generator(
        config, environment={"OPENAI_API_BASE": upstream.url, "OPENAI_API_KEY": "k"}
    )
    assert made.generate([ASKED])[0].completion_tokens == 4
    assert upstream.headers[0]["Authorization"] == "Bearer k"
    made.close()
    with pytest.raises(ConfigError, match="base_url"):
        build_remote_generator(config, environment={})
