"""A small store, dataset and fine-tune for tests of the pipelines behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rag_fti.config import Settings, load_settings
from tests.features.made_up import HashEmbedder

NAMES = (
    "Arden",
    "Bexley",
    "Corran",
    "Dunmore",
    "Elstow",
    "Farrow",
    "Garth",
    "Hollin",
    "Ivery",
    "Jarrow",
)


def write_corpus(folder: Path) -> Path:
    """Ten documents of plain facts, two of them nearly the same."""
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        text = (
            f"# {name} station\n\n"
            f"{name} Station was opened on {number + 1} May 20{number:02d}. "
            f"The tower of {name} Station holds {10 + number} litres of oil. "
            f"{name} Station is commanded by Captain Ann {name}son.\n\n"
            f"## Figures\n\n| Item | Value |\n| --- | --- |\n| Rotor diameter | {20 + number} m |\n"
            f"| Depth of water | {30 + number} m |\n"
        )
        (folder / f"{name.lower()}.md").write_text(text, encoding="utf-8")
    twin = (folder / "jarrow.md").read_text(encoding="utf-8")
    (folder / "jarrow-copy.md").write_text(twin + "\nCopied last week.\n", encoding="utf-8")
    return folder


def write_questions(path: Path) -> Path:
    """Pairs to train on, questions to judge by, and unanswerable ones of both kinds."""
    lines: list[dict[str, Any]] = [
        {
            "id": f"q{n}",
            "question": f"Which captain has the command over {name} Station these days?",
            "answers": [f"Captain Ann {name}son"],
            "spans": [
                {
                    "source": f"{name.lower()}.md",
                    "text": f"{name} Station is commanded by Captain Ann {name}son.",
                }
            ],
            "held_out": n % 2 == 0,
        }
        for n, name in enumerate(NAMES)
    ]
    lines += [
        {
            "id": f"u{n}",
            "question": f"What does a ticket to {name} Station cost on Sundays?",
            "answerable": False,
            "held_out": n % 2 == 0,
        }
        for n, name in enumerate(NAMES[:4])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def settings_for(root: Path, llama: Path, questions: Path, **values: Any) -> Settings:
    """Settings of a small project under ``root``."""
    return load_settings(
        values={
            "storage.root": str(root),
            "chunking.max_tokens": 60,
            "chunking.min_tokens": 8,
            "dataset.pairs": [str(questions)],
            "dataset.evaluation_questions": [str(questions)],
            "dataset.validation_share": 0.15,
            "dataset.test_share": 0.15,
            "retrieval.k": 3,
            "retrieval.context_tokens": 400,
            "training.base_model": str(llama),
            "training.batch_size": 8,
            "training.max_steps": 3,
            "training.dtype": "float32",
            "training.samples": 1,
            "generator.base_model": str(llama),
            "generator.dtype": "float32",
            "inference.max_tokens": 8,
            "evaluation.questions": [str(questions)],
            "evaluation.bootstrap_samples": 200,
            **values,
        },
        environment={},
    )


def ingested(root: Path, llama: Path, **values: Any) -> Settings:
    """Settings of a project whose corpus is ingested."""
    from pipelines import ingest

    corpus = write_corpus(root / "corpus")
    questions = write_questions(root / "questions.jsonl")
    settings = settings_for(root / "data", llama, questions, **values)
    ingest.run(settings, [str(corpus)], embedder=HashEmbedder())
    return settings
