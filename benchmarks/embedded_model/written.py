"""Examples from the questions written for this recipe, in ``written/``.

``questions.jsonl`` asks about passages of the shared data, by name; ``own.jsonl`` holds passages of
invented documents and questions about them. A third of the questions ask for what their passage
nearly tells, and have no answer.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embedded_model.examples import Example
from benchmarks.embedded_model.passages import Source, read_passages
from benchmarks.embedded_model.sources import held_out
from rag_fti import prompts
from rag_fti.config.models import EmbedderConfig
from rag_fti.models.embedder import build_embedder

FOLDER = Path(__file__).parent / "written"
_DEV_SHARE = 10


@dataclass(frozen=True)
class Written:
    """One question about one passage."""

    question: str
    answer: str
    """Empty where the passage does not tell."""
    place: int
    """Of its passage."""


@dataclass(frozen=True)
class Library:
    """Passages, which of them are alike, and the questions about them."""

    sources: tuple[Source, ...]
    written: tuple[Written, ...]
    alike: np.ndarray
    """For each question the places of all passages, nearest first; ``[questions, 12]``."""

    def held_out(self, row: Written) -> bool:
        """Whether a question is for development: a tenth of the documents."""
        document = self.sources[row.place].name.partition("#")[0]
        return held_out(document, one_in=_DEV_SHARE)


def read_library(root: Path) -> Library:
    """Everything written, with the passages it is about."""
    sources = read_passages(root)
    places = {source.name: place for place, source in enumerate(sources)}
    written: list[Written] = []
    for line in _lines("questions.jsonl"):
        place = places.get(line["passage"])
        if place is None or sources[place].digest != line["digest"]:
            warnings.warn(f"{line['passage']} is another passage now: left out", stacklevel=2)
            continue
        written += [Written(q, a, place) for q, a in line["questions"]]
    for line in _lines("own.jsonl"):
        passage = prompts.Passage(line["text"], line["title"], line["heading"])
        written += [Written(q, a, len(sources)) for q, a in line["questions"]]
        sources.append(Source(line["passage"], passage))
    return Library(tuple(sources), tuple(written), _alike(sources, written))


def _lines(name: str) -> Iterator[dict[str, Any]]:
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _alike(sources: Sequence[Source], written: Sequence[Written], most: int = 12) -> np.ndarray:
    """The passages nearest to each question."""
    embedder = build_embedder(EmbedderConfig())
    texts = [f"{s.passage.title} {s.passage.heading}\n{s.passage.text}" for s in sources]
    passages = embedder.encode_documents(texts)
    questions = embedder.encode_queries([row.question for row in written])
    return np.argsort(-(questions @ passages.T), axis=1)[:, :most]


class WrittenBuilder:
    """Draws examples; the same seed draws the same ones."""

    def __init__(self, library: Library, seed: int) -> None:
        self.library = library
        self.rng = random.Random(seed)

    def near(self, number: int, count: int) -> list[prompts.Passage]:
        """Passages like a question, without its own and without its answer."""
        row = self.library.written[number]
        found = [
            self.library.sources[place].passage
            for place in self.library.alike[number]
            if place != row.place
        ]
        if row.answer:
            found = [p for p in found if row.answer.lower() not in p.text.lower()]
        first = self.rng.choice([0, 0, 0, 2])
        return found[first : first + count]

    def asked(self, number: int, among: int) -> Example:
        """The question with its passage, among others."""
        row = self.library.written[number]
        gold = self.library.sources[row.place].passage
        others = self.near(number, among)
        rank = self.rng.randint(0, len(others))
        passages = (*others[:rank], gold, *others[rank:])
        if not row.answer:
            return Example("near_written", row.question, passages, "")
        start = gold.text.index(row.answer) if gold.text.count(row.answer) == 1 else -1
        return Example("written", row.question, passages, row.answer, rank, start)

    def without(self, number: int, count: int) -> Example | None:
        """The question with passages like it, its own taken away."""
        row = self.library.written[number]
        others = self.near(number, count)
        self.rng.shuffle(others)
        return Example("near_written", row.question, tuple(others), "") if others else None

    def writing(self, number: int) -> Example:
        """Write the question that the answer answers."""
        row = self.library.written[number]
        passage = self.library.sources[row.place].passage
        return Example("question", row.question, (passage,), row.answer, 0)


def written_examples(library: Library, *, seed: int) -> Iterator[Example]:
    """Training examples: every question alone and among others."""
    make = WrittenBuilder(library, seed)
    for number, row in enumerate(library.written):
        if library.held_out(row):
            continue
        yield make.asked(number, 0)
        yield make.asked(number, make.rng.choice([1, 2, 3, 4]))
        if row.answer:
            if make.rng.random() < 0.3 and (
                example := make.without(number, make.rng.choice([1, 2, 4]))
            ):
                yield example
            yield make.writing(number)


def written_dev(library: Library, *, each: int) -> Iterator[Example]:
    """Held-out questions, told and not told, alone and among four others."""
    make = WrittenBuilder(library, 5)
    held_out = [n for n, row in enumerate(library.written) if library.held_out(row)]
    make.rng.shuffle(held_out)
    for told, among, kind in (
        (True, 0, "written"),
        (True, 4, "written_multi"),
        (False, 0, "near_written"),
        (False, 4, "near_written_multi"),
    ):
        rows = [n for n in held_out if bool(library.written[n].answer) == told][:each]
        for number in rows:
            example = make.asked(number, among)
            accepted = (example.answer,) if told else ()
            yield Example(
                kind, example.question, example.passages, example.answer, example.gold,
                example.start, accepted,
            )  # fmt: skip
