from __future__ import annotations

import numpy as np
import pytest

from rag_fti.datasets.near_duplicates import (
    Groups,
    NearDuplicates,
    document_shingles,
    group_documents,
    jaccard,
    question_shingles,
)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 1.0])
def test_the_index_finds_what_comparing_all_pairs_finds(similarity: float) -> None:
    random = np.random.default_rng(5)
    sets = []
    for _ in range(150):
        base = set(random.integers(0, 60, size=int(random.integers(1, 25))).tolist())
        sets.append(frozenset(base))
        sets.append(
            frozenset(base ^ set(random.integers(0, 60, size=2).tolist())) or frozenset([1])
        )
    index: NearDuplicates[int] = NearDuplicates(similarity)
    for number, items in enumerate(sets):
        expected = {other for other in range(number) if jaccard(items, sets[other]) >= similarity}
        assert {key for key, _ in index.find(items)} == expected
        index.add(number, items)


def test_questions_compare_by_their_letters() -> None:
    one = question_shingles("What is the rotor diameter of Corran Sound?")
    assert jaccard(one, question_shingles("what is the ROTOR diameter of corran sound")) == 1.0
    assert jaccard(one, question_shingles("What's the rotor diameter of Corran Sound?")) > 0.8
    assert jaccard(one, question_shingles("When was Vennick Race opened?")) < 0.2


def test_long_documents_are_sampled_evenly() -> None:
    random = np.random.default_rng(2)
    words = [f"w{n}" for n in random.integers(0, 5000, size=30_000)]
    changed = words[:24_000] + [f"x{n}" for n in range(6_000)]
    whole = jaccard(
        frozenset(hash(tuple(words[n : n + 5])) for n in range(len(words))),
        frozenset(hash(tuple(changed[n : n + 5])) for n in range(len(changed))),
    )
    sampled = document_shingles(" ".join(words)).similarity(document_shingles(" ".join(changed)))
    assert sampled == pytest.approx(whole, abs=0.03)


def test_near_duplicate_documents_share_a_group_along_the_chain() -> None:
    words = [f"word{n}" for n in range(100)]
    texts = {
        "a": " ".join(words),
        "b": " ".join(words[5:] + ["new"] * 2),
        "c": " ".join(words[9:] + ["new"] * 5),
        "d": " ".join(reversed(words)),
    }
    groups = Groups()
    group_documents(texts, similarity=0.85, groups=groups)
    assert groups.find("a") == groups.find("b") == groups.find("c") != groups.find("d")


def test_documents_on_both_sides_of_the_sampling_limit_are_compared() -> None:
    words = [f"word{n}" for n in range(1990)]
    texts = {"a": " ".join(words), "b": " ".join([*words, *(f"more{n}" for n in range(60))])}
    groups = Groups()
    group_documents(texts, similarity=0.8, groups=groups)
    assert groups.find("a") == groups.find("b")
    one, two = (document_shingles(text) for text in texts.values())
    assert one.whole is not None and two.whole is None
    assert one.similarity(two) > 0.9
