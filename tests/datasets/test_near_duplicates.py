from __future__ import annotations

import tracemalloc
from itertools import combinations

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


def words_of(count: int, seed: int = 2) -> list[str]:
    return [f"w{n}" for n in np.random.default_rng(seed).integers(0, 5000, size=count)]


def grams(words: list[str]) -> frozenset[int]:
    return frozenset(hash(tuple(words[n : n + 5])) for n in range(len(words) - 4))


@pytest.mark.parametrize(("length", "off"), [(1500, 1e-9), (30_000, 0.03)])
def test_documents_of_any_length_compare_by_eight_kilobytes(length: int, off: float) -> None:
    words = words_of(length)
    changed = words[: length * 4 // 5] + [f"x{n}" for n in range(length // 5)]
    one, two = (document_shingles(" ".join(text)) for text in (words, changed))
    assert one.similarity(two) == pytest.approx(jaccard(grams(words), grams(changed)), abs=off)
    assert one.similarity(two) == two.similarity(one)
    assert one.smallest.nbytes <= 8000
    short = document_shingles(" ".join(words[:900]))
    assert one.similarity(short) == pytest.approx(
        jaccard(grams(words), grams(words[:900])), abs=off
    )
    assert document_shingles("...").similarity(document_shingles("")) == 1.0


@pytest.mark.parametrize("similarity", [0.4, 0.8, 1.0])
def test_documents_are_grouped_as_comparing_all_pairs_groups_them(similarity: float) -> None:
    random = np.random.default_rng(7)
    texts: dict[str, str] = {"empty": "", "blank": " - "}
    for family in range(30):
        words = words_of(80, seed=family)
        for member in range(4):
            changed = list(words)
            for place in random.integers(0, len(words), size=2 * member):
                changed[place] = "other"
            texts[f"{family}-{member}"] = " ".join(changed)
    groups, slow = Groups(), Groups()
    group_documents(texts.items(), similarity=similarity, groups=groups)
    shingles = {name: grams(text.split()) for name, text in texts.items() if text.strip(" -")}
    for one, other in combinations(shingles, 2):
        if jaccard(shingles[one], shingles[other]) >= similarity:
            slow.join([one, other])
    assert {name: groups.find(name) for name in texts} == {name: slow.find(name) for name in texts}


def test_memory_of_grouping_does_not_follow_the_length_of_the_texts() -> None:
    def peak(length: int) -> int:
        tracemalloc.start()
        texts = ((str(n), " ".join(words_of(length, seed=n))) for n in range(40))
        group_documents(texts, similarity=0.8, groups=Groups())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) - 40 * 8000 < 6_000_000  # one text with all its hashes, at a time


def test_near_duplicate_documents_share_a_group_along_the_chain() -> None:
    words = [f"word{n}" for n in range(100)]
    texts = {
        "a": " ".join(words),
        "b": " ".join(words[5:] + ["new"] * 2),
        "c": " ".join(words[9:] + ["new"] * 5),
        "d": " ".join(reversed(words)),
    }
    groups = Groups()
    group_documents(texts.items(), similarity=0.85, groups=groups)
    assert groups.find("a") == groups.find("b") == groups.find("c") != groups.find("d")


def test_documents_on_both_sides_of_the_sampling_limit_are_compared() -> None:
    words = [f"word{n}" for n in range(1990)]
    texts = {"a": " ".join(words), "b": " ".join([*words, *(f"more{n}" for n in range(60))])}
    groups = Groups()
    group_documents(texts.items(), similarity=0.8, groups=groups)
    assert groups.find("a") == groups.find("b")
    one, two = (document_shingles(text) for text in texts.values())
    assert one.count < 2000 < two.count
    assert one.similarity(two) > 0.9
