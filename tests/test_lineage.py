from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rag_fti import ids, schemas
from rag_fti.errors import DatasetError, ModelNotFound, RagFtiError, SourceError
from rag_fti.feature_store import FeatureStore
from rag_fti.features.deletion import find_documents
from rag_fti.lineage import Stores, dataset_manifests, tainted_by, trace
from rag_fti.registry import Registry
from tests.inference.corpus import CORPUS, fill

KEYS, HOURS, BOATS = (ids.document_id("default", source) for source in CORPUS)


def write_dataset(root: Path, *, documents: list[list[str]]) -> str:
    directory = root / "handbook" / "v1"
    directory.mkdir(parents=True)
    schema = schemas.instructions_schema()
    rows: list[dict[str, Any]] = [
        {
            **{f.name: "" for f in schema if f.type == pa.string()},
            **{f.name: [] for f in schema if pa.types.is_list(f.type)},
            "example_id": f"e{n}",
            "answerable": True,
            "document_ids": used,
        }
        for n, used in enumerate(documents)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), directory / "train.parquet")
    pq.write_table(schema.empty_table(), directory / "test.parquet")
    manifest = {"snapshot": "d1c1", "prompt_digest": "p", "splits": {"train": len(rows)}}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return "handbook@v1"


def log_row(store: FeatureStore, response: str, documents: list[str], model: str) -> None:
    chunks = store.chunks(columns=["chunk_id", "document_id", "document_version"]).to_pylist()
    used = [next(c for c in chunks if c["document_id"] == d) for d in documents]
    schema = schemas.inference_log_schema()
    row: dict[str, Any] = {f.name: "" for f in schema if f.type == pa.string()}
    row |= {
        f.name: 0 for f in schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)
    }
    row |= {
        "response_id": response,
        "created_at": datetime.now(UTC),
        "collections": ["default"],
        "question": "Who keeps the key?",
        "answer": "Ada Byrne [1]",
        "abstained": False,
        "model": model,
        "snapshot": store.snapshot(),
        "chunk_ids": [c["chunk_id"] for c in used],
        "document_ids": documents,
        "document_versions": [c["document_version"] for c in used],
        "scores": [0.5] * len(used),
        "cited": [1],
    }
    store.append("inference_log", [row])


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """A document went into a dataset, the dataset into a model, the model made an answer."""
    features = FeatureStore.open(str(tmp_path / "features"))
    fill(features, CORPUS)
    dataset = write_dataset(tmp_path / "datasets", documents=[[KEYS], [KEYS, HOURS]])
    files = tmp_path / "staged"
    files.mkdir()
    (files / "adapter_model.safetensors").write_bytes(b"weights")
    registry = Registry.open(str(tmp_path / "registry"))
    base = {"reference": "tiny", "revision": "", "weights_digest": "w"}
    version = registry.publish("assistant", files, {"dataset": dataset, "base_model": base})
    registry.set_alias("assistant", "champion", version.version, who="test", why="only one")
    log_row(features, "answer-1", [KEYS, BOATS], version.ref)
    log_row(features, "answer-2", [BOATS], "base")
    return Stores(features, tmp_path / "datasets", registry)


def test_a_document_taints_what_was_made_from_it(stores: Stores) -> None:
    taint = tainted_by([KEYS], stores=stores)
    assert taint.to_dict() == {
        "datasets": ["handbook@v1"],
        "models": ["assistant@1"],
        "answers": ["answer-1"],
    }
    taint = tainted_by([BOATS], stores=stores)
    assert (taint.datasets, taint.models) == ((), ())
    assert sorted(taint.answers) == ["answer-1", "answer-2"]


def test_an_answer_leads_to_chunks_model_and_dataset(stores: Stores) -> None:
    found = trace("answer-1", stores=stores)
    assert found["kind"] == "answer"
    assert [chunk["document_id"] for chunk in found["chunks"]] == [KEYS, BOATS]
    assert [chunk["cited"] for chunk in found["chunks"]] == [True, False]
    assert found["chunks"][0]["now"]["source"] == "guide/keys.md"
    assert found["model"]["dataset"] == "handbook@v1"
    assert found["model"]["aliases"] == ["champion"]


def test_an_answer_still_names_a_chunk_that_is_gone(stores: Stores) -> None:
    stores.features.delete_documents([KEYS])
    found = trace("answer-1", stores=stores)
    assert found["chunks"][0]["document_id"] == KEYS
    assert found["chunks"][0]["now"] is None
    assert found["chunks"][1]["now"] is not None


