"""An embedder without a model, and stores filled through the real ingestor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_fti import ids
from rag_fti.feature_store import FeatureStore
from rag_fti.features.chunking import Chunker, ChunkSettings
from rag_fti.features.ingestion import Ingestor
from rag_fti.features.loading import Limits
from rag_fti.protocols import EmbedderFingerprint, Vectors

DIMENSION = 16
_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")


class HashEmbedder:
    """Implements the embedder protocol: vectors are hashes, tokens are pieces of words."""

    def __init__(self, *, max_tokens: int = 128) -> None:
        self.embedded: list[str] = []
        self.fingerprint = EmbedderFingerprint(
            model="hash",
            weights_digest="0" * 64,
            dimension=DIMENSION,
            max_tokens=max_tokens,
            normalized=True,
            query_prompt="",
            document_prompt="",
        )

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        self.embedded += texts
        return self._vectors(texts)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._vectors(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_TOKEN.findall(text)) for text in texts]

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        for row, text in enumerate(texts):
            seed = int(ids.digest_text(text)[:8], 16)
            vectors[row] = np.random.default_rng(seed).normal(size=DIMENSION)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def make_chunker(embedder: HashEmbedder, **changes: int) -> Chunker:
    settings = {"max_tokens": 40, "overlap_tokens": 0, "min_tokens": 8, **changes}
    return Chunker(embedder=embedder, settings=ChunkSettings(**settings))


def make_ingestor(
    store: FeatureStore, embedder: HashEmbedder | None = None, **changes: Any
) -> Ingestor:
    embedder = embedder or HashEmbedder()
    store.prepare(embedder.fingerprint, language="English", stemming=True)
    options: dict[str, Any] = {
        "collection": "default",
        "run_id": "run",
        "workers": 1,
        "limits": Limits(parse_timeout_seconds=20),
        "exclude": (".*",),
        "batch_documents": 3,
        **changes,
    }
    return Ingestor(store=store, embedder=embedder, chunker=make_chunker(embedder), **options)


def write_corpus(root: Path, *, documents: int = 5, paragraphs: int = 6) -> Path:
    """Markdown files whose paragraphs all differ."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        parts = [f"# Document {number}"]
        for paragraph in range(paragraphs):
            if paragraph % 3 == 0:
                parts.append(f"## Section {paragraph // 3}")
            words = " ".join(f"word{number}x{paragraph}x{n}" for n in range(12))
            parts.append(f"Paragraph {paragraph} says {words}.")
        (root / f"doc-{number}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return root


def contents(store: FeatureStore) -> dict[str, list[dict[str, Any]]]:
    """All rows of documents and chunks, in a fixed order, without times and run ids."""
    result = {}
    for name, table in (("documents", store.documents()), ("chunks", store.chunks())):
        rows = table.drop_columns(
            [c for c in ("ingested_at", "run_id") if c in table.column_names]
        ).to_pylist()
        for row in rows:
            if "vector" in row:
                row["vector"] = [round(value, 3) for value in row["vector"]]
        result[name] = sorted(rows, key=lambda row: row.get("chunk_id", row["document_id"]))
    return result
