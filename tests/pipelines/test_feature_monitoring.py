from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import feature_monitoring, ingest
from rag_fti.config import Settings, load_settings
from rag_fti.config.features import FeatureMonitoringConfig
from rag_fti.errors import SnapshotNotFound
from rag_fti.feature_store import FeatureStore
from rag_fti.features.monitoring import (
    FeatureMetrics,
    categorical_psi,
    embedding_psi,
    mean_discrepancy,
    prometheus_text,
    psi,
)
from tests.features.made_up import HashEmbedder, write_corpus


def settings_for(tmp_path: Path) -> Settings:
    return load_settings(
        values={
            "storage.root": str(tmp_path / "data"),
            "chunking.max_tokens": 40,
            "chunking.min_tokens": 8,
        }
    )


def test_metrics_text_and_picture_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for(tmp_path)
    write_corpus(Path("docs"))
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    store = FeatureStore.open(settings.storage.features_uri)
    store.tag("validated")
    write_corpus(Path("more"), documents=8)
    ingest.run(settings, ["more"], embedder=HashEmbedder())
    summary = feature_monitoring.run(settings)
    metrics = summary.metrics
    assert metrics["reference"] == store.resolve("validated")
    assert (metrics["reference_documents"], metrics["documents"]) == (5, 8)  # five are the same
    assert json.loads(Path(summary.files["metrics.json"]).read_text()) == metrics
    assert "rag_fti_features_documents 8" in Path(summary.files["metrics.prom"]).read_text()
    assert Path(summary.files["drift.png"]).read_bytes().startswith(b"\x89PNG")


def test_without_a_tag_the_oldest_state_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for(tmp_path)
    write_corpus(Path("docs"), documents=2)
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    summary = feature_monitoring.run(settings, dry_run=True)
    assert summary.metrics["reference_chunks"] > 0
    assert summary.files == {}
    assert not (settings.storage.reports / "feature_monitoring").exists()


def test_the_reference_may_be_a_version_and_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for(tmp_path)
    write_corpus(Path("docs"), documents=2)
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    write_corpus(Path("docs"), documents=3)
    version = ingest.run(settings, ["docs"], embedder=HashEmbedder()).snapshot
    write_corpus(Path("docs"), documents=5)
    ingest.run(settings, ["docs"], embedder=HashEmbedder())

    def reference(name: str) -> FeatureMonitoringConfig:
        return settings.feature_monitoring.model_copy(update={"reference": name})

    chosen = settings.model_copy(update={"feature_monitoring": reference(version)})
    metrics = feature_monitoring.run(chosen, dry_run=True).metrics
    assert (metrics["reference"], metrics["reference_documents"]) == (version, 3)
    mistyped = settings.model_copy(update={"feature_monitoring": reference("validatd")})
    with pytest.raises(SnapshotNotFound, match="validatd"):
        feature_monitoring.run(mistyped, dry_run=True)


def test_stability_index_matches_the_formula_by_hand() -> None:
    # Shares 1/2, 1/2 against 3/4, 1/4: (1/4) ln(3/2) + (-1/4) ln(1/2).
    expected = 0.25 * np.log(1.5) - 0.25 * np.log(0.5)
    assert categorical_psi({"a": 2, "b": 2}, {"a": 3, "b": 1}) == pytest.approx(expected)
    assert categorical_psi({"a": 2}, {"a": 9}) == 0.0


def test_drift_is_seen_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 800, 16))
    assert psi(one[:, 0], other[:, 0]) < 0.05
    assert psi(one[:, 0], other[:, 0] + 1.0) > 0.5
    assert embedding_psi(one, other) < 0.05 < 0.2 < embedding_psi(one, other + 1.0)
    assert mean_discrepancy(one, other)[1] > 0.05
    assert mean_discrepancy(one, other + 1.0)[1] < 0.02


def test_names_of_collections_are_escaped() -> None:
    metrics = FeatureMetrics("d1c1", "d1c1", documents_by_collection={'a"b\\c\nd': 3})
    line = 'rag_fti_features_documents_by_collection{collection="a\\"b\\\\c\\nd"} 3'
    assert line in prometheus_text(metrics).splitlines()
