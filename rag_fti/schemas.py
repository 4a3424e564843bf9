"""The rows that pipelines hand to one another: Arrow schemas and their frozen dataclasses.

A stored table carries ``schema_version`` in its Arrow metadata; opening a table of another
version raises :class:`rag_fti.errors.SchemaMismatch`. Adding a nullable column keeps the
version; anything else raises it by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
_METADATA = {"schema_version": str(SCHEMA_VERSION)}

_TIMESTAMP = pa.timestamp("us", tz="UTC")


def documents_schema() -> pa.Schema:
    """One row per document: the cleaned text that all character offsets refer to."""
    return pa.schema(
        [
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("collection", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("sources", pa.list_(pa.string()), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("media_type", pa.string(), nullable=False),
            pa.field("language", pa.string(), nullable=False),
            pa.field("text", pa.large_string(), nullable=False),
            pa.field("version", pa.string(), nullable=False),
            pa.field("raw_digest", pa.string(), nullable=False),
            pa.field("chunker_digest", pa.string(), nullable=False),
            pa.field("chunk_count", pa.int32(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("ingested_at", _TIMESTAMP, nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            # Smallest hashes of its word 5-grams: near duplicates share one.
            pa.field("sketch", pa.list_(pa.int64()), nullable=True),
        ],
        metadata=_METADATA,
    )


def chunks_schema(dimension: int) -> pa.Schema:
    """One row per chunk; ``vector`` is float32 of shape ``(dimension,)``."""
    return pa.schema(
        [
            pa.field("chunk_id", pa.string(), nullable=False),
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("document_version", pa.string(), nullable=False),
            pa.field("collection", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("title", pa.string(), nullable=False),
            pa.field("heading", pa.string(), nullable=False),
            pa.field("page", pa.int32(), nullable=True),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            # Title and headings, then the text: what full text looks in.
            pa.field("indexed_text", pa.string(), nullable=False),
            # Of what was embedded: the same, but for a file name that is no title.
            pa.field("indexed_digest", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
            pa.field("ingested_at", _TIMESTAMP, nullable=False),
        ],
        metadata=_METADATA,
    )


def inference_log_schema() -> pa.Schema:
    """One row per answered request."""
    return pa.schema(
        [
            pa.field("response_id", pa.string(), nullable=False),
            pa.field("created_at", _TIMESTAMP, nullable=False),
            pa.field("key_id", pa.string(), nullable=False),
            pa.field("collections", pa.list_(pa.string()), nullable=False),
            pa.field("question", pa.string(), nullable=False),
            pa.field("answer", pa.string(), nullable=False),
            pa.field("abstained", pa.bool_(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("snapshot", pa.string(), nullable=False),
            pa.field("prompt_digest", pa.string(), nullable=False),
            pa.field("chunk_ids", pa.list_(pa.string()), nullable=False),
            pa.field("document_ids", pa.list_(pa.string()), nullable=False),
            pa.field("document_versions", pa.list_(pa.string()), nullable=False),
            pa.field("scores", pa.list_(pa.float32()), nullable=False),
            pa.field("cited", pa.list_(pa.int32()), nullable=False),
            pa.field("prompt_tokens", pa.int32(), nullable=False),
            pa.field("completion_tokens", pa.int32(), nullable=False),
            pa.field("retrieval_seconds", pa.float32(), nullable=False),
            pa.field("generation_seconds", pa.float32(), nullable=False),
            pa.field("settings", pa.string(), nullable=False),
        ],
        metadata=_METADATA,
    )


def feedback_schema() -> pa.Schema:
    """One row per thumb or correction."""
    return pa.schema(
        [
            pa.field("feedback_id", pa.string(), nullable=False),
            pa.field("response_id", pa.string(), nullable=False),
            pa.field("created_at", _TIMESTAMP, nullable=False),
            pa.field("key_id", pa.string(), nullable=False),
            pa.field("rating", pa.int8(), nullable=False),
            pa.field("correction", pa.string(), nullable=False),
            pa.field("comment", pa.string(), nullable=False),
        ],
        metadata=_METADATA,
    )


def predictions_schema() -> pa.Schema:
    """One row per question of a batch inference run."""
    return pa.schema(
        [
            pa.field("prediction_id", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("question_id", pa.string(), nullable=False),
            pa.field("question", pa.string(), nullable=False),
            pa.field("answer", pa.string(), nullable=False),
            pa.field("abstained", pa.bool_(), nullable=False),
            pa.field("citations", pa.string(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("snapshot", pa.string(), nullable=False),
            pa.field("error", pa.string(), nullable=False),
            pa.field("created_at", _TIMESTAMP, nullable=False),
            # The passages in the prompt, cited or not, in marker order.
            pa.field("chunk_ids", pa.list_(pa.string()), nullable=True),
            pa.field("document_ids", pa.list_(pa.string()), nullable=True),
        ],
        metadata=_METADATA,
    )


def instructions_schema() -> pa.Schema:
    """One row per training example of an instruction dataset."""
    message = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.large_string())])
    return pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("task", pa.string(), nullable=False),
            pa.field("question", pa.string(), nullable=False),
            pa.field("answer", pa.string(), nullable=False),
            pa.field("answerable", pa.bool_(), nullable=False),
            pa.field("messages", pa.list_(message), nullable=False),
            pa.field("context_chunk_ids", pa.list_(pa.string()), nullable=False),
            pa.field("supporting_chunk_ids", pa.list_(pa.string()), nullable=False),
            pa.field("withheld_chunk_ids", pa.list_(pa.string()), nullable=True),
            pa.field("document_ids", pa.list_(pa.string()), nullable=False),
            pa.field("document_versions", pa.list_(pa.string()), nullable=False),
            pa.field("group", pa.string(), nullable=False),
            pa.field("generator", pa.string(), nullable=False),
        ],
        metadata=_METADATA,
    )


def field_table(schema: pa.Schema) -> dict[str, str]:
    """A schema as ``{column: type}``, ``?`` after the type where it may be null."""
    return {f.name: f"{f.type}{'?' if f.nullable else ''}" for f in schema}


@dataclass(frozen=True)
class Document:
    """A loaded and cleaned document, before chunking."""

    document_id: str
    collection: str
    source: str
    """Path or URL as ingested."""
    title: str
    text: str
    """Cleaned text; every chunk's span counts characters of it."""
    media_type: str
    raw_digest: str
    """SHA-256 of the bytes as read."""
    version: str
    """Content hash of text, title, metadata and the loader's version."""
    language: str = ""
    pages: tuple[int, ...] = ()
    """Character offset at which each page starts; empty where there are no pages."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """A span of a document: ``document.text[start:end] == text``."""

    chunk_id: str
    document_id: str
    document_version: str
    ordinal: int
    start: int
    end: int
    text: str
    heading: str
    """Path of headings above the chunk, ``A > B``."""
    page: int | None
    """Page with most of its text, from 1."""
    tokens: int


Ranking = dict[int, float]
"""Row id to score, best first. Row ids hold for the snapshot that was searched and no other."""


@dataclass(frozen=True)
class Hit:
    """A retrieved chunk."""

    chunk_id: str
    document_id: str
    document_version: str
    source: str
    title: str
    heading: str
    page: int | None
    start: int
    end: int
    text: str
    score: float
    """Higher is better; the scale depends on the search mode."""
    ordinal: int = 0
    """Place among the document's chunks, from 0."""
    pages: tuple[tuple[int, int], ...] = ()
    """Offset in the document and number of each page that the chunk has a part of."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as in ``search --json``."""
        return asdict(self)


