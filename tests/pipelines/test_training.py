from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines import training
from pipelines.cli import app
from rag_fti.config import Settings, load_settings
from rag_fti.errors import ContractViolation, DatasetError, IncompatibleArtifact, ModelNotFound
from rag_fti.progress import Silent
from rag_fti.registry import Registry
from rag_fti.training.job import JobOptions, run_job
from rag_fti.training.saving import save_merged
from tests.training.test_fitting import Notes
from tests.training.tiny import LIBRARY_WARNINGS, build_dataset, build_llama, make_rows

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("llama"))


def settings_for(root: Path, llama: Path, **training_values: Any) -> Settings:
    values = {
        "storage.root": str(root),
        "training.dataset": "colours@latest",
        "training.base_model": str(llama),
        "training.epochs": 2,
        "training.min_steps": 1,
        "training.batch_size": 8,
        "training.device": "cpu",
        "training.dtype": "float32",
        **{f"training.{key}": value for key, value in training_values.items()},
    }
    return load_settings(values=values)


def test_a_fine_tune_becomes_a_registry_version(tmp_path: Path, llama: Path) -> None:
    dataset = build_dataset(tmp_path / "datasets")
    settings = settings_for(tmp_path, llama, learning_rate=5e-3)
    summary = training.run(settings)
    registry = Registry.open(settings.storage.registry_uri)
    version = registry.resolve("assistant@challenger")
    registry.verify(version)
    assert summary.to_dict()["dataset"] == dataset.ref
    assert (summary.model, summary.version) == ("assistant", 1)
    assert summary.contract["ok"] and summary.tokens_per_second > 0
    losses = json.loads((version.path / "losses.json").read_text())
    steps = [entry["loss"] for entry in losses if "loss" in entry]
    assert 8 <= len(steps) <= 10 and steps[-1] < steps[0]
    names = {path.name for path in version.path.iterdir()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "metrics.json",
        "contract.json",
        "report.md",
        "loss.png",
        "calibration.json",
        "risk_coverage.png",
        "manifest.json",
    } <= names
    manifest = version.manifest
    assert manifest["dataset_manifest_digest"] == dataset.manifest_digest
    assert manifest["prompt_digest"] == dataset.manifest["prompt_digest"]
    assert manifest["base_model"]["reference"] == str(llama)
    calibration = manifest["calibration"]
    assert calibration["questions"] == dataset.manifest["splits"]["validation"] > 0
    assert 0 <= calibration["abstain_below"] < 1
    assert (version.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "base_model:" in (version.path / "README.md").read_text()
    assert training.run(settings, reuse=True).version == 1
    assert len(registry.versions("assistant")) == 1


def test_rows_beyond_the_models_window_are_not_calibrated_with(tmp_path: Path) -> None:
    base = build_llama(tmp_path / "base", window=128)
    dataset = build_dataset(tmp_path / "datasets")
    summary = training.run(settings_for(tmp_path, base, max_steps=1))
    registry = Registry.open(str(tmp_path / "registry"))
    calibration = registry.resolve("assistant@1").manifest["calibration"]
    assert summary.metrics["too_long"] > 0
    assert 0 < calibration["questions"] < dataset.manifest["splits"]["validation"]


def test_of_several_processes_the_first_one_talks(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_dataset(tmp_path / "datasets")
    settings, notes = settings_for(tmp_path, llama, max_steps=1, samples=0), Notes()
    monkeypatch.setenv("RANK", "1")
    assert training.run(settings, progress=notes).version is None and notes.lines == []
    monkeypatch.delenv("RANK")
    assert training.run(settings, progress=notes).version == 1 and notes.lines


def test_a_dataset_without_validation_rows_trains(tmp_path: Path, llama: Path) -> None:
    build_dataset(tmp_path / "datasets", held=0)
    arguments = ["train", "--dataset", "colours@latest", "--base-model", str(llama)]
    arguments += [f"storage.root={tmp_path}", "training.max_steps=1", "training.device=cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "no validation rows" in result.stdout and "None" not in result.stdout
    version = Registry.open(str(tmp_path / "registry")).resolve("assistant@1")
    assert "validation loss" not in (version.path / "README.md").read_text()


def test_nothing_is_written_by_a_dry_run(tmp_path: Path, llama: Path) -> None:
    build_dataset(tmp_path / "datasets")
    summary = training.run(settings_for(tmp_path, llama), dry_run=True)
    assert summary.version is None and summary.metrics["train_rows"] == 32
    assert not (tmp_path / "registry").exists()
    assert not (tmp_path / "reports").exists()


def test_a_dataset_for_other_prompts_is_refused(tmp_path: Path, llama: Path) -> None:
    build_dataset(tmp_path / "datasets", template="{{ messages }}")
    with pytest.raises(IncompatibleArtifact, match="other prompts"):
        training.run(settings_for(tmp_path, llama))
    assert not (tmp_path / "registry").exists()


def test_missing_inputs_are_named(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset colours@latest"):
        training.run(settings_for(tmp_path, llama))
    build_dataset(tmp_path / "datasets")
    with pytest.raises(ModelNotFound, match="neither a directory nor a hub model"):
        training.run(settings_for(tmp_path, llama, base_model="no/such-model"))


def test_a_few_validation_rows_are_not_compared_with_other_rows() -> None:
    few = {"steps": 30, "validation_loss_before": 2, "validation_loss": 1.4,
           "validation_examples": 1}  # fmt: skip
    ends = (0.9, 0.6)
    assert training.compared_losses(few, ends=ends, least_steps=20) == (0.9, 0.6)
    many = {**few, "validation_examples": 40}
    assert training.compared_losses(many, ends=ends, least_steps=20) == (2, 1.4)
    unjudged = {**many, "validation_loss": None}
    assert training.compared_losses(unjudged, ends=ends, least_steps=20) == (0.9, None)
    tried = {**many, "steps": 2}
    assert training.compared_losses(tried, ends=ends, least_steps=20) == (0.9, None)


def test_single_rows_decide_nothing() -> None:
    hard, easy = [3.0, 0.1] * 50, [0.05, 1.0] * 50
    assert training.ends_of([*hard, *easy], batch_size=1) == pytest.approx((1.55, 0.525), abs=0.05)
    assert training.ends_of([3.0, 1.0], batch_size=16) == (3.0, 1.0)
    assert training.ends_of([2.0], batch_size=1) == (2.0, 2.0)


def test_a_run_that_got_worse_shows_its_losses_and_their_curve(tmp_path: Path, llama: Path) -> None:
    trained = run_job(
        llama, make_rows(8), (), options=JobOptions(
            device="cpu", dtype="float32", batch_size=8, max_steps=30, learning_rate=2e-2, samples=0
        ), work=tmp_path / "work", resume=False, progress=Silent(),
    )  # fmt: skip
    save_merged(trained.model, trained.tokenizer, tmp_path / "able")
    build_dataset(tmp_path / "datasets", train=8, held=2)
    settings = settings_for(
        tmp_path, tmp_path / "able", learning_rate=0.9, max_steps=3, samples=0, warmup_share=0
    )
    with pytest.raises(ContractViolation, match=r"loss before training, \d") as caught:
        training.run(settings)
    assert "loss.png" in caught.value.next_step
    (curve,) = (tmp_path / "training").glob("assistant-*/loss.png")
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "registry").exists()
