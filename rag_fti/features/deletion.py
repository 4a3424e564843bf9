"""Deleting documents so that nothing of them is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rag_fti.errors import ContractViolation, SourceError
from rag_fti.feature_store import FeatureStore, sql_in
from rag_fti.features.loading.sources import source_name


@dataclass(frozen=True)
class Deletion:
    """What was deleted and what still holds its bytes."""

    documents: tuple[str, ...]
    """Ids."""
    sources: tuple[str, ...]
    """All sources of those documents."""
    chunks: int
    """Chunks removed."""
    pinned_by: tuple[str, ...]
    """Tags of older states that still hold the bytes; remove them to make those go too."""


def find_documents(
    store: FeatureStore, names: Sequence[str], *, collection: str = ""
) -> dict[str, list[str]]:
    """Documents by id or by source.

    Args:
        store: The feature store.
        names: Document ids or sources.
        collection: Only look there; empty looks everywhere.

    Returns:
        Document id to its sources.

    Raises:
        SourceError: If one of the names is not a document.
    """
    where = sql_in("collection", [collection]) if collection else None
    rows = store.documents(where=where, columns=["document_id", "sources"]).to_pylist()
    by_name: dict[str, set[str]] = {}
    for row in rows:
        for name in (row["document_id"], *row["sources"]):
            by_name.setdefault(name, set()).add(row["document_id"])
    wanted: set[str] = set()
    for name in names:
        known = name if name in by_name else source_name(name)
        if known not in by_name:
            last = PurePosixPath(known).name
            alike = [other for other in by_name if PurePosixPath(other).name == last]
            hint = f" There is: {', '.join(sorted(alike)[:3])}." if alike else ""
            raise SourceError(
                f"No document {name!r} in {store.uri}.",
                next_step=f"Name a document by its id or by its source as ingested.{hint}",
            )
        wanted |= by_name[known]
    return {r["document_id"]: r["sources"] for r in rows if r["document_id"] in wanted}


def delete_documents(store: FeatureStore, found: dict[str, list[str]]) -> Deletion:
    """Delete documents from tables, indexes and files, and look whether they are gone.

    Args:
        store: The feature store.
        found: Document id to its sources, as from :func:`find_documents`.

    Raises:
        ContractViolation: If something of them can still be found.
    """
    document_ids = list(found)
    chunks = store.delete_documents(document_ids)
    pinned = store.purge()
    where = sql_in("document_id", document_ids)
    left = store.count_chunks(where=where) + store.documents(where=where).num_rows
    if left:
        raise ContractViolation(
            f"delete: {left} rows of the documents are still there, expected 0.",
            next_step="Another ingest may have brought them back; run delete again.",
        )
    sources = tuple(sorted(source for some in found.values() for source in some))
    return Deletion(tuple(document_ids), sources, chunks, tuple(pinned))
