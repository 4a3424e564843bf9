"""What a fine-tune on questions that rules made does to answers to people's questions.

    python benchmarks/rule_questions.py
    python benchmarks/rule_questions.py --unanswerable-share 0.1

HotpotQA's 994 passages (RAG_FTI_SHARED_DATA), a document each, are ingested; the dataset holds what
the structure rules make of them and nothing else; base and fine-tune answer HotpotQA's questions,
those left out whose answer is yes or no. All by the pipelines, with their defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

from pipelines import ingest, instruction_dataset, model_validation, training
from rag_fti.config import load_settings
from rag_fti.progress import Silent

DATA = Path(os.environ.get("RAG_FTI_SHARED_DATA", "../shared/data"))


def write_corpus(work: Path) -> tuple[Path, Path]:
    """Documents as Markdown files, and a question file."""
    documents, questions = work / "documents", work / "questions.jsonl"
    documents.mkdir(parents=True)
    corpus = json.loads((DATA / "hotpotqa/hotpotqa_train_corpus.json").read_text("utf-8"))
    for number, (title, sentences) in enumerate(corpus.items()):
        text = f"# {title}\n\n{''.join(sentences)}\n"
        (documents / f"{number:04d}.md").write_text(text, encoding="utf-8")
    asked = json.loads((DATA / "hotpotqa/hotpotqa_train.json").read_text("utf-8"))
    lines = [
        json.dumps({"question": item["question"], "answers": [item["answer"]], "held_out": True})
        for item in asked
        if item["answer"] not in ("yes", "no")
    ]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return documents, questions


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unanswerable-share", default="null")
    parser.add_argument("--work", type=Path, default=Path("build/rule-questions"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    documents, questions = write_corpus(arguments.work)
    settings = load_settings(
        overrides=[
            f"storage.root={arguments.work / 'root'}",
            f"dataset.unanswerable_share={arguments.unanswerable_share}",
            f"evaluation.questions={questions}",
            "evaluation.promote=false",
        ]
    )
    ingest.run(settings, [documents], progress=Silent())
    dataset = instruction_dataset.run(settings)
    print(dataset.dataset, dataset.splits, dataset.rules, flush=True)
    version = training.run(settings).version
    found = model_validation.run(settings, str(version))
    report = json.loads(Path(found.report).read_text(encoding="utf-8"))
    for source, by_model in report["by_source"].items():
        for model, scores in by_model.items():
            shown = ("questions", "f1_answerable", "exact_match_answerable", "false_abstention")
            print(source, model, {name: scores[name] for name in shown}, flush=True)
    print(json.dumps(report["differences_by_source"], indent=1))
    print(found.verdict)


if __name__ == "__main__":
    main()
