"""A store filled with made-up documents, without a model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rag_fti import ids, schemas
from rag_fti.feature_store import FeatureStore
from rag_fti.protocols import EmbedderFingerprint

DIMENSION = 16
FINGERPRINT = EmbedderFingerprint(
    model="made-up",
    weights_digest="0" * 64,
    dimension=DIMENSION,
    max_tokens=256,
    normalized=True,
    query_prompt="",
    document_prompt="",
)


def vector_of(text: str) -> np.ndarray:
    """A unit vector that depends on the text alone."""
    seed = int(ids.digest_text(text)[:8], 16)
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def rows_of(source: str, texts: list[str], *, collection: str = "default") -> tuple[dict, list]:
    """A document's row and its chunks' rows; chunks are the given texts."""
    document_id = ids.document_id(collection, source)
    version = ids.digest_json(texts)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = {
        "document_id": document_id,
        "collection": collection,
        "source": source,
        "sources": [source],
        "title": source,
        "media_type": "text/plain",
        "language": "en",
        "text": "".join(texts),
        "version": version,
        "raw_digest": version,
        "chunker_digest": "c" * 64,
        "chunk_count": len(texts),
        "metadata": "{}",
        "ingested_at": now,
        "run_id": "run",
    }
    chunks = []
    start = 0
    for ordinal, (chunk_id, text) in enumerate(
        zip(ids.chunk_ids(document_id, texts), texts, strict=True)
    ):
        chunks.append(
            {
                "chunk_id": chunk_id,
                "document_id": document_id,
                "document_version": version,
                "collection": collection,
                "source": source,
                "title": source,
                "heading": "",
                "page": None,
                "ordinal": ordinal,
                "start": start,
                "end": start + len(text),
                "tokens": len(text.split()),
                "text": text,
                "indexed_text": f"{source}\n{text}",
                "indexed_digest": ids.digest_text(f"{source}\n{text}"),
                "vector": vector_of(text).tolist(),
                "ingested_at": now,
            }
        )
        start += len(text)
    return document, chunks


Put = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """An empty store."""
    return FeatureStore.open(str(tmp_path / "features"))


@pytest.fixture
def put(store: FeatureStore) -> Put:
    """Writes a document into the store; returns its id."""

    def write(source: str, texts: list[str], *, collection: str = "default") -> str:
        store.prepare(FINGERPRINT, language="English", stemming=True)
        document, chunks = rows_of(source, texts, collection=collection)
        store.write_documents(
            pa.Table.from_pylist([document], schema=schemas.documents_schema()),
            pa.Table.from_pylist(chunks, schema=schemas.chunks_schema(DIMENSION)),
            replaces=[document["document_id"]],
        )
        return str(document["document_id"])

    return write
