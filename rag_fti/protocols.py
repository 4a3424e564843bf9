"""What a model must offer to be plugged in. Shapes are part of the promise."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FLOAT = "float"
"""Precision of embedders that compute in float32, bfloat16 or float16."""

Vectors = npt.NDArray[np.float32]
Message = Mapping[str, str]
"""One chat message: ``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True)
class EmbedderFingerprint:
    """Everything that decides what vector a text gets.

    Two embedders with equal fingerprints are interchangeable; a feature store built with one
    refuses the other.
    """

    model: str
    """Hub id or package name, for people; the digest below is what counts."""
    weights_digest: str
    """SHA-256 over the model's weight files, 64 hex digits."""
    dimension: int
    max_tokens: int
    """Longest input in tokens; the rest would be cut off, so chunks never exceed it."""
    normalized: bool
    query_prompt: str
    document_prompt: str
    precision: str = FLOAT
    """How weights were quantised, where they were, such as ``int8 by onnx``."""

    def to_dict(self) -> dict[str, Any]:
        """The fingerprint as JSON-ready values; ``precision`` only where it is not float."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.precision == FLOAT:
            del values["precision"]
        return values


def embedder_differences(
    recorded: Mapping[str, Any], present: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Where two recorded fingerprints differ in what decides vectors.

    Returns:
        Name of the property to its recorded and its present value.
    """
    one, other = ({"precision": FLOAT, **values} for values in (recorded, present))
    return {
        name: (one.get(name), other.get(name))
        for name in sorted(one.keys() | other.keys())
        if name != "model" and one.get(name) != other.get(name)
    }


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What this embedder is."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, float32 of shape ``(len(texts), dimension)``."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the model counts them, special tokens left out."""
        ...


class Reranker(Protocol):
    """Scores texts against a question, reading both together."""

    @property
    def model(self) -> str:
        """Hub id or directory of the model."""
        ...

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One score per text, shape ``(len(texts),)``; higher is more relevant."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that prompts need."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Render messages to text or token ids."""
        ...

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenize text."""
        ...


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to continue it."""

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy; sampling otherwise."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """A finished continuation."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """``stop`` (end token or stop sequence), ``length`` or ``cancelled``."""
    confidence: float | None = None
    """In [0, 1]: geometric mean of the probabilities of the generated tokens (Malinin and Gales
    2021, "Uncertainty Estimation in Autoregressive Structured Prediction"), times the
    probability of not abstaining where the abstention text is one token of the model. None
    where the engine does not tell."""


@dataclass
class Cancellation:
    """A flag the caller raises when nobody waits for the answer any more."""

    _event: threading.Event = field(default_factory=threading.Event)
    _callbacks: list[Callable[[], object]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancel(self) -> None:
        """Ask the generator to stop at the next token."""
        with self._lock:
            self._event.set()
            while self._callbacks:
                self._callbacks.pop()()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most until it is cancelled; whether it is."""
        return self._event.wait(seconds)

    @contextlib.contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """Have a quick function called on :meth:`cancel`, never after the ``with`` block."""
        with self._lock:
            if self._event.is_set():
                callback()
            else:
                self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks = [kept for kept in self._callbacks if kept is not callback]

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()


class Generator(Protocol):
    """Continues prompts. Thread-safe: several requests may be in flight."""

    @property
    def model(self) -> str:
        """``name@version`` of a registry model, or the hub id or directory of a base model."""
        ...

    @property
    def context_window(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered prompt, generation prompt included."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Continue every prompt; results in the order of the requests."""
        ...

    def stream(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> Iterator[str | Generation]:
        """Pieces of text as they come, then the finished :class:`Generation` as last item."""
        ...
