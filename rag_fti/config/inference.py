"""Retrieval, answering, serving and batch inference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rag_fti.config.section import Section


class RetrievalConfig(Section):
    """Search settings shared by dataset building and inference."""

    mode: Literal["hybrid", "vector", "text"] = "hybrid"
    """Vector search, full text (BM25), or both fused."""
    k: Annotated[int, Field(ge=1, le=1000)] = 3
    """Passages handed on. The embedded model reads few passages best; larger models gain from
    5 to 10."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Hits taken from each search before fusion."""
    fusion: Literal["convex", "rrf"] = "convex"
    """Weighted sum of min-max normalised scores, or reciprocal rank fusion (Cormack 2009)."""
    vector_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the vector score; the text score gets the rest."""
    rrf_constant: Annotated[int, Field(ge=1)] = 60
    """The constant of reciprocal rank fusion."""
    diversity: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 ranks by relevance; above, maximal marginal relevance (Carbonell 1998)."""
    neighbours: Annotated[int, Field(ge=0, le=5)] = 0
    """Chunks before and after a hit that are shown with it."""
    context_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 1200
    """Token budget of the packed passages, in the generator's tokens."""
    query_cache: Annotated[int, Field(ge=0, le=1_000_000)] = 4096
    """Questions whose vectors are remembered (the least recently asked go first); 0 is none."""


class InferenceConfig(Section):
    """How questions are answered."""

    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Most tokens of an answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 is greedy."""
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None
    """Answers the model is less confident of are withheld; empty takes the threshold that the
    model version was calibrated with, 0 leaves abstaining to the model. Above 0, answers are
    streamed at their end."""
    condense: Literal["off", "previous", "model"] = "previous"
    """What a follow-up question is searched with: itself, itself after the user's previous turn,
    or a version that the model rewrote to stand alone."""
    history_turns: Annotated[int, Field(ge=0, le=100)] = 4
    """Most earlier questions and answers shown to the model."""
    follow: str = ""
    """Feature store tag to read at (for example ``validated``); empty follows the newest."""
    log: bool = True
    """Write every answered request to ``inference_log``."""
    log_redact: bool = False
    """Leave question and answer texts out of the log."""
    log_sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of requests that are logged."""


class ExampleQuestion(Section):
    """A question that the chat page offers."""

    question: Annotated[str, Field(min_length=1, max_length=500)]
    """What it asks."""
    source: str = ""
    """End of the source of the document that answers it; offered only where a search finds that."""


class ServingConfig(Section):
    """The HTTP server."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but loopback needs ``keys_file``."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port; 0 picks a free one."""
    keys_file: Path | None = None
    """YAML of hashed API keys with scopes and collections (see ``rag-fti keys add``)."""
    max_queue: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Requests that may wait; beyond it the answer is 429."""
    max_running: Annotated[int, Field(ge=0, le=4096)] = 0
    """Requests worked on at once; 0 is twice the generator's batch."""
    max_models: Annotated[int, Field(ge=1, le=64)] = 3
    """Model versions kept in memory at once."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time a request's head, and then its body, may take to arrive, and for which a client
    may leave a long response unread."""
    request_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest time for one request."""
    max_request_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    """Largest request body."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Limit per key; 0 is none."""
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host headers that are accepted."""
    examples: Annotated[tuple[ExampleQuestion, ...], Field(max_length=12)] = ()
    """Questions that the empty chat page offers."""
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; none by default."""
    reload_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often aliases are looked up for a hot swap."""
    shutdown_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest wait for running streams at shutdown."""


class BatchConfig(Section):
    """Batch inference."""

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Questions computed together."""
    resume: bool = True
    """Continue an interrupted run on the same input and output."""
