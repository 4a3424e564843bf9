"""Write a trained reader as the model that ships: bfloat16 weights, tokenizer, settings.

``python -m benchmarks.embedded_model.export data/build/reader/run/model``

Several models of one lineage are averaged, weight by weight: one that was trained on from another
knows the training questions better and others worse, their mean does well on both (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models").

The model card beside the weights is written by hand and left alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.embedded_model.base import build_tokenizer
from rag_fti.models.reader import register

DESTINATION = Path("data/models/rag-fti-reader")
RANK_EXPONENT = 1.0
"""Served, passages stand in the order of retrieval; see the table in docs/embedded-model.md."""


def averaged(sources: Sequence[Path]) -> Any:
    """The model whose weights are the mean of those of ``sources``, bfloat16."""
    models = [AutoModelForCausalLM.from_pretrained(s, dtype=torch.float32) for s in sources]
    weights = [model.state_dict() for model in models]
    mean = {name: sum(w[name] for w in weights) / len(weights) for name in weights[0]}
    models[0].load_state_dict(mean)
    return models[0].to(torch.bfloat16)


def export(sources: Sequence[Path], destination: Path) -> None:
    """Write the model files beside ``destination`` and move them in one by one."""
    register()
    model = averaged(sources)
    model.config.rank_exponent = RANK_EXPONENT
    tokenizer = build_tokenizer()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    temporary = destination.with_name(destination.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(temporary.iterdir()):
        path.chmod(0o644)
        os.replace(path, destination / path.name)
    temporary.rmdir()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, default=DESTINATION)
    options = parser.parse_args()
    export(options.sources, options.to)
    for path in sorted(options.to.iterdir()):
        print(f"{path.stat().st_size:>12,} {path.name}")


if __name__ == "__main__":
    main()
