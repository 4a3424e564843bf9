"""Writing the directory that becomes a registry version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rag_fti.errors import TrainingError


def save_adapter(
    model: Any, tokenizer: Any, folder: Path, *, base_reference: str, revision: str
) -> None:
    """Write adapter, tokenizer and chat template, as peft and vLLM read them.

    Args:
        model: A trained model with an adapter.
        tokenizer: The base model's tokenizer.
        folder: New directory.
        base_reference: The base model as configured. It replaces the path on this machine.
        revision: Hub commit of the base model; may be empty.
    """
    folder.mkdir(parents=True)
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(str(folder))
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_reference
    config["revision"] = revision or None
    # A set in memory: written sorted, so that equal runs give equal files.
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """Fold the adapter into the weights and write the whole model. ``model`` is used up.

    Raises:
        TrainingError: If the base model is quantized.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        raise TrainingError(
            "A 4-bit base model cannot be merged without loss.",
            next_step="Merge afterwards into the full base model: rag-fti models merge VERSION.",
        )
    merged = model.merge_and_unload()
    merged.config.use_cache = True  # off while training
    merged.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
