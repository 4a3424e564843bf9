"""A small real feature store, and stand-ins for the two models that keep their promises."""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from rag_fti import ids, prompts, schemas
from rag_fti.feature_store import FeatureStore
from rag_fti.protocols import (
    Cancellation,
    EmbedderFingerprint,
    Generation,
    GenerationRequest,
    Message,
    Vectors,
)

DIMENSION = 64
CHUNKER_DIGEST = "c" * 64

CORPUS = {
    "guide/keys.md": "The cellar key is kept by Ada Byrne.\n\nThe attic key hangs in the hall.",
    "guide/hours.md": "The office opens at 9:00 on weekdays.\n\nIt stays closed on Sundays.",
    "guide/boats.md": "The ferry Éclair leaves from pier 4.\n\nDogs travel free of charge.",
}


class HashEmbedder:
    """Hashed bag of words: equal words, close vectors."""

    fingerprint = EmbedderFingerprint("hash", "h" * 64, DIMENSION, 512, True, "", "")

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        rows = np.full((len(texts), DIMENSION), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                rows[row, zlib.crc32(word.encode()) % DIMENSION] += 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    encode_queries = encode_documents

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(re.findall(r"\w+|\S", text)) for text in texts]


class FirstSentence:
    """Answers with the first sentence of passage 1 that shares a long word with the question,
    word by word; abstains where none does."""

    def __init__(self, name: str = "first-sentence", *, delay: float = 0.0) -> None:
        self.model = name
        self.context_window = 2000
        self.delay = delay
        self.requests: deque[GenerationRequest] = deque(maxlen=100)  # a soak asks many thousands
        self.cancelled = 0
        self.closed = False

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(m["content"].split()) + 1 for m in messages)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def reply(self, request: GenerationRequest) -> str:
        content = request.messages[-1]["content"]
        question, _, rest = content.partition("\n\n")
        words = {w for w in re.findall(r"\w+", question.lower()) if len(w) > 4}
        for number, passage in enumerate(
            re.findall(r"<passage>.*?\n(.*?)</passage>", rest, re.S), 1
        ):
            for sentence in re.split(r"(?<=[.!?])\s+", passage):
                if words & set(re.findall(r"\w+", sentence.lower())):
                    return f"{sentence} {prompts.marker(number)}"
        return prompts.ABSTENTION

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        made = []
        for request in requests:
            *_, last = self.stream(request)
            assert isinstance(last, Generation)
            made.append(last)
        return made

    def stream(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> Iterator[str | Generation]:
        import time

        self.requests.append(request)
        cancellation = cancellation or Cancellation()
        said: list[str] = []
        reason = "stop"
        for word in re.findall(r"\S+\s*", self.reply(request)):
            if cancellation.cancelled:
                self.cancelled += 1
                reason = "cancelled"
                break
            if len(said) >= request.max_tokens:
                reason = "length"
                break
            time.sleep(self.delay)
            said.append(word)
            yield word
        yield Generation(
            text="".join(said),
            prompt_tokens=self.count_prompt_tokens(request.messages),
            completion_tokens=len(said),
            finish_reason=reason,
        )

    def close(self) -> None:
        self.closed = True


def fill(
    store: FeatureStore,
    texts: Mapping[str, str],
    *,
    collection: str = "default",
    chunker_digest: str = CHUNKER_DIGEST,
) -> list[str]:
    """Store each text as a document whose chunks are its paragraphs; returns document ids."""
    embedder = HashEmbedder()
    store.prepare(embedder.fingerprint, language="English", stemming=True)
    now = datetime.now(UTC)
    documents, chunks, made = [], [], []
    for source, text in texts.items():
        document_id = ids.document_id(collection, source)
        version = ids.content_id(text)
        made.append(document_id)
        spans = paragraph_spans(text)
        documents.append(
            {
                "document_id": document_id,
                "collection": collection,
                "source": source,
                "sources": [source],
                "title": Path(source).stem,
                "media_type": "text/markdown",
                "language": "en",
                "text": text,
                "version": version,
                "raw_digest": ids.digest_text(text),
                "chunker_digest": chunker_digest,
                "chunk_count": len(spans),
                "metadata": "{}",
                "ingested_at": now,
                "run_id": "test",
            }
        )
        pieces = [text[start:end] for start, end in spans]
        vectors = embedder.encode_documents(pieces)
        for ordinal, (chunk_id, (start, end)) in enumerate(
            zip(ids.chunk_ids(document_id, pieces), spans, strict=True)
        ):
            piece = text[start:end]
            chunks.append(
                {
                    "chunk_id": chunk_id,
                    "document_id": document_id,
                    "document_version": version,
                    "collection": collection,
                    "source": source,
                    "title": Path(source).stem,
                    "heading": "",
                    "page": None,
                    "ordinal": ordinal,
                    "start": start,
                    "end": end,
                    "tokens": len(piece.split()),
                    "text": piece,
                    "indexed_text": piece,
                    "indexed_digest": ids.digest_text(piece),
                    "vector": vectors[ordinal].tolist(),
                    "ingested_at": now,
                }
            )
    store.write_documents(
        pa.Table.from_pylist(documents, schema=schemas.documents_schema()),
        pa.Table.from_pylist(chunks, schema=schemas.chunks_schema(DIMENSION)),
        replaces=made,
    )
    return made


def paragraph_spans(text: str) -> list[tuple[int, int]]:
    starts = [0, *(match.end() for match in re.finditer(r"\n\n", text))]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))
