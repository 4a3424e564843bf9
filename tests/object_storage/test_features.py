"""The feature store in object storage, through our own code."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines import ingest
from rag_fti.errors import StoreError
from rag_fti.feature_store import FeatureStore
from tests.features.made_up import HashEmbedder
from tests.object_storage.conftest import ObjectStore
from tests.pipelines.flow import settings_for, write_corpus, write_questions


def test_ingest_search_time_travel_and_delete(store: ObjectStore, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    questions = write_questions(tmp_path / "questions.jsonl")
    settings = settings_for(tmp_path / "data", tmp_path, questions, **store.settings())
    features = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    assert not features.exists()
    embedder = HashEmbedder()
    first = ingest.run(settings, [str(corpus)], embedder=embedder).to_dict()
    assert first["documents"]["added"] == 11 and first["contract"]["ok"]
    again = ingest.run(settings, [str(corpus)], embedder=embedder).to_dict()
    assert again["documents"]["unchanged"] == 11
    features.tag("before", features.snapshot())
    document = features.documents(columns=["document_id", "source"]).to_pylist()[0]
    assert features.delete_documents([document["document_id"]]) > 0
    assert len(features.documents(at="before")) == 11 and len(features.documents()) == 10
    features.optimize(keep_days=0)
    assert features.purge() == ["before"]
    features.untag("before")
    assert features.purge() == []
    thumb = {"feedback_id": "f", "response_id": "r", "created_at": datetime.now(UTC), "rating": 1}
    features.append("feedback", [{**thumb, "key_id": "", "correction": "", "comment": ""}])
    assert features.count_rows("feedback") == 1
    assert not list(tmp_path.glob("**/*.lance")) and not Path("s3:").exists()


def test_concurrent_ingests_lose_nothing(store: ObjectStore, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    questions = write_questions(tmp_path / "questions.jsonl")
    settings = settings_for(tmp_path / "data", tmp_path, questions, **store.settings())
    files = sorted(corpus.glob("*.md"))
    threads = [
        threading.Thread(
            target=ingest.run,
            args=(settings, [str(file) for file in files[start::2]]),
            kwargs={"embedder": HashEmbedder()},
        )
        for start in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    features = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    assert len(features.documents()) == 11
    assert not features.incomplete_documents()


def test_a_store_that_is_down_is_not_an_empty_one(store: ObjectStore) -> None:
    options = {**store.options, "endpoint": "http://127.0.0.1:9", "client_max_retries": "1"}
    with pytest.raises(StoreError):
        FeatureStore.open(f"{store.uri}/features", options=options).exists()
