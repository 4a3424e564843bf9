"""Searching a real store while its states come and go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from rag_fti.errors import StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.protocols import Vectors
from rag_fti.retrieval import Retriever
from tests.inference.corpus import CORPUS, HashEmbedder, fill


class Interrupting(HashEmbedder):
    """Deletes a document for good between the choice of a snapshot and the search."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.doomed: list[str] = []

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        if self.doomed:
            self.store.delete_documents([self.doomed.pop()])
            self.store.purge()
        return self.encode_documents(texts)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(str(tmp_path / "features"))


def test_a_purge_in_the_middle_of_a_search_is_not_an_error(store: FeatureStore) -> None:
    doomed, *_ = fill(store, CORPUS)
    embedder = Interrupting(store)
    retriever = Retriever(store=store, embedder=embedder)
    before = retriever.retrieve("Who keeps the cellar key?")
    assert before.hits[0].document_id == doomed
    embedder.doomed = [doomed]
    after = retriever.retrieve("Who keeps the attic key?")
    assert after.snapshot == store.snapshot() != before.snapshot
    assert after.hits
    assert all(hit.document_id != doomed for hit in after.hits)


def test_a_state_that_was_asked_for_and_is_gone_stays_an_error(store: FeatureStore) -> None:
    doomed, *_ = fill(store, CORPUS)
    at = store.snapshot()
    embedder = Interrupting(store)
    retriever = Retriever(store=store, embedder=embedder)
    embedder.doomed = [doomed]
    with pytest.raises(StoreError):
        retriever.retrieve("Who keeps the attic key?", at=at)
