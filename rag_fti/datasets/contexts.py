"""The passages of each example: what serving would retrieve, with or without the answer.

Retrieval-augmented fine-tuning (RAFT, Zhang et al. 2024): distractors come from the retriever
itself, and a share of the examples lacks the passage that holds the answer, so that the model
learns to say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rag_fti import prompts
from rag_fti.alignment import align
from rag_fti.datasets.candidates import Candidate
from rag_fti.retrieval import pack_passages
from rag_fti.schemas import Hit

SPARE_HITS = 8
"""Hits retrieved beyond what is shown, to fill up for withheld ones."""

_TELLING_CHARACTERS = 4
_WORDS_AROUND = 3


@dataclass(frozen=True)
class Context:
    """The passages of one example."""

    hits: tuple[Hit, ...]
    """In marker order."""
    passages: tuple[prompts.Passage, ...]
    supporting: tuple[int, ...]
    """Markers of passages that hold the answer, from 1."""
    withheld: tuple[str, ...]
    """Chunk ids that were left out so that the answer is missing."""
    inserted: bool
    """Whether the supporting chunk had to be put in because retrieval missed it."""


def with_answer(
    candidate: Candidate,
    retrieved: Sequence[Hit],
    *,
    passages: int,
    count_tokens: Callable[[str], int],
    budget: int,
    random: np.random.Generator,
) -> Context | None:
    """A context that holds the answer, or None where the budget leaves it out.

    Args:
        candidate: A question with its answer and supporting chunks.
        retrieved: What the serving retriever found, best first.
        passages: Passages shown.
        count_tokens: Tokens of a text as the model to be trained counts them.
        budget: Most tokens of all passages.
        random: Decides where a missed chunk is put in.
    """
    shown = list(retrieved[:passages])
    gold = {hit.chunk_id for hit in candidate.chunks}
    inserted = not any(hit.chunk_id in gold for hit in shown)
    if inserted:
        shown = shown[: passages - 1]
        shown.insert(int(random.integers(0, len(shown) + 1)), candidate.chunks[0])
    kept, rendered = pack_passages(shown, count_tokens=count_tokens, budget=budget)
    supporting = tuple(
        number
        for number, hit in enumerate(kept, start=1)
        if hit.chunk_id in gold and align(candidate.answer, hit.text) is not None
    )
    if not supporting:
        return None
    return Context(tuple(kept), tuple(rendered), supporting, (), inserted)


def without_answer(
    candidate: Candidate,
    retrieved: Sequence[Hit],
    *,
    passages: int,
    count_tokens: Callable[[str], int],
    budget: int,
) -> Context | None:
    """A context that lacks the answer, or None where nothing is left to show.

    Left out are the supporting chunks and every other passage that says the answer's words. A
    short word or number alone is too common to mean anything: it counts together with the words
    around it, as in overlapping chunks and copies of a document.
    """
    gold = {hit.chunk_id for hit in candidate.chunks}
    telling = _telling(candidate)
    left, withheld = [], []
    for hit in retrieved:
        says = any(align(words, hit.text) is not None for words in telling)
        if hit.chunk_id in gold or says:
            withheld.append(hit.chunk_id)
        else:
            left.append(hit)
    kept, rendered = pack_passages(left[:passages], count_tokens=count_tokens, budget=budget)
    if not kept:
        return None
    return Context(tuple(kept), tuple(rendered), (), tuple(sorted({*withheld, *gold})), False)


def _telling(candidate: Candidate) -> set[str]:
    """Words that give the answer away wherever they stand."""
    if len(candidate.answer) >= _TELLING_CHARACTERS:
        return {candidate.answer}
    found = set()
    for hit in candidate.chunks:
        if (span := align(candidate.answer, hit.text)) is not None:
            before = hit.text[: span.start].split()[-_WORDS_AROUND:]
            after = hit.text[span.end :].split()[:_WORDS_AROUND]
            found.add(" ".join([*before, span.text, *after]))
    return found
