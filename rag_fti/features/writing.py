"""The writing end of an ingest: batches of documents are chunked, embedded, checked, committed."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from rag_fti import ids, schemas
from rag_fti.feature_store import FeatureStore, sql_in
from rag_fti.features.batches import Batch, check_batch, chunk_rows, document_rows
from rag_fti.features.chunking import Chunker, embedded_text
from rag_fti.features.embedding import embed_texts
from rag_fti.features.known import KnownDocument
from rag_fti.features.repetition import near_duplicates_of
from rag_fti.features.totals import IngestTotals
from rag_fti.progress import Progress
from rag_fti.protocols import Embedder, Vectors
from rag_fti.schemas import Document

_BATCHES_PER_OPTIMIZE = 50
"""Commits after which new rows are indexed, so that looking rows up stays fast in long runs."""


class Writer:
    """Collects what one pass over sources changes, and commits it.

    Args:
        store: Prepared for the embedder.
        embedder: Computes vectors.
        chunker: Cuts documents.
        collection: Where documents go.
        recipe: Digest of loader and chunker, recorded with every document.
        run_id: Recorded with every document.
        max_documents: Documents after which a batch is full.
        max_chunks: Chunks after which a batch is full.
        progress: Is told how far it is.
        totals: Are kept up to date.
    """

    def __init__(
        self,
        *,
        store: FeatureStore,
        embedder: Embedder,
        chunker: Chunker,
        collection: str,
        recipe: str,
        run_id: str,
        max_documents: int,
        max_chunks: int,
        progress: Progress,
        totals: IngestTotals,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._chunker = chunker
        self._collection = collection
        self._recipe = recipe
        self._run_id = run_id
        self._max_documents = max_documents
        self._max_chunks = max_chunks
        self._progress = progress
        self._totals = totals
        self._batch = Batch()
        self._resourced: dict[str, KnownDocument] = {}
        self._deletions: list[str] = []
        self._embedded = 0
        self._now = datetime.now(UTC)

    @property
    def full(self) -> bool:
        """Whether enough is waiting for a commit."""
        return (
            len(self._batch.documents) >= self._max_documents
            or self._batch.chunk_count >= self._max_chunks
        )

    def add(self, document: Document, entry: KnownDocument, *, replaces: bool) -> None:
        """Put a document in.

        Args:
            document: What to chunk and store.
            entry: Its sources.
            replaces: Whether it may have older chunks.
        """
        if document.document_id in self._deletions:
            self._deletions.remove(document.document_id)
            replaces = True
        self._resourced.pop(document.document_id, None)
        self._batch.add(document, entry, self._chunker.chunk(document), replaces=replaces)

    def delete(self, document_id: str) -> None:
        """Remove a document with the next commit."""
        self._resourced.pop(document_id, None)
        self._deletions.append(document_id)

    def update_sources(self, document: KnownDocument) -> None:
        """Write the sources of a document whose content stays."""
        self._resourced[document.document_id] = document

    def flush(self) -> None:
        """Embed and commit what is waiting."""
        batch, self._batch = self._batch, Batch()
        if batch.documents:
            self._write(batch)
        if self._deletions:
            gone, self._deletions = self._deletions, []
            self._totals.chunks_deleted += self._store.delete_documents(gone)
            self._totals.forget_near_duplicates(
                lambda source: ids.document_id(self._collection, source) in gone
            )
        self._write_sources()

    def _write(self, batch: Batch) -> None:
        texts = [
            self._chunker.indexed_text(document, chunk)
            for document, chunks in zip(batch.documents, batch.chunks, strict=True)
            for chunk in chunks
        ]
        owners = [d for d, some in zip(batch.documents, batch.chunks, strict=True) for _ in some]
        embedded = embed_texts(
            [
                embedded_text(text, title=document.title, source=document.source)
                for document, text in zip(owners, texts, strict=True)
            ],
            embedder=self._embedder,
            known=self._store.vectors_by_indexed_digest,
            advance=self._advance,
        )
        self._check(batch, embedded.vectors)
        totals = self._totals
        computed = int(embedded.computed.sum())
        totals.chunks_added += computed
        totals.chunks_reused += len(texts) - computed
        totals.chunks_deleted += self._stale(batch)
        rows = document_rows(batch, recipe=self._recipe, now=self._now, run_id=self._run_id)
        self._store.write_documents(
            rows,
            chunk_rows(batch, texts, embedded, now=self._now),
            replaces=batch.replaces,
        )
        totals.note_near_duplicates(
            near_duplicates_of(
                batch.documents,
                sketches=rows["sketch"].to_pylist(),
                store=self._store,
                collection=self._collection,
            )
        )
        for document in batch.documents:
            self._resourced.pop(document.document_id, None)  # written with all its sources
        totals.batches += 1
        if totals.batches % _BATCHES_PER_OPTIMIZE == 0:
            self._store.optimize(keep_days=None)

    def _check(self, batch: Batch, vectors: Vectors) -> None:
        found = check_batch(batch, vectors)
        totals = self._totals
        totals.characters += found.characters
        totals.uncovered_characters += found.uncovered_characters
        totals.wrong_spans += found.wrong_spans
        totals.duplicate_chunk_ids += found.duplicate_chunk_ids
        totals.bad_vectors += found.bad_vectors
        found.require()

    def _stale(self, batch: Batch) -> int:
        """Chunks that the batch's documents have and will not have any more."""
        if not batch.replaces:
            return 0
        stored = self._store.chunks(
            where=sql_in("document_id", batch.replaces), columns=["chunk_id"]
        )
        kept = {chunk.chunk_id for chunks in batch.chunks for chunk in chunks}
        return sum(chunk_id not in kept for chunk_id in stored["chunk_id"].to_pylist())

    def _advance(self, count: int) -> None:
        self._embedded += count
        self._progress.update("embedding chunks", self._embedded)

    def _write_sources(self) -> None:
        waiting, self._resourced = self._resourced, {}
        if not waiting:
            return
        rows = self._store.documents(where=sql_in("document_id", list(waiting)))
        changed = [
            {**row, "sources": list(waiting[row["document_id"]].sources)}
            for row in rows.to_pylist()
        ]
        self._store.write_documents(
            pa.Table.from_pylist(changed, schema=schemas.documents_schema()),
            schemas.chunks_schema(self._embedder.fingerprint.dimension).empty_table(),
        )
        self._totals.batches += 1
