"""A bundle trains in a process that can import neither the feature store nor an embedder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rag_fti.config.training import TrainingConfig
from rag_fti.datasets import DatasetVersion
from rag_fti.errors import IncompatibleArtifact, TrainingError
from rag_fti.models.causal import resolve_base_model
from rag_fti.registry import Registry
from rag_fti.training.bundles import Bundle, write_bundle
from rag_fti.training.job import configured_options
from tests.conftest import REPOSITORY
from tests.training.tiny import build_dataset

NO_EXTRAS = """
import importlib.abc, socket, sys, warnings
warnings.simplefilter("ignore")
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lancedb", "lance", "sentence_transformers", "fastapi"):
            raise ImportError(f"{name} is not part of the train extra")
        return None
sys.meta_path.insert(0, Wall())
def refused(*_):
    raise OSError("no network")
socket.socket.connect = refused
from pipelines.cli import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return build_dataset(tmp_path_factory.mktemp("datasets"), train=12, held=4)


def bundled(target: Path, dataset: DatasetVersion, base: Path, *, include: bool = True) -> Bundle:
    model = resolve_base_model(str(base))
    return write_bundle(
        target,
        dataset,
        base_location=base if include else None,
        base_model=model.to_dict(),
        training={"model_name": "assistant", "max_steps": 2, "batch_size": 4, "samples": 1},
        retrieval={"k": 2},
        answer_tokens=50,
    )


def test_a_bundle_trains_alone_and_comes_back(
    tiny_llama: Path, dataset: DatasetVersion, tmp_path: Path
) -> None:
    bundle = bundled(tmp_path / "bundle", dataset, tiny_llama)
    assert bundle.includes_base_model
    done = subprocess.run(
        [sys.executable, "-c", NO_EXTRAS, "train", "--config", "bundle.yaml", "--json"],
        cwd=bundle.path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    summary = json.loads(done.stdout)
    assert summary["version"] == 1 and summary["dataset"] == dataset.ref
    registry = Registry(tmp_path / "home")
    version = registry.import_version(bundle.path / "output/registry/assistant/versions/1")
    registry.verify(version)
    assert version.manifest["dataset"] == dataset.ref
    digest = resolve_base_model(str(tiny_llama)).weights_digest
    assert version.manifest["base_model"]["weights_digest"] == digest
    # Where it came from the base model is known by this name, and not as the bundle's copy.
    assert version.manifest["base_model"]["reference"] == str(tiny_llama)
    adapter = json.loads((version.path / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny_llama)


def test_a_copy_of_the_embedded_model_is_trained_as_the_embedded_model(
    dataset: DatasetVersion, tmp_path: Path
) -> None:
    embedded = resolve_base_model("embedded")
    bundle = write_bundle(
        tmp_path / "bundle",
        dataset,
        base_location=embedded.location,
        base_model=embedded.to_dict(),
        training={"model_name": "assistant"},
        retrieval={},
        answer_tokens=50,
    )
    copy = resolve_base_model(str(bundle.path / "base-model"))
    assert copy.to_dict() == embedded.to_dict()
    options = configured_options(
        TrainingConfig(base_model=str(copy.location)), base_reference=copy.reference
    )
    assert options.lora.last_layers == 4
    (copy.location / "rag_fti_origin.json").write_text('{"reference": "embedded"')
    with pytest.raises(IncompatibleArtifact, match="is damaged; expected a JSON object"):
        resolve_base_model(str(copy.location))


def test_what_a_bundle_holds(tiny_llama: Path, dataset: DatasetVersion, tmp_path: Path) -> None:
    bundle = bundled(tmp_path / "bundle", dataset, tiny_llama, include=False)
    config = yaml.safe_load((bundle.path / "bundle.yaml").read_text())
    assert config["training"]["base_model"] == str(tiny_llama)
    assert config["training"]["dataset"] == "dataset"
    assert config["inference"] == {"max_tokens": 50}
    lock = (bundle.path / "requirements.lock").read_text()
    assert "torch==" in lock and "peft==" in lock and "lancedb" not in lock
    assert "models import" in (bundle.path / "README.md").read_text()
    assert not (bundle.path / "base-model").exists()
    with pytest.raises(TrainingError, match="exists already"):
        bundled(bundle.path, dataset, tiny_llama)
