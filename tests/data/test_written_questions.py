"""The questions written for training the embedded model: well formed, and none that tests it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WRITTEN = REPOSITORY / "benchmarks" / "embedded_model" / "written"


@cache
def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def questions() -> list[tuple[str, str]]:
    rows = lines(WRITTEN / "questions.jsonl") + lines(WRITTEN / "own.jsonl")
    return [(question, answer) for row in rows for question, answer in row["questions"]]


def test_answers_stand_in_our_own_passages() -> None:
    rows = lines(WRITTEN / "own.jsonl")
    assert len({row["passage"] for row in rows}) == len(rows)
    for row in rows:
        for question, answer in row["questions"]:
            assert answer in row["text"], (row["passage"], question)


def test_answers_stand_in_the_passages_of_others(shared_data: Path) -> None:
    from benchmarks.embedded_model.passages import read_passages

    sources = {source.name: source for source in read_passages(shared_data)}
    for row in lines(WRITTEN / "questions.jsonl"):
        source = sources[row["passage"]]
        assert source.digest == row["digest"]
        for question, answer in row["questions"]:
            assert answer in source.passage.text, (row["passage"], question)


def test_a_quarter_or_more_ask_for_what_is_not_told() -> None:
    asked = questions()
    assert 0.25 < sum(not answer for _, answer in asked) / len(asked) < 0.4
    assert all(
        question.strip() and answer.lower() != question.lower() for question, answer in asked
    )


def in_a_row(text: str, count: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + count]) for i in range(len(found) - count + 1)}


def measuring(name: str, shared_data: Path) -> tuple[list[str], list[str]]:
    """Questions that measure the model, and the texts they are about."""
    if name == "sample":
        sample = REPOSITORY / "data" / "sample"
        asked = [row["question"] for row in lines(sample / "questions.jsonl")]
        return asked, [path.read_text(encoding="utf-8") for path in sample.rglob("*.md")]
    if name == "xquad":
        raw = json.loads((shared_data / "xquad" / "xquad_en_open.json").read_text())["data"]
        paragraphs = [paragraph for article in raw for paragraph in article["paragraphs"]]
        asked = [qa["question"] for paragraph in paragraphs for qa in paragraph["qas"]]
        return asked, [paragraph["context"] for paragraph in paragraphs]
    raw = json.loads((shared_data / "hotpotqa" / "hotpotqa_train.json").read_text())
    return [row["question"] for row in raw], []


@pytest.mark.parametrize("name", ["sample", "xquad", "hotpotqa"])
def test_nothing_is_taken_from_what_measures(name: str, shared_data: Path) -> None:
    asked, texts = measuring(name, shared_data)
    taken = set().union(*(in_a_row(question, 9) for question in asked))
    assert not [question for question, _ in questions() if in_a_row(question, 9) & taken]
    read = set().union(*(in_a_row(text, 9) for text in texts))
    assert not [row for row in lines(WRITTEN / "own.jsonl") if in_a_row(row["text"], 9) & read]
