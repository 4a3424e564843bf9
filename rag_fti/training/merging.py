"""A registry version as full weights, for servers that take no adapters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rag_fti.errors import IncompatibleArtifact, ModelNotFound, RegistryError
from rag_fti.models.causal import BaseModel, load_causal_lm, load_tokenizer, resolve_base_model
from rag_fti.training.saving import save_merged


def merge_version(
    version: Path, manifest: Mapping[str, Any], target: Path, *, base_model: str
) -> None:
    """Fold an adapter into its base model and write the result, all at once or not at all.

    Args:
        version: Directory of the registry version.
        manifest: Its manifest.
        target: New directory.
        base_model: Where the base model is, should the manifest's reference not be on this
            machine.

    Raises:
        IncompatibleArtifact: If no base model here has the weights that were trained on.
        RegistryError: If ``target`` exists.
    """
    if target.exists():
        raise RegistryError(
            f"{target} exists already.", next_step="Give a directory that does not exist."
        )
    recorded = manifest["base_model"]
    base = _find_base(recorded, base_model)
    model = load_causal_lm(base.location, dtype=torch.float32, adapter=version)
    building = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    try:
        save_merged(model, load_tokenizer(version), building)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _find_base(recorded: Mapping[str, Any], configured: str) -> BaseModel:
    """The base model with the recorded weights: the configured one, or the recorded reference."""
    found = []
    for reference, revision in (
        (configured, None),
        (recorded["reference"], recorded["revision"] or None),
    ):
        try:
            base = resolve_base_model(reference, revision=revision)
        except ModelNotFound as error:
            found.append(error.message)
            continue
        if base.weights_digest == recorded["weights_digest"]:
            return base
        found.append(f"{reference} has other weights")
    raise IncompatibleArtifact(
        f"The base model that the version was trained on is not here: {'; '.join(found)}.",
        next_step=f"Get {recorded['reference']} {recorded['revision']} and set "
        "training.base_model to its directory.",
    )
