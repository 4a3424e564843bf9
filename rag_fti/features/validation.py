"""Is what lies in the feature store fit to be read? Measured on a pinned snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rag_fti import schemas
from rag_fti.datasets.near_duplicates import Groups, group_documents
from rag_fti.feature_store import FeatureStore, sql_in, sql_string
from rag_fti.features.chunking import embedded_text, uncovered_characters
from rag_fti.features.repetition import SIMILARITY
from rag_fti.protocols import Embedder
from rag_fti.schemas import Chunk

_CHECKED_DOCUMENTS = 200
_CHECKED_SEARCHES = 25
_RE_EMBEDDED = 32
_NEAR_DUPLICATE_DOCUMENTS = 2000
_CHUNK_COLUMNS = [
    "chunk_id", "document_id", "document_version", "source", "title", "text", "indexed_text",
    "vector",
]  # fmt: skip

Advance = Callable[[str], None]


@dataclass
class ValidationFacts:
    """What was measured; the names are those that the contract's checks read."""

    snapshot: str = ""
    documents: int = 0
    chunks: int = 0
    wrong_columns: list[str] = field(default_factory=list)
    nulls: int = 0
    bad_vectors: int = 0
    """Sampled vectors that are not finite, zero, or not of unit length where they should be."""
    uncovered_characters: int = 0
    incomplete_documents: int = 0
    repeated_chunk_rows: int = 0
    repeated_document_rows: int = 0
    duplicate_rate: float = 0.0
    """Share of chunks whose text another chunk has too."""
    recall: float = 1.0
    """Recall@10 of vector search as configured against exact search."""
    search_policy: dict[str, Any] = field(default_factory=dict)
    unfindable_chunks: int = 0
    """Sampled chunks that full-text search for their own words does not find."""
    least_reembedding_similarity: float = 1.0
    """Smallest cosine of a stored vector with the vector that the embedder gives now."""
    age_hours: float = 0.0
    """Age of the newest document."""
    near_duplicates: list[list[str]] = field(default_factory=list)
    """Groups of sources that say nearly the same; reported, not judged."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def measure(
    store: FeatureStore,
    *,
    embedder: Embedder,
    sample_rows: int,
    advance: Advance = lambda stage: None,
) -> ValidationFacts:
    """Measure the newest snapshot.

    Args:
        store: The feature store.
        embedder: The one that filled it.
        sample_rows: Chunks that are looked at closely.
        advance: Is told what comes next.

    Raises:
        StoreError: If the store cannot be read or holds nothing.
    """
    snapshot = store.snapshot()
    facts = ValidationFacts(snapshot=snapshot)
    advance("columns and rows")
    _measure_rows(store, facts)
    advance("vectors")
    sample = store.sample_chunks(sample_rows, at=snapshot, columns=_CHUNK_COLUMNS)
    _measure_vectors(sample, embedder, facts)
    advance("coverage")
    _measure_coverage(store, facts)
    advance("recall")
    facts.recall = round(store.measure_recall(), 4)
    facts.search_policy = asdict(store.search_policy())
    advance("full text")
    facts.unfindable_chunks = _unfindable(store, sample, snapshot)
    advance("near duplicates")
    facts.near_duplicates = near_duplicates(store, at=snapshot)
    return facts


def _measure_rows(store: FeatureStore, facts: ValidationFacts) -> None:
    at = facts.snapshot
    documents = store.documents(
        at=at, columns=["document_id", "collection", "source", "version", "ingested_at"]
    )
    facts.documents = documents.num_rows
    facts.chunks = store.count_chunks(at=at)
    expected = {
        "documents": schemas.documents_schema(),
        "chunks": schemas.chunks_schema(store.recipe().embedder.dimension),
    }
    found = {
        "documents": store.documents(at=at, where="false").schema,
        "chunks": store.chunks(at=at, where="false").schema,
    }
    facts.wrong_columns = [
        f"{table}.{column.name}"
        for table, schema in expected.items()
        for column in schema
        if column.name not in found[table].names
        or found[table].field(column.name).type != column.type
    ]
    facts.nulls = sum(documents[name].null_count for name in documents.column_names)
    facts.incomplete_documents = len(store.incomplete_documents(at=at))
    repeated = documents.num_rows - pc.count_distinct(documents["document_id"]).as_py()
    facts.repeated_document_rows = repeated
    facts.repeated_chunk_rows = store.repeated_chunks(at=at)
    texts = store.chunks(at=at, columns=["text"])["text"]
    # By hash and batch by batch: the texts of a large store fit no single Arrow array.
    hashes = (hash(text) for batch in texts.iterchunks() for text in batch.to_pylist())
    _, counts = np.unique(np.fromiter(hashes, np.int64, len(texts)), return_counts=True)
    facts.duplicate_rate = round(int(counts[counts > 1].sum()) / max(1, len(texts)), 4)
    newest = pc.max(documents["ingested_at"]).as_py()
    if newest is not None:
        facts.age_hours = round((datetime.now(UTC) - newest).total_seconds() / 3600, 3)


def _measure_vectors(sample: pa.Table, embedder: Embedder, facts: ValidationFacts) -> None:
    facts.nulls += sum(sample[name].null_count for name in sample.column_names)
    if not sample.num_rows:
        return
    vectors = np.asarray(sample["vector"].to_pylist(), dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    good = np.isfinite(vectors).all(axis=1) & (norms > 0)
    if embedder.fingerprint.normalized:
        good &= np.abs(norms - 1.0) < 1e-3
    facts.bad_vectors = int((~good).sum())
    rows = sample.select(["indexed_text", "title", "source"]).slice(0, _RE_EMBEDDED).to_pylist()
    texts = [
        embedded_text(row["indexed_text"], title=row["title"], source=row["source"]) for row in rows
    ]
    again = embedder.encode_documents(texts)
    stored = vectors[: len(texts)]
    lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    cosines = (again * stored).sum(axis=1) / np.maximum(lengths, 1e-12)
    facts.least_reembedding_similarity = round(float(cosines.min()), 4)


def _measure_coverage(store: FeatureStore, facts: ValidationFacts) -> None:
    identifiers = store.documents(at=facts.snapshot, columns=["document_id"])["document_id"]
    picks = np.random.default_rng(17).permutation(len(identifiers))[:_CHECKED_DOCUMENTS]
    wanted = identifiers.take(pa.array(np.sort(picks))).to_pylist()
    where = sql_in("document_id", wanted)
    columns = ["document_id", "document_version", "ordinal", "start", "end", "text"]
    chunks: dict[str, list[Chunk]] = {}
    for row in store.chunks(at=facts.snapshot, where=where, columns=columns).to_pylist():
        chunks.setdefault(row["document_id"], []).append(
            Chunk(chunk_id="", heading="", page=None, tokens=0, **row)
        )
    documents = store.documents(
        at=facts.snapshot, where=where, columns=["document_id", "text"]
    ).to_pylist()
    facts.uncovered_characters = sum(
        uncovered_characters(row["text"], chunks.get(row["document_id"], [])) for row in documents
    )


def _unfindable(store: FeatureStore, sample: pa.Table, at: str) -> int:
    """Sampled chunks with words for which full-text search does not find them.

    Only the chunk itself is searched: among many that say nearly the same it need not rank high.
    """
    missed = 0
    for row in sample.slice(0, _CHECKED_SEARCHES).to_pylist():
        words = [w for w in row["text"].split() if w.isalpha() and w.isascii() and len(w) > 5]
        if len(set(words)) < 3:  # they may all be stop words of the index
            continue
        longest = " ".join(word for word, _ in Counter(words).most_common(8))
        where = f"chunk_id = {sql_string(row['chunk_id'])}"
        hits = store.search_text(longest, k=1, where=where, at=at)
        missed += row["chunk_id"] not in {hit.chunk_id for hit in hits}
    return missed


def near_duplicates(store: FeatureStore, *, at: str = "") -> list[list[str]]:
    """Sources whose texts are near duplicates (Jaccard of word 5-grams), largest groups first.

    Looks at no more than the first 2,000 documents.
    """
    groups = Groups()
    texts = store.document_texts(at=at, limit=_NEAR_DUPLICATE_DOCUMENTS)
    group_documents(texts, similarity=SIMILARITY, groups=groups)
    found: dict[str, list[str]] = {}
    for row in store.documents(at=at, columns=["document_id", "source"]).to_pylist():
        found.setdefault(groups.find(row["document_id"]), []).append(row["source"])
    alike = [sorted(sources) for sources in found.values() if len(sources) > 1]
    return sorted(alike, key=lambda sources: (-len(sources), sources))[:50]
