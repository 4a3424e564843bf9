"""A whole project in object storage: from documents to an answer, and on to the next model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import batch_inference, ingest, instruction_dataset, model_validation, training
from pipelines.cli import app
from rag_fti.config.evaluation import GateConfig
from rag_fti.inference import build_engine
from rag_fti.inference.model_pool import ModelPool
from rag_fti.retrieval import build_retriever
from rag_fti.roots import open_registry
from tests.features.made_up import HashEmbedder
from tests.object_storage.conftest import ObjectStore
from tests.pipelines.flow import settings_for, write_corpus, write_questions
from tests.training.tiny import LIBRARY_WARNINGS, build_llama

pytestmark = LIBRARY_WARNINGS

LENIENT = (GateConfig(name="answers", metric="f1", against="base", minimum=-1.0),)


def test_from_documents_to_answers(store: ObjectStore, tmp_path: Path) -> None:
    root, embedder = tmp_path / "data", HashEmbedder()
    questions = write_questions(tmp_path / "questions.jsonl")
    llama = build_llama(tmp_path / "llama")
    settings = settings_for(root, llama, questions, **store.settings())
    ingest.run(settings, [str(write_corpus(tmp_path / "corpus"))], embedder=embedder)

    dataset = instruction_dataset.run(settings, embedder=embedder)
    assert dataset.created and dataset.path.startswith(f"{store.uri}/datasets/instructions/")
    assert not instruction_dataset.run(settings, embedder=embedder).created

    trained = training.run(settings)
    assert trained.path == f"{store.uri}/registry/assistant/versions/1"
    assert training.run(settings, reuse=True).version == 1
    judged = model_validation.run(
        settings.model_copy(
            update={"evaluation": settings.evaluation.model_copy(update={"gates": LENIENT})}
        ),
        "assistant@challenger",
        embedder=embedder,
    )
    assert judged.promoted

    # Served, and swapped when the alias moves.
    registry = open_registry(settings.storage)
    pool = ModelPool(settings, retriever=build_retriever(settings, embedder=embedder))
    assert pool.load_default() == "assistant@1"
    first = registry.resolve("champion")
    registry.publish("assistant", first.path, first.manifest)
    registry.set_alias("assistant", "champion", 2, why="again")
    pool.refresh()
    with pool.lease() as engine:
        assert engine.answer("Who commands Arden Station?").model == "assistant@2"
    registry.rollback("assistant")
    pool.refresh()
    assert pool.current() == {"": "assistant@1"} and not pool.failures()
    pool.close()

    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "a", "question": "Who commands Arden Station?"}) + "\n")
    batch = batch_inference.run(
        settings,
        asked,
        tmp_path / "answers.jsonl",
        engine=build_engine(settings, embedder=embedder),
    )
    assert batch.to_dict()["contract"]["ok"]

    check_commands(store, settings_file(settings, tmp_path), dataset.dataset, tmp_path)
    assert {path.name for path in root.iterdir()} <= {"cache", "reports", "evaluations", "training"}


def settings_file(settings: Any, folder: Path) -> str:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True)))
    return str(path)


def check_commands(store: ObjectStore, config: str, dataset: str, folder: Path) -> None:
    """The ordinary commands over the same three URIs."""

    def call(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words, "--config", config, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout.splitlines()[-1]))

    listed = {model["ref"]: model for model in call("models")["models"]}
    assert listed["assistant@1"]["aliases"] == ["challenger", "champion"]
    assert listed["assistant@2"]["path"] == f"{store.uri}/registry/assistant/versions/2"
    assert call("models", "show", "champion")["intact"]
    assert call("promote", "assistant@2")["to_version"] == 2
    assert call("rollback")["to_version"] == 1
    assert len(call("models", "history", "assistant")["changes"]) == 6
    exported = folder / "exported"
    call("models", "export", "assistant@1", str(exported))
    assert (exported / "adapter_model.safetensors").is_file()
    assert call("models", "import", str(exported))["ref"] == "assistant@1"
    assert call("models", "gc", "--keep-last", "0", "--dry-run")["removed"] == []
    assert [entry["ref"] for entry in call("dataset", "list")["datasets"]] == [dataset]
    assert call("dataset", "show", dataset)["manifest"]["version"] in dataset
    call("dataset", "export", dataset, str(folder / "exported-data"))
    status = call("status")
    assert status["features"]["documents"] == 11 and len(status["models"]) == 2
    document = call("lineage", dataset)
    assert document["models"] == ["assistant@1", "assistant@2"]
    went_into = call("lineage", document["documents"][0])["went_into"]
    assert went_into["datasets"] == [dataset]
    call("train", "bundle", str(folder / "bundle"))
    assert (folder / "bundle/dataset/manifest.json").is_file()


@pytest.mark.parametrize("missing", ["datasets", "registry"])
def test_a_store_that_is_down_fails_with_one_message(
    missing: str, store: ObjectStore, tmp_path: Path
) -> None:
    values = {
        "storage.root": str(tmp_path),
        f"storage.{missing}": f"{store.uri}/{missing}",
        "storage.options": json.dumps({**store.options, "endpoint": "http://127.0.0.1:9"}),
    }
    words = ["dataset", "list"] if missing == "datasets" else ["models"]
    overrides = [f"{key}={value}" for key, value in values.items()]
    result = CliRunner().invoke(app, [*words, *overrides, "--json"])
    assert result.exit_code == 1
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert error["type"] == "StoreError" and "Cannot list" in error["message"]
