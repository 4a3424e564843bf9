from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

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
    *items: Candidate,
    unanswerable_share: float | None = 0.0,
    finds: Sequence[Hit] | None = None,
) -> Built:
    found = [chunk for item in items for chunk in item.chunks] if finds is None else finds
    return build_rows(
        items,
        groups=["g"] * len(items),
        splits={"g": "train"},
        retriever=Finds(*found),
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


def test_by_default_passages_are_withheld_from_questions_in_words_of_their_own_only() -> None:
    def asked(generator: str, number: int) -> Candidate:
        text = f"Key {number} is in hall {number}."
        item = candidate(f"Where is key {number}?", f"hall {number}", text)
        return replace(item, generator=generator)

    other = hit("Nothing is here.", chunk="other")
    for generators, share, expected in (
        (("structure",), None, (0, 0)),
        (("pairs",), None, (1, 20)),
        (("structure",), 0.3, (10, 50)),
        (("structure", "pairs"), None, (1, 20)),
    ):
        built = build(
            *(asked(g, n) for g in generators for n in range(100)),
            unanswerable_share=share,
            finds=[other],
        )
        withheld = [row for row in built.rows if not row["answerable"]]
        assert expected[0] <= len(withheld) <= expected[1]
        assert share or {row["generator"] for row in withheld} <= {"pairs"}
        wanted = 0.1 * generators.count("pairs") / len(generators) if share is None else share
        assert built.wanted_unanswerable_share == pytest.approx(wanted)