def test_a_document_is_found_by_id_and_by_source(stores: Stores) -> None:
    by_source = trace("guide/keys.md", stores=stores)
    assert by_source == trace(KEYS, stores=stores)
    assert by_source["kind"] == "document"
    assert len(by_source["chunks"]) == 2
    chunk = trace(by_source["chunks"][0], stores=stores)
    assert chunk["kind"] == "chunk"
    assert chunk["went_into"] == by_source["went_into"]


def test_a_document_is_found_by_each_of_its_sources(stores: Stores) -> None:
    row = stores.features.documents(where=f"document_id = '{KEYS}'")
    sources = pa.array([["guide/keys.md", "copies/keys.md"]], row.schema.field("sources").type)
    position = row.schema.get_field_index("sources")
    row = row.set_column(position, row.schema.field("sources"), sources)
    stores.features.write_documents(row, stores.features.chunks(where="false"))
    assert trace("copies/keys.md", stores=stores)["id"] == KEYS
    assert trace("./copies//keys.md", stores=stores)["id"] == KEYS
    assert list(find_documents(stores.features, ["./copies//keys.md"])) == [KEYS]
    with pytest.raises(SourceError, match=r"There is: copies/keys\.md, guide/keys\.md"):
        find_documents(stores.features, ["keys.md"])


def test_what_a_deleted_document_went_into_is_still_told(stores: Stores) -> None:
    before = trace(KEYS, stores=stores)
    stores.features.delete_documents([KEYS])
    after = trace(KEYS, stores=stores)
    assert after == {
        "kind": "document",
        "id": KEYS,
        "deleted": True,
        "went_into": before["went_into"],
    }


def test_a_source_of_two_collections_is_not_guessed(stores: Stores) -> None:
    fill(stores.features, {"guide/keys.md": CORPUS["guide/keys.md"]}, collection="annex")
    with pytest.raises(RagFtiError, match="2 collections") as caught:
        trace("guide/keys.md", stores=stores)
    assert KEYS in caught.value.next_step


def test_dataset_and_model_point_at_each_other(stores: Stores) -> None:
    dataset = trace("handbook@v1", stores=stores)
    assert dataset["documents"] == sorted([KEYS, HOURS])
    assert dataset["models"] == ["assistant@1"]
    model = trace("assistant@1", stores=stores)
    assert model["dataset"] == "handbook@v1"
    assert trace("assistant@champion", stores=stores) == model
    assert trace("champion", stores=stores) == model
    assert trace("handbook@latest", stores=stores) == dataset


def test_datasets_and_models_are_told_without_a_feature_store(
    stores: Stores, tmp_path: Path
) -> None:
    alone = replace(stores, features=FeatureStore.open(str(tmp_path / "none")))
    assert trace("handbook@v1", stores=alone)["models"] == ["assistant@1"]
    assert trace("champion", stores=alone)["id"] == "assistant@1"


def test_models_that_garbage_collection_removed_are_still_told(
    stores: Stores, tmp_path: Path
) -> None:
    registry = stores.registry
    second = registry.publish("assistant", tmp_path / "staged", {"dataset": "handbook@v1"})
    registry.publish("assistant", tmp_path / "staged", {"dataset": "other@v1"})
    registry.gc("assistant", keep_last=1, min_age_seconds=0.0)
    with pytest.raises(ModelNotFound):
        registry.version("assistant", second.version)
    assert tainted_by([KEYS], stores=stores).models == ("assistant@1", "assistant@2")
    assert trace("handbook@v1", stores=stores)["models"] == ["assistant@1", "assistant@2"]
    removed = trace("assistant@2", stores=stores)
    assert (removed["dataset"], removed["retired"]) == ("handbook@v1", True)
    assert json.loads(Path(removed["manifest"]).read_text())["version"] == 2


def test_an_unknown_id_is_an_error(stores: Stores) -> None:
    for unknown in ("nothing", "nothing@1", "0" * 32):
        with pytest.raises(RagFtiError, match="Nothing is known"):
            trace(unknown, stores=stores)


def test_preferences_taint_and_unfinished_versions_do_not(stores: Stores) -> None:
    folder = stores.datasets / "handbook"
    pairs = pa.table({"document_ids": pa.array([[BOATS]], pa.list_(pa.string()))})
    pq.write_table(pairs, folder / "v1" / "preferences.parquet")
    assert tainted_by([BOATS], stores=stores).datasets == ("handbook@v1",)
    left = folder / ".v2-123-abc"
    left.mkdir()
    (left / "manifest.json").write_text("{}", encoding="utf-8")
    assert [version.ref for version in dataset_manifests(stores.datasets)] == ["handbook@v1"]
    (left.with_name("v0")).mkdir()
    (left.with_name("v0") / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match="holds no JSON object"):
        list(dataset_manifests(stores.datasets))
