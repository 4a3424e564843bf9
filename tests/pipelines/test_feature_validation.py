from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipelines import feature_validation, ingest
from rag_fti.config import Settings, load_settings
from rag_fti.errors import ContractViolation
from rag_fti.feature_store import FeatureStore
from rag_fti.features.validation import measure
from tests.features.made_up import HashEmbedder, write_corpus


def settings_for(tmp_path: Path, **values: object) -> Settings:
    return load_settings(
        values={
            "storage.root": str(tmp_path / "data"),
            "chunking.max_tokens": 40,
            "chunking.min_tokens": 8,
            "feature_validation.sample_rows": 50,
            **values,
        }
    )


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("docs"))
    settings = settings_for(tmp_path)
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    return FeatureStore.open(settings.storage.features_uri)


def test_a_good_snapshot_gets_the_tag(tmp_path: Path, filled: FeatureStore) -> None:
    summary = feature_validation.run(settings_for(tmp_path), embedder=HashEmbedder())
    assert summary.validated
    assert filled.tags() == {"validated": summary.snapshot}
    assert summary.facts["recall"] == 1.0
    assert summary.facts["uncovered_characters"] == 0
    assert summary.facts["unfindable_chunks"] == 0
    assert summary.facts["least_reembedding_similarity"] > 0.999


def test_the_tag_follows_only_what_passes(tmp_path: Path, filled: FeatureStore) -> None:
    first = feature_validation.run(settings_for(tmp_path), embedder=HashEmbedder()).snapshot
    filled._tables.get("chunks").delete("ordinal = 1")
    with pytest.raises(ContractViolation, match=r"coverage.*complete documents"):
        feature_validation.run(settings_for(tmp_path), embedder=HashEmbedder())
    assert filled.tags() == {"validated": first}
    # The next ingest repairs it, and the tag moves on.
    ingest.run(settings_for(tmp_path), ["docs"], embedder=HashEmbedder())
    second = feature_validation.run(settings_for(tmp_path), embedder=HashEmbedder()).snapshot
    assert filled.tags() == {"validated": second} != {"validated": first}


def test_duplicates_are_limited_and_named(tmp_path: Path, filled: FeatureStore) -> None:
    text = Path("docs/doc-0.md").read_text()
    Path("docs/nearly.md").write_text(text + "\nOne more line at the end.\n")
    ingest.run(settings_for(tmp_path), ["docs"], embedder=HashEmbedder())
    summary = feature_validation.run(
        settings_for(tmp_path, **{"feature_validation.max_duplicate_rate": 0.9}),
        embedder=HashEmbedder(),
        dry_run=True,
    )
    assert summary.facts["near_duplicates"] == [["docs/doc-0.md", "docs/nearly.md"]]
    assert not summary.validated
    assert filled.tags() == {}
    assert not (settings_for(tmp_path).storage.reports / "feature_validation").exists()
    with pytest.raises(ContractViolation, match="duplicates"):
        feature_validation.run(
            settings_for(tmp_path, **{"feature_validation.max_duplicate_rate": 0.0}),
            embedder=HashEmbedder(),
        )


def test_chunks_that_say_nearly_the_same_are_found(tmp_path: Path, filled: FeatureStore) -> None:
    sections = [f"# Entry {n}\n\nMachine running without warnings, {n}.\n\n" for n in range(120)]
    Path("docs/log.md").write_text("".join(sections) * 2)
    settings = settings_for(tmp_path, **{"chunking.max_tokens": 16, "chunking.min_tokens": 1})
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    assert filled.count_chunks(where="source = 'docs/log.md'") > 100
    facts = measure(filled, embedder=HashEmbedder(), sample_rows=50)
    assert facts.unfindable_chunks == 0
    texts = Counter(filled.chunks(columns=["text"])["text"].to_pylist())
    repeated = sum(count for count in texts.values() if count > 1)
    assert facts.duplicate_rate == round(repeated / texts.total(), 4) > 0.5


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractViolation, match="documents"):
        feature_validation.run(settings_for(tmp_path), embedder=HashEmbedder())
