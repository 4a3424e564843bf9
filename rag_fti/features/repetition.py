"""Which documents nearly repeat another one, found as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rag_fti.datasets.near_duplicates import DocumentShingles, document_shingles
from rag_fti.feature_store import FeatureStore, sql_in, sql_string
from rag_fti.features.totals import NearDuplicate
from rag_fti.schemas import Document

SIMILARITY = 0.8
"""Jaccard similarity of word 5-grams from which documents count as near duplicates."""

_MOST_MET = 2000
"""Stored documents that are looked at per batch, and"""

_MOST_COMPARED = 64
"""those whose text is read: a batch costs the same in any store."""


def near_duplicates_of(
    documents: Sequence[Document],
    *,
    sketches: Sequence[Sequence[int]],
    store: FeatureStore,
    collection: str,
) -> list[NearDuplicate]:
    """Near duplicates of documents that were just written.

    The store finds documents that share an element of a sketch; only their texts are read.

    Args:
        documents: What was written, all of one collection.
        sketches: Theirs, as stored.
        store: Where they and all others are.
        collection: Theirs.
    """
    wanted = sorted({value for sketch in sketches for value in sketch})
    if not wanted:
        return []
    rows = store.documents(
        where=f"collection = {sql_string(collection)} "
        f"AND array_has_any(sketch, [{', '.join(map(str, wanted))}])",
        columns=["document_id", "source", "sketch"],
        limit=_MOST_MET,
    ).to_pylist()
    pairs = [
        (document, other)
        for document, sketch in zip(documents, map(frozenset, sketches), strict=True)
        for other in rows
        if other["document_id"] != document.document_id and sketch.intersection(other["sketch"])
    ]
    texts = {document.document_id: document.text for document in documents}
    texts.update(_texts(store, [other["document_id"] for _, other in pairs], known=texts))
    return _alike(pairs, texts)


def _texts(store: FeatureStore, wanted: Sequence[str], *, known: dict[str, str]) -> dict[str, str]:
    missing = list(dict.fromkeys(name for name in wanted if name not in known))[:_MOST_COMPARED]
    if not missing:
        return {}
    rows = store.documents(where=sql_in("document_id", missing), columns=["document_id", "text"])
    return {row["document_id"]: row["text"] for row in rows.to_pylist()}


def _alike(
    pairs: Sequence[tuple[Document, dict[str, Any]]], texts: dict[str, str]
) -> list[NearDuplicate]:
    shingles: dict[str, DocumentShingles] = {}
    met: set[frozenset[str]] = set()
    found = []
    for document, other in pairs:
        pair = frozenset((document.document_id, other["document_id"]))
        if pair in met or other["document_id"] not in texts:
            continue
        met.add(pair)
        for name in pair - shingles.keys():
            shingles[name] = document_shingles(texts[name])
        one, two = (shingles[name] for name in pair)
        similarity = one.similarity(two)
        if similarity >= SIMILARITY:
            found.append(NearDuplicate(document.source, other["source"], round(similarity, 3)))
    return sorted(found, key=lambda pair: (-pair.similarity, pair.source, pair.like))
