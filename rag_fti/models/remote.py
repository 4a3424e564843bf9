"""A model behind an OpenAI-compatible server: vLLM, llama.cpp, a hosted API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import queue
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from rag_fti.config.models import RemoteGeneratorConfig
from rag_fti.errors import ConfigError, ContextTooLong, EngineDown, InferenceError
from rag_fti.models.control_tokens import COMMON, defuse
from rag_fti.protocols import Cancellation, Generation, GenerationRequest, Message

logger = logging.getLogger(__name__)

T = TypeVar("T")

BASE_VARIABLE = "OPENAI_API_BASE"

_BYTES_PER_TOKEN = 3.0
"""Pessimistic guess: English text has about four bytes per token."""
_TOKENS_PER_MESSAGE = 8
_CONNECT_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 20.0
_SHOWN_CHARS = 300
_BROKEN_OFF = frozenset({"content_filter", "abort", "error"})
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_TOO_LONG = (
    "context_length",  # OpenAI, llama-cpp-python
    "maximum context length",  # vLLM
    "exceed_context_size",  # llama.cpp
)


class CircuitBreaker:
    """Stops calling a server that keeps failing, and tries it again after a while.

    Args:
        threshold: Failures in a row that open the circuit.
        cooldown_seconds: How long it stays open; then one call may try.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        threshold: int = 5,
        cooldown_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._cooldown = cooldown_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._opened_at = 0.0
        self._trying = False
        self._reason = ""

    @property
    def problem(self) -> str:
        """What the last of too many failures was, until a call is answered; empty when all is well.

        Looking does not take the one try of an open circuit.
        """
        with self._lock:
            return self._reason if self._failures >= self._threshold else ""

    def wait_seconds(self) -> float:
        """0 where a call may go out (it must then report), else seconds until the next try."""
        with self._lock:
            if self._failures < self._threshold:
                return 0.0
            left = self._opened_at + self._cooldown - self._clock()
            if left <= 0 and not self._trying:
                self._trying = True
                return 0.0
            return max(left, 0.1)

    def succeeded(self) -> None:
        """A call was answered."""
        with self._lock:
            self._failures = 0
            self._trying = False

    def given_up(self) -> None:
        """A call ended by itself before it was answered, which says nothing about the server."""
        with self._lock:
            self._trying = False

    def failed(self, reason: str) -> None:
        """A call was not answered, or with a server error; ``reason`` says which."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            self._trying = False
            if self._failures >= self._threshold:
                self._opened_at = self._clock()


class RemoteGenerator:
    """Continues prompts on an OpenAI-compatible server.

    Requests run on an event loop in a thread of its own: there, a request can be given up whatever
    it waits for, its place, its next try, or a server that says nothing.

    Args:
        base_url: Up to and including ``/v1``.
        model: Name as the server knows it.
        api_key: Sent as a bearer token; empty sends none.
        timeout_seconds: Longest wait for an answer, or for the next piece of a stream.
        retries: Further tries after a timeout, 429 or server error, with growing pauses.
        context_window: Most tokens of prompt and answer together.
        concurrency: Requests in flight at once.
        max_tokens_field: What the server calls the limit of the answer.
        sends_sampling: Whether ``temperature`` and ``top_p`` are sent.
        breaker: Shared state about the server's health.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str = "",
        timeout_seconds: float = 60.0,
        retries: int = 2,
        context_window: int = 8192,
        concurrency: int = 16,
        max_tokens_field: str = "max_tokens",
        sends_sampling: bool = True,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._retries = retries
        self._context_window = context_window
        self._max_tokens_field = max_tokens_field
        self._sends_sampling = sends_sampling
        self._breaker = breaker or CircuitBreaker()
        self._slots = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=httpx.Limits(max_connections=concurrency),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()

    @property
    def model(self) -> str:
        """Name as the server knows it."""
        return self._model

    @property
    def problem(self) -> str:
        """Why calls are not sent out at present; empty when they are. Asks the server nothing."""
        problem = self._breaker.problem
        return f"The server of {self._model} keeps failing: {problem}" if problem else ""

    @property
    def context_window(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._context_window

    def count_tokens(self, text: str) -> int:
        """An estimate from above: the server's tokenizer is not known."""
        return int(len(text.encode("utf-8", errors="replace")) / _BYTES_PER_TOKEN) + 1

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """An estimate from above."""
        return sum(self.count_tokens(m["content"]) + _TOKENS_PER_MESSAGE for m in messages)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Continue every prompt; results in the order of the requests.

        Raises:
            ContextTooLong: If the server says that a prompt is too long.
            InferenceError: If the server does not answer.
        """
        running = self._submit(self._generate_all(requests))
        try:
            return running.result()
        finally:
            running.cancel()

    def stream(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> Iterator[str | Generation]:
        """Pieces of text as they come, then the finished :class:`Generation` as last item.

        Raises:
            ContextTooLong: If the server says that the prompt is too long.
            InferenceError: If the server does not answer or breaks off.
        """
        cancellation = cancellation or Cancellation()
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        said: list[str] = []
        running = self._submit(self._converse(request, pieces.put))
        running.add_done_callback(lambda _: pieces.put(None))
        try:
            with cancellation.calling(running.cancel):
                while (piece := pieces.get()) is not None:
                    said.append(piece)
                    yield piece
        finally:
            running.cancel()
        if cancellation.cancelled:
            yield self._generation(request, "".join(said), "cancelled", {})
        else:
            yield running.result()

    def close(self) -> None:
        """Give up what still runs; close connections and the thread."""
        self._submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()

    async def _generate_all(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._generate(request)) for request in requests]
        except BaseExceptionGroup as failed:  # the first; the others were given up then
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _generate(self, request: GenerationRequest) -> Generation:
        async with self._slots, self._open(self._body(request)) as response:
            await response.aread()
        try:
            content = response.json()
            choice = content["choices"][0]
            text = choice["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            raise InferenceError(
                f"The server of {self._model} answered something that is no chat completion: "
                f"{response.text[:_SHOWN_CHARS]!r}."
            ) from error
        reason = choice.get("finish_reason") or "stop"
        return self._generation(request, text, reason, content.get("usage") or {})

    async def _converse(
        self, request: GenerationRequest, say: Callable[[str], object]
    ) -> Generation:
        """Stream an answer; ``say`` gets its pieces."""
        body = {
            **self._body(request),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        said: list[str] = []
        reason = ""
        usage: Mapping[str, Any] = {}
        async with self._slots, self._open(body) as response:
            async for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event.get("choices") or []:
                    reason = choice.get("finish_reason") or reason
                    piece = (choice.get("delta") or {}).get("content")
                    if piece:
                        said.append(piece)
                        say(piece)
        if not reason:
            raise InferenceError(
                f"The server of {self._model} broke off in the middle of an answer."
            )
        return self._generation(request, "".join(said), reason, usage)

    def _generation(
        self, request: GenerationRequest, text: str, reason: str, usage: Mapping[str, Any]
    ) -> Generation:
        if reason in _BROKEN_OFF:
            raise InferenceError(f"The server of {self._model} broke its answer off: {reason}.")
        if reason == "length" and not text.strip():
            raise InferenceError(
                f"{self._model} used up {request.max_tokens} tokens before its answer began.",
                next_step="Raise inference.max_tokens, or turn the model's thinking off.",
            )
        prompt = usage.get("prompt_tokens")
        completion = usage.get("completion_tokens")
        return Generation(
            text=text,
            prompt_tokens=self.count_prompt_tokens(request.messages) if prompt is None else prompt,
            completion_tokens=self.count_tokens(text) if completion is None else completion,
            finish_reason=reason if reason in ("length", "cancelled") else "stop",
        )

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(defuse(request.messages, COMMON)),
            self._max_tokens_field: request.max_tokens,
        }
        if self._sends_sampling:
            body |= {"temperature": request.temperature, "top_p": request.top_p}
        if request.stop:
            body["stop"] = list(request.stop)
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    @contextlib.asynccontextmanager
    async def _open(self, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        """A response whose status is good, its body not read; tries again where that helps."""
        request = self._client.build_request(
            "POST",
            f"{self._base_url}/chat/completions",
            content=json.dumps(body).encode("ascii"),
            headers={"Content-Type": "application/json"},
        )
        tries = 0
        while True:
            wait = self._breaker.wait_seconds()
            if wait:
                raise EngineDown(
                    f"The server of {self._model} has failed several times in a row; it is tried "
                    f"again in {math.ceil(wait)} s.",
                    next_step="Check the server named in generator.base_url.",
                )
            response, problem, pause = await self._send(request)
            if response is not None:
                break
            tries += 1
            if tries > self._retries:
                raise InferenceError(
                    f"The server of {self._model} does not answer: {problem} ({tries} tries).",
                    next_step="Check the server named in generator.base_url.",
                )
            logger.warning("%s: %s; trying again", self._base_url, problem)
            await asyncio.sleep(pause or min(0.25 * 2**tries, 5.0) * random.uniform(0.5, 1.0))
        try:
            yield response
        except httpx.HTTPError as error:
            raise InferenceError(
                f"The server of {self._model} broke off: {_named(error)}."
            ) from error
        finally:
            await response.aclose()

    async def _send(self, request: httpx.Request) -> tuple[httpx.Response | None, str, float]:
        """One try: a good response, or what went wrong and how long the server wants to rest."""
        try:
            response = await self._client.send(request, stream=True)
            if response.status_code < 400:
                self._breaker.succeeded()
                return response, "", 0.0
            async with contextlib.aclosing(response):
                text = (await response.aread()).decode("utf-8", errors="replace")
        except httpx.HTTPError as error:
            self._breaker.failed(_named(error))
            return None, _named(error), 0.0
        except asyncio.CancelledError:
            self._breaker.given_up()
            raise
        problem = f"HTTP {response.status_code}: {text[:_SHOWN_CHARS]}"
        if response.status_code in _RETRIED:
            # A server that says "too many" works; only one that breaks counts as failing.
            if response.status_code == 429:
                self._breaker.succeeded()
            else:
                self._breaker.failed(problem)
            return None, problem, _retry_after(response)
        self._breaker.succeeded()
        raise self._refused(response.status_code, text, problem)

    def _refused(self, status: int, text: str, problem: str) -> InferenceError:
        if any(words in text for words in _TOO_LONG):
            return ContextTooLong(
                f"The prompt does not fit {self._model}: {problem}",
                next_step="Lower retrieval.context_tokens, or set generator.context_window to "
                "what the server really takes.",
            )
        hints = {
            401: "Set the environment variable named in generator.api_key_env.",
            403: "Set the environment variable named in generator.api_key_env.",
            404: "Check generator.model and generator.base_url.",
        }
        kind = EngineDown if status in hints else InferenceError
        return kind(
            f"The server of {self._model} refuses the request: {problem}",
            next_step=hints.get(status, ""),
        )


def _named(error: httpx.HTTPError) -> str:
    """An error's kind, and its text where it has one (time-outs have none)."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to ``[DONE]``."""
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise InferenceError(
                f"A streamed event is not JSON: {data[:_SHOWN_CHARS]!r}."
            ) from error
        if event.get("error"):
            raise InferenceError(f"The server gave up: {event['error']}")
        yield event


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a server asks to wait, within reason; 0 where it does not say."""
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE_SECONDS)


def build_remote_generator(
    config: RemoteGeneratorConfig, *, environment: Mapping[str, str]
) -> RemoteGenerator:
    """The generator of a configuration section.

    Args:
        config: The section.
        environment: Environment variables: the key, and the address where none is configured.

    Raises:
        ConfigError: If no address is known.
    """
    base_url = config.base_url or environment.get(BASE_VARIABLE, "")
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(
            f"generator.base_url is {base_url!r}, expected an http(s) address.",
            next_step=f"Set it, or {BASE_VARIABLE}, for example to http://localhost:8000/v1.",
        )
    return RemoteGenerator(
        base_url=base_url,
        model=config.model,
        api_key=environment.get(config.api_key_env, ""),
        timeout_seconds=config.timeout_seconds,
        retries=config.retries,
        context_window=config.context_window,
        concurrency=config.concurrency,
        max_tokens_field=config.max_tokens_field,
        sends_sampling=config.send_sampling,
    )
