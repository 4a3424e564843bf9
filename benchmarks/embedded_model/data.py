"""Build the training pool and the development set.

    python -m benchmarks.embedded_model.data --out data/build/reader

writes ``pool.npz`` (token ids) and ``dev.jsonl`` (questions, passages, answers).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedded_model.base import build_tokenizer
from benchmarks.embedded_model.examples import Builder, Example, Sources, build, specific
from benchmarks.embedded_model.sources import Row, data_root, read_articles, read_rows
from benchmarks.embedded_model.written import read_library, written_dev, written_examples
from rag_fti import prompts

KINDS = (
    "qamr", "multi", "absent", "policy", "covid", "cloze", "recurring", "question", "near_miss",
    "written", "near_written",
)  # fmt: skip
LONGEST = 1000
LONGEST_ANSWER = 48


def messages(example: Example) -> list[dict[str, str]]:
    """The prompt of an example."""
    if example.kind == "question":
        return prompts.question_messages(example.answer, example.passages[0])
    return prompts.answer_messages(example.question, example.passages)


def target(example: Example) -> str:
    """What the model should say."""
    if example.kind == "question":
        return example.question
    if not example.answer:
        return prompts.ABSTENTION
    return prompts.answer_target(example.answer, [example.gold + 1])


def tokenize(tokenizer: Any, example: Example) -> tuple[list[int], int, list[int]] | None:
    """Token ids of prompt and answer, length of the prompt, and copy column of each answer token.

    None where the example is too long.
    """
    text = prompts.render(tokenizer, messages(example))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    reply = prompts.completion_token_ids(
        tokenizer, target(example), end_token_id=tokenizer.eos_token_id
    )
    if len(ids) > LONGEST or len(reply) > LONGEST_ANSWER:
        return None
    copied = [-1] * len(reply)
    if example.gold >= 0 and example.kind != "question":
        shown = prompts.render_passage(example.gold + 1, example.passages[example.gold])
        place = text.index(shown)
        body = place + shown.index("\n") + 1
        marker = next(i for i, (a, _) in enumerate(offsets) if a > place)
        copied[-2] = marker
        if example.start >= 0:
            first, last = body + example.start, body + example.start + len(example.answer)
            columns = [i for i, (a, b) in enumerate(offsets) if a >= first and b <= last]
            if [ids[i] for i in columns] == reply[:-2]:
                copied[: len(columns)] = columns
    return [*ids, *reply], len(ids), copied


def write_pool(path: Path, tokenizer: Any, examples: Iterable[Example]) -> dict[str, int]:
    """Tokenize examples into one file; returns the number of each kind."""
    ids: list[np.ndarray] = []
    copies: list[np.ndarray] = []
    lengths, starts, kinds = [], [], []
    counts = dict.fromkeys(KINDS, 0)
    for example in examples:
        made = tokenize(tokenizer, example)
        if made is None:
            continue
        row, prompt, copied = made
        ids.append(np.asarray(row, dtype=np.uint16))
        copies.append(np.asarray(copied, dtype=np.int16))
        lengths.append(len(row))
        starts.append(prompt)
        kinds.append(KINDS.index(example.kind))
        counts[example.kind] += 1
    np.savez(
        path,
        ids=np.concatenate(ids),
        copies=np.concatenate(copies),
        lengths=np.asarray(lengths, dtype=np.int32),
        prompts=np.asarray(starts, dtype=np.int32),
        kinds=np.asarray(kinds, dtype=np.uint8),
    )
    return counts


def dev_examples(root: Path, each: int = 150) -> list[Example]:
    """Held-out questions: QAMR paragraphs, among others, unanswerable; PolicyQA; HotpotQA."""
    _, rows = read_rows(root)
    articles = read_articles(root)
    make = Builder(Sources(tuple(rows), articles), 99)
    rng = random.Random(7)
    rng.shuffle(rows)
    answers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        answers.setdefault((row.question.lower(), row.sentence), []).append(row.answer)
    good = [row for row in rows if row.source == "qamr" and specific(row, 3)]
    policy = [row for row in rows if row.source == "policyqa"]
    covid = [row for row in rows if row.source == "covidqa"]
    found: list[Example] = []

    def accept(example: Example, row: Row) -> Example:
        other = tuple(answers[row.question.lower(), row.sentence])
        return Example(
            example.kind,
            example.question,
            example.passages,
            example.answer,
            example.gold,
            example.start,
            other,
        )

    found += [accept(make.single(row), row) for row in good[:each]]
    found += [accept(make.multi(row), row) for row in good[each : 2 * each]]
    found += [make.absent(row) for row in good[2 * each : 3 * each]]
    found += [accept(make.single(row), row) for row in policy[: each // 2]]
    found += [accept(make.single(row), row) for row in covid[: each // 2]]
    for raw in json.loads((root / "hotpotqa" / "hotpotqa_train.json").read_text()):
        titles = {title for title, _ in raw["supporting_facts"]}
        passages = [
            prompts.Passage("".join(parts).strip(), title=title)
            for title, parts in raw["context"]
            if title in titles
        ]
        holds = [i for i, p in enumerate(passages) if raw["answer"] in p.text]
        if holds and raw["answer"].lower() not in ("yes", "no"):
            gold = passages[holds[0]]
            found.append(
                Example(
                    "hotpot",
                    raw["question"],
                    tuple(passages),
                    raw["answer"],
                    holds[0],
                    gold.text.index(raw["answer"]),
                    (raw["answer"],),
                )
            )
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/build/reader"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synthetic", type=int, default=60_000)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    root = data_root()
    rows, _ = read_rows(root)
    sources = Sources(tuple(rows), read_articles(root))
    library = read_library(root)
    pool = itertools.chain(
        written_examples(library, seed=options.seed),
        build(sources, seed=options.seed, synthetic=options.synthetic, scale=options.scale),
    )
    counts = write_pool(options.out / "pool.npz", build_tokenizer(), pool)
    print(counts, sum(counts.values()))
    with (options.out / "dev.jsonl").open("w") as file:
        for example in (*dev_examples(root), *written_dev(library, each=200)):
            record = {
                "kind": example.kind,
                "question": example.question,
                "passages": [[p.text, p.title, p.heading] for p in example.passages],
                "gold": example.gold,
                "answers": list(example.accepted or ([example.answer] if example.answer else [])),
            }
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
