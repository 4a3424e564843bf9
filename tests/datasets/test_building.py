from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rag_fti import prompts
from rag_fti.datasets.building import Built, build_rows
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.checking import check_rows
from rag_fti.progress import Silent
from rag_fti.schemas import Hit
from tests.datasets.made import candidate, hit


@dataclass
class Found:
    hits: tuple[Hit, ...]


class Finds:
    """A retriever that finds the same hits for every question."""

    def __init__(self, *hits: Hit) -> None:
        self.hits = hits

    def retrieve_many(self, questions: Sequence[str], **_: Any) -> list[Found]:
        return [Found(self.hits) for _ in questions]


def build(
    item: Candidate, *, unanswerable_share: float = 0.0, finds: Sequence[Hit] | None = None
) -> Built:
    return build_rows(
        [item],
        groups=["g"],
        splits={"g": "train"},
        retriever=Finds(*(item.chunks if finds is None else finds)),
        snapshot="d1c1",
        collections=None,
        passages=3,
        unanswerable_share=unanswerable_share,
        count_tokens=lambda text: len(text.split()),
        budget=200,
        seed=1,
        progress=Silent(),
    )


def test_reference_marks_of_a_document_are_no_citations() -> None:
    text = "A windlass is a machine [12] that lifts anchors."
    built = build(candidate("What is a windlass?", "a machine [12] that lifts anchors", text))
    (row,) = built.rows
    target = row["messages"][-1]["content"]
    assert prompts.cited_numbers(target) == [1]
    assert check_rows(built.rows).unsupported == 0


def test_an_approved_abstention_holds_for_the_passages_it_was_approved_for() -> None:
    old, new = hit("The gate is dark green.", chunk="old"), hit("The door is red.", chunk="new")
    abstained = Candidate(
        "What colour is the door?", "", "feedback", (), "thumb up", frozenset({"old", "gone"})
    )
    (row,) = build(abstained, finds=[old]).rows
    assert not row["answerable"]
    built = build(abstained, finds=[old, new])
    assert built.rows == [] and built.dropped == {"abstention on other passages": 1}
