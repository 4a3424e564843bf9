"""What the store already holds, as far as an ingest needs to know it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rag_fti.feature_store import FeatureStore, sql_string

_COLUMNS = ["document_id", "source", "sources", "raw_digest", "chunker_digest"]


@dataclass
class KnownDocument:
    """A stored document without its text."""

    document_id: str
    sources: list[str]
    """All files with this content; the first is the one that the document is named after."""
    raw_digest: str
    current: bool
    """Whether it is complete and was made with today's recipe."""


@dataclass
class KnownDocuments:
    """The stored documents of one collection, by source and by content."""

    by_source: dict[str, KnownDocument] = field(default_factory=dict)
    by_digest: dict[str, KnownDocument] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    """Ids of documents whose row and chunks disagree: a run was interrupted between them."""

    @classmethod
    def read(
        cls, store: FeatureStore, *, collection: str, recipe_digest: str, repair: bool = True
    ) -> KnownDocuments:
        """Read the state of a collection.

        Args:
            store: The feature store.
            collection: Whose documents.
            recipe_digest: Today's chunker digest; documents made with another are not current.
            repair: Look through all chunks for documents that are not complete.
        """
        broken = store.incomplete_documents() if repair else frozenset()
        known = cls(broken=broken)
        if not store.exists():
            return known
        rows = store.documents(where=f"collection = {sql_string(collection)}", columns=_COLUMNS)
        for row in _rows(rows):
            current = row["chunker_digest"] == recipe_digest and row["document_id"] not in broken
            others = [s for s in row["sources"] if s != row["source"]]
            known.add(
                KnownDocument(
                    row["document_id"], [row["source"], *others], row["raw_digest"], current
                )
            )
        return known

    def add(self, document: KnownDocument) -> None:
        """Take a document in."""
        for source in document.sources:
            self.by_source[source] = document
        if document.current:
            self.by_digest.setdefault(document.raw_digest, document)

    def remove_source(self, source: str) -> None:
        """Forget that a source has the content it had."""
        document = self.by_source.pop(source)
        document.sources.remove(source)
        if not document.sources and self.by_digest.get(document.raw_digest) is document:
            del self.by_digest[document.raw_digest]


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()
