from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from rag_fti.registry import Registry
from tests.training.tiny import build_dataset, build_llama


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAG_FTI_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def registry(root: Path, tmp_path: Path) -> Registry:
    files = tmp_path / "files"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    registry = Registry.open(str(root / "registry"))
    for _ in range(5):
        registry.publish("assistant", files, {"dataset": "d@1"})
    registry.set_alias("assistant", "challenger", 5, why="trained")
    return registry


def call(*words: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_promote_rollback_and_history(registry: Registry) -> None:
    assert call("promote", "assistant@2", "--why", "reviewed")["to_version"] == 2
    assert call("promote", "challenger")["to_version"] == 5
    assert call("rollback")["to_version"] == 2
    assert call("rollback", "assistant", code=1)["error"]["type"] == "ModelNotFound"
    changes = call("models", "history", "assistant")["changes"]
    assert [(c["alias"], c["to_version"]) for c in changes] == [
        ("challenger", 5),
        ("champion", 2),
        ("champion", 5),
        ("champion", 2),
    ]
    assert changes[1]["why"] == "reviewed"


def test_models_are_listed_shown_and_moved(registry: Registry, tmp_path: Path) -> None:
    listed = call("models")["models"]
    assert [m["ref"] for m in listed] == [f"assistant@{n}" for n in range(1, 6)]
    assert listed[-1]["aliases"] == ["challenger"]
    assert call("models", "list") == call("models")
    shown = call("models", "show", "challenger")
    assert shown["intact"] and shown["manifest"]["dataset"] == "d@1"
    call("models", "export", "assistant@1", str(tmp_path / "out"))
    imported = call("models", "import", str(tmp_path / "out"), "--name", "other")
    assert imported["ref"] == "other@1"
    assert registry.aliases("other") == {"challenger": 1}
    assert "error" in call("models", "import", str(tmp_path), code=1)


def test_gc_shows_before_it_removes(registry: Registry) -> None:
    assert call("models", "gc", "--keep-last", "0")["removed"] == []  # all are of this hour
    old = ("--keep-last", "1", "--min-age-hours", "0")
    plan = call("models", "gc", *old, "--dry-run")
    assert plan["removed"] == [f"assistant@{n}" for n in range(1, 5)]
    assert len(registry.versions("assistant")) == 5
    assert call("models", "gc", *old)["removed"] == plan["removed"]
    assert [v.version for v in registry.versions("assistant")] == [5]


def test_datasets_are_listed_shown_and_exported(root: Path, tmp_path: Path) -> None:
    version = build_dataset(root / "datasets")
    assert call("dataset", "list")["datasets"][0]["ref"] == version.ref
    shown = call("dataset", "show", "colours@latest", "--rows", "1", "--split", "test")
    assert len(shown["rows"]) == 1 and shown["manifest"]["splits"]["train"] == 32
    written = call(
        "dataset", "export", "colours@latest", str(tmp_path / "out"), "--format", "alpaca"
    )
    assert len(written["files"]) == 4
    wrong = call(
        "dataset", "export", "colours@latest", str(tmp_path / "x"), "--format", "xml", code=2
    )
    assert "Unknown format 'xml'" in wrong["error"]["message"]
    assert "no dataset" in call("dataset", "show", "none@latest", code=1)["error"]["message"]


def test_train_names_a_bundle_and_its_options(root: Path, tmp_path: Path) -> None:
    version = build_dataset(root / "datasets")
    llama = build_llama(tmp_path / "llama")
    bundle = call(
        "train", "bundle", str(tmp_path / "bundle"), "--dataset", version.ref,
        "--base-model", str(llama),
    )  # fmt: skip
    assert bundle["dataset"] == version.ref and bundle["includes_base_model"]
    plan = call(
        "train", "--dataset", version.ref, "--base-model", str(llama), "--dry-run",
        "training.epochs=1",
    )  # fmt: skip
    assert plan["version"] is None and plan["metrics"]["train_rows"] == 32
    assert call("train", "training.nonsense=1", code=2)["error"]["type"] == "ConfigError"
    assert call("train", "--dataset", "no@latest", code=1)["error"]["type"] == "DatasetError"
