"""Write a trained reader as the model that ships: bfloat16 weights, tokenizer, settings.

``python -m benchmarks.embedded_model.export data/build/reader/run/model``

The model card beside the weights is written by hand and left alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.embedded_model.base import build_tokenizer
from rag_fti.models.reader import register

DESTINATION = Path("data/models/rag-fti-reader")


def export(source: Path, destination: Path) -> None:
    """Write the model files beside ``destination`` and move them in one by one."""
    register()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
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
    parser.add_argument("source", type=Path)
    parser.add_argument("--to", type=Path, default=DESTINATION)
    options = parser.parse_args()
    export(options.source, options.to)
    for path in sorted(options.to.iterdir()):
        print(f"{path.stat().st_size:>12,} {path.name}")


if __name__ == "__main__":
    main()
