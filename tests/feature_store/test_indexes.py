from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rag_fti import schemas
from rag_fti.errors import IncompatibleArtifact, StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.feature_store.indexes import SearchPolicy
from tests.feature_store.conftest import DIMENSION, FINGERPRINT, rows_of


def fill(store: FeatureStore, start: int, count: int) -> np.ndarray:
    """Chunks with clustered vectors; returns the vectors."""
    store.prepare(FINGERPRINT, language="English", stemming=True)
    generator = np.random.default_rng(start)
    centres = np.random.default_rng(0).normal(size=(20, DIMENSION))
    vectors = centres[np.arange(count) % 20] + 0.3 * generator.normal(size=(count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    document, chunks = rows_of(f"{start}.md", [f"text {start + n}" for n in range(count)])
    for chunk, vector in zip(chunks, vectors, strict=True):
        chunk["vector"] = vector.astype(np.float32).tolist()
    store.write_documents(
        pa.Table.from_pylist([document], schema=schemas.documents_schema()),
        pa.Table.from_pylist(chunks, schema=schemas.chunks_schema(DIMENSION)),
    )
    return vectors.astype(np.float32)


def test_a_full_text_index_keeps_its_language(store: FeatureStore) -> None:
    store.prepare(FINGERPRINT, language="German", stemming=True)
    store.prepare(FINGERPRINT, language="German", stemming=True)
    with pytest.raises(IncompatibleArtifact, match="German with stemming, the configuration asks"):
        store.prepare(FINGERPRINT, language="English", stemming=True)


def test_below_the_threshold_search_is_exact(store: FeatureStore) -> None:
    fill(store, 0, 300)
    policy = store.update_vector_index(kind="auto", exact_below=1000, target_recall=0.95)
    assert policy.kind == store.search_policy().kind == "none"
    assert store.measure_recall() == 1.0


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_rq"])
def test_an_index_is_tuned_until_it_reaches_the_target(store: FeatureStore, kind: str) -> None:
    vectors = fill(store, 0, 2000)
    before = store.snapshot()
    policy = store.update_vector_index(kind=kind, exact_below=0, target_recall=0.95)
    assert policy.kind == kind
    assert policy.recall >= 0.95
    assert policy.nprobes > 0
    assert store.search_policy() == policy == FeatureStore.open(store.uri).search_policy()
    assert store.search_policy(at=before) == SearchPolicy()
    assert store.measure_recall() >= 0.95
    hit = store.search_vectors(vectors[7], k=1)[0]
    assert hit.text == "text 7"
    assert hit.score == pytest.approx(1.0, abs=1e-3)


def test_new_rows_are_found_before_and_after_they_join_the_index(store: FeatureStore) -> None:
    fill(store, 0, 2000)
    policy = store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.95)
    new = fill(store, 5000, 50)
    assert store.search_vectors(new[3], k=1)[0].text == "text 5003"
    store.optimize()
    assert store.search_vectors(new[3], k=1)[0].text == "text 5003"
    again = store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.95)
    assert again == policy  # not rebuilt for a few rows
    fill(store, 9000, 2500)
    rebuilt = store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.95)
    assert rebuilt.rows == 4550


def test_filters_and_deletes_hold_with_an_index(store: FeatureStore) -> None:
    vectors = fill(store, 0, 2000)
    store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.95)
    hits = store.search_vectors(vectors[7], k=5, where="ordinal >= 1000")
    assert len(hits) == 5
    assert all(hit.ordinal >= 1000 for hit in hits)
    store.delete_documents([hits[0].document_id])
    assert store.search_vectors(vectors[7], k=5) == []


def test_a_narrow_filter_finds_rows_outside_the_probed_partitions(store: FeatureStore) -> None:
    vectors = fill(store, 0, 2000)
    policy = store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.1)
    assert policy.nprobes < 20
    hits = store.search_vectors(vectors[7], k=10, where="ordinal % 200 = 0")
    assert sorted(hit.ordinal for hit in hits) == list(range(0, 2000, 200))


def test_going_back_to_exact_search_drops_the_index(store: FeatureStore) -> None:
    fill(store, 0, 2000)
    store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=0.95)
    store.update_vector_index(kind="none", exact_below=0, target_recall=0.95)
    assert store.search_policy().kind == "none"
    assert store.measure_recall() == 1.0


def test_a_target_out_of_reach_is_an_error_not_a_worse_index(store: FeatureStore) -> None:
    fill(store, 0, 2000)
    with pytest.raises(StoreError, match=r"recall@10"):
        store.update_vector_index(kind="ivf_flat", exact_below=0, target_recall=1.1)
    assert store.search_policy().kind == "none"
