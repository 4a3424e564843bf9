"""Merged weights say what base and adapter say together, and need nothing of ours to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipelines import training
from pipelines.cli import app
from rag_fti.config import load_settings
from rag_fti.registry import Registry
from tests.training.tiny import LIBRARY_WARNINGS, build_dataset, build_llama, make_rows

pytestmark = LIBRARY_WARNINGS


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    """What a model says after a few prompts, shape ``(prompts, vocabulary)``."""
    prompts = [
        tokenizer.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        for row in make_rows(3)
    ]
    with torch.no_grad():
        return torch.stack([model(ids).logits[0, -1].float() for ids in prompts])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_merged_weights_say_the_same_as_the_adapter(tmp_path: Path, family: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = build_llama(tmp_path / "base", family=family)
    build_dataset(tmp_path / "data/datasets")
    values = {
        "storage.root": str(tmp_path / "data"),
        "training.dataset": "colours@latest",
        "training.base_model": str(base),
        "training.learning_rate": 0.02,
        "training.max_steps": 10,
        "training.samples": 0,
        "training.device": "cpu",
        "training.dtype": "float32",
        "training.merge": True,
    }
    training.run(load_settings(values=values, environment={}))
    version = Registry.open(str(tmp_path / "data/registry")).resolve("assistant@1")
    config = json.loads((version.path / "merged/config.json").read_text())
    assert config.get("use_cache", True), "generation from the merged weights would have no cache"

    merged = tmp_path / "merged"
    arguments = ["models", "merge", "assistant@1", str(merged), "--json"]
    # The configured base model may be missing: the manifest says where it was.
    arguments += [f"storage.root={tmp_path / 'data'}", f"training.base_model={tmp_path / 'gone'}"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ref"] == "assistant@1"
    assert not (merged / "adapter_config.json").exists()

    tokenizer = AutoTokenizer.from_pretrained(str(merged))
    plain = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32).eval()
    untrained = logits(plain, tokenizer)
    adapted = logits(PeftModel.from_pretrained(plain, str(version.path)).eval(), tokenizer)
    assert (adapted - untrained).abs().max() > 0.1
    for folder in (merged, version.path / "merged"):
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
        assert torch.allclose(logits(model, tokenizer), adapted, atol=1e-4)

    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.output