@dataclass(frozen=True)
class Citation:
    """A hit that an answer names."""

    marker: int
    """Number in the answer's text, from 1."""
    chunk_id: str
    document_id: str
    document_version: str
    source: str
    title: str
    heading: str
    page: int | None
    start: int
    """Offset of the cited words in the cleaned document (the whole chunk where the answer is
    not verbatim)."""
    end: int
    text: str
    """``document.text[start:end]``."""
    score: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, as in ``ask --json``."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """An answer with everything needed to trace it."""

    id: str
    question: str
    answer: str
    abstained: bool
    citations: tuple[Citation, ...]
    hits: tuple[Hit, ...]
    """All passages that were in the prompt, in marker order."""
    model: str
    """``name@version``."""
    dataset: str
    """Dataset version the model was trained on, empty for a base model."""
    snapshot: str
    prompt_digest: str
    prompt_tokens: int
    completion_tokens: int
    retrieval_seconds: float
    generation_seconds: float
    finish_reason: str = "stop"
    history: tuple[Mapping[str, str], ...] = ()
    """Earlier ``{"role", "content"}`` turns that were taken into account, oldest first."""
    confidence: float | None = None
    """See :attr:`rag_fti.protocols.Generation.confidence`; of what the model said, also where it
    was withheld."""

    def to_dict(self) -> dict[str, Any]:
        """The promised keys of ``ask --json`` plus token usage."""
        return {
            "id": self.id,
            "answer": self.answer,
            "abstained": self.abstained,
            "confidence": self.confidence,
            "citations": [citation.to_dict() for citation in self.citations],
            "model": self.model,
            "snapshot": self.snapshot,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
        }


@dataclass(frozen=True)
class Question:
    """One line of a question file."""

    id: str
    question: str
    answers: tuple[str, ...] = ()
    spans: tuple[Mapping[str, Any], ...] = ()
    """``{"source", "start", "end"}`` or ``{"source", "text"}``."""
    held_out: bool = False
    answerable: bool = True

    @property
    def judgeable(self) -> bool:
        """Whether a reply can be called right or wrong."""
        return bool(self.answers) or not self.answerable
