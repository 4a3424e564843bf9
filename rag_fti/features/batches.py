"""Documents with their chunks on the way into the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa

from rag_fti import schemas
from rag_fti.datasets.near_duplicates import document_sketch
from rag_fti.errors import ContractViolation
from rag_fti.features.chunking import uncovered_characters
from rag_fti.features.embedding import Embedded
from rag_fti.features.known import KnownDocument
from rag_fti.protocols import Vectors
from rag_fti.schemas import Chunk, Document


@dataclass
class Batch:
    """Documents that are committed together."""

    documents: list[Document] = field(default_factory=list)
    entries: list[KnownDocument] = field(default_factory=list)
    chunks: list[list[Chunk]] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)
    """Ids of documents that may have older chunks."""

    @property
    def chunk_count(self) -> int:
        """Chunks of all documents."""
        return sum(map(len, self.chunks))

    def add(
        self,
        document: Document,
        entry: KnownDocument,
        chunks: Sequence[Chunk],
        *,
        replaces: bool,
    ) -> None:
        """Put a document in.

        One with its id that waits already is replaced: a copy of another file that got its name
        from this one, which then turned out to have changed too.
        """
        for number, other in enumerate(self.documents):
            if other.document_id == document.document_id:
                del self.documents[number], self.entries[number], self.chunks[number]
                break
        self.documents.append(document)
        self.entries.append(entry)
        self.chunks.append(list(chunks))
        if replaces:
            self.replaces.append(document.document_id)


@dataclass(frozen=True)
class BatchCheck:
    """The invariants of a batch, measured before it is written."""

    characters: int
    uncovered_characters: int
    wrong_spans: int
    duplicate_chunk_ids: int
    bad_vectors: int

    def require(self) -> None:
        """Refuse a batch that breaks an invariant.

        Raises:
            ContractViolation: If it does; nothing of the batch is written.
        """
        wrong = {
            name: value
            for name in (
                "uncovered_characters",
                "wrong_spans",
                "duplicate_chunk_ids",
                "bad_vectors",
            )
            if (value := getattr(self, name))
        }
        if wrong:
            raise ContractViolation(
                f"ingest: invariant not met, expected 0 of each: {wrong}. The batch was not "
                "written.",
                next_step="This is a defect of the loader, chunker or embedder: please report it.",
            )


def check_batch(batch: Batch, vectors: Vectors) -> BatchCheck:
    """Measure a batch's invariants.

    Args:
        batch: The documents and chunks.
        vectors: Their vectors, float32 of shape ``(chunks, dimension)``.
    """
    pairs = list(zip(batch.documents, batch.chunks, strict=True))
    identifiers = [chunk.chunk_id for chunks in batch.chunks for chunk in chunks]
    finite = np.isfinite(vectors).all(axis=1) & (np.linalg.norm(vectors, axis=1) > 0)
    return BatchCheck(
        characters=sum(len(document.text) for document in batch.documents),
        uncovered_characters=sum(uncovered_characters(d.text, chunks) for d, chunks in pairs),
        wrong_spans=sum(d.text[c.start : c.end] != c.text for d, chunks in pairs for c in chunks),
        duplicate_chunk_ids=len(identifiers) - len(set(identifiers)),
        bad_vectors=int(len(vectors) - finite.sum()),
    )


def document_rows(batch: Batch, *, recipe: str, now: datetime, run_id: str) -> pa.Table:
    """Rows of ``documents``."""
    rows = [
        {
            "document_id": document.document_id,
            "collection": document.collection,
            "source": document.source,
            "sources": list(entry.sources),
            "title": document.title,
            "media_type": document.media_type,
            "language": document.language,
            "text": document.text,
            "version": document.version,
            "raw_digest": document.raw_digest,
            "chunker_digest": recipe,
            "chunk_count": len(chunks),
            "metadata": _metadata(document),
            "ingested_at": now,
            "run_id": run_id,
            "sketch": document_sketch(document.text),
        }
        for document, entry, chunks in zip(
            batch.documents, batch.entries, batch.chunks, strict=True
        )
    ]
    return pa.Table.from_pylist(rows, schema=schemas.documents_schema())


def _metadata(document: Document) -> str:
    values: dict[str, object] = dict(document.metadata)
    if document.pages:
        values["pages"] = list(document.pages)
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def chunk_rows(
    batch: Batch, texts: Sequence[str], embedded: Embedded, *, now: datetime
) -> pa.Table:
    """Rows of ``chunks``.

    Args:
        batch: The documents and chunks.
        texts: Indexed text of every chunk, in order.
        embedded: Their vectors and digests.
        now: When they came in.
    """
    owners = [d for d, chunks in zip(batch.documents, batch.chunks, strict=True) for _ in chunks]
    chunks = [chunk for some in batch.chunks for chunk in some]
    dimension = embedded.vectors.shape[1]
    schema = schemas.chunks_schema(dimension)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(embedded.vectors.reshape(-1), pa.float32()), dimension
    )
    columns = {
        "chunk_id": [c.chunk_id for c in chunks],
        "document_id": [c.document_id for c in chunks],
        "document_version": [c.document_version for c in chunks],
        "collection": [d.collection for d in owners],
        "source": [d.source for d in owners],
        "title": [d.title for d in owners],
        "heading": [c.heading for c in chunks],
        "page": [c.page for c in chunks],
        "ordinal": [c.ordinal for c in chunks],
        "start": [c.start for c in chunks],
        "end": [c.end for c in chunks],
        "tokens": [c.tokens for c in chunks],
        "text": [c.text for c in chunks],
        "indexed_text": list(texts),
        "indexed_digest": list(embedded.digests),
        "vector": vectors,
        "ingested_at": [now] * len(chunks),
    }
    return pa.table(columns, schema=schema)
