from __future__ import annotations

import numpy as np

from rag_fti.datasets.contexts import with_answer, without_answer
from tests.datasets.made import candidate, hit

GOLD = candidate("What colour is the door?", "deep red", "The door is deep red.", chunk="gold")
OTHERS = [hit(f"Distractor number {n}.", chunk=f"o{n}") for n in range(8)]
RANDOM = np.random.default_rng(1)


def words(text: str) -> int:
    return len(text.split())


def test_what_retrieval_finds_is_shown_in_its_order() -> None:
    retrieved = [OTHERS[0], GOLD.chunks[0], *OTHERS[1:]]
    context = with_answer(
        GOLD, retrieved, passages=3, count_tokens=words, budget=100, random=RANDOM
    )
    assert context is not None and not context.inserted
    assert [h.chunk_id for h in context.hits] == ["o0", "gold", "o1"]
    assert context.supporting == (2,)


def test_a_missed_chunk_is_put_in_anywhere() -> None:
    places = set()
    for seed in range(40):
        context = with_answer(
            GOLD, OTHERS, passages=3, count_tokens=words, budget=100,
            random=np.random.default_rng(seed),
        )  # fmt: skip
        assert context is not None and context.inserted and len(context.hits) == 3
        places.add(context.supporting)
    assert places == {(1,), (2,), (3,)}


def test_no_context_when_the_budget_leaves_the_answer_out() -> None:
    retrieved = [OTHERS[0], GOLD.chunks[0]]
    tight = words("<passage>[1] Title > Head\nDistractor number 0.</passage>")
    assert (
        with_answer(GOLD, retrieved, passages=3, count_tokens=words, budget=tight, random=RANDOM)
        is None
    )


def test_no_passage_with_the_answer_is_left_when_it_is_withheld() -> None:
    again = hit("Somebody painted it DEEP RED once.", chunk="again")
    context = without_answer(
        GOLD, [again, GOLD.chunks[0], *OTHERS], passages=4, count_tokens=words, budget=200
    )
    assert context is not None and context.supporting == ()
    assert [h.chunk_id for h in context.hits] == ["o0", "o1", "o2", "o3"]
    assert context.withheld == ("again", "gold")
    assert (
        without_answer(GOLD, [GOLD.chunks[0]], passages=4, count_tokens=words, budget=200) is None
    )


def test_a_short_answer_is_withheld_with_the_words_around_it() -> None:
    gold = candidate(
        "How many bolts hold the door?", "12", "Gate. The door is held by 12 bolts of steel.",
        chunk="gold",
    )  # fmt: skip
    overlap = hit("The door is held by 12 bolts of steel. They are new.", chunk="overlap")
    unrelated = hit("Lunch is at 12 o'clock.", chunk="lunch")
    context = without_answer(
        gold, [overlap, unrelated, *OTHERS], passages=3, count_tokens=words, budget=200
    )
    assert context is not None
    assert [h.chunk_id for h in context.hits] == ["lunch", "o0", "o1"]
    assert context.withheld == ("gold", "overlap")
