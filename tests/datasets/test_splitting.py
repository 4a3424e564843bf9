from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from rag_fti.datasets.splitting import Shares, assign_splits, group_of_each, measure_leakage
from tests.datasets.made import candidate


def many(documents: int, each: int) -> list:
    return [
        candidate(
            f"What is the {word} of {chr(97 + d % 26) * 9}{chr(97 + d // 26) * 9}?",
            f"value {d}{n}",
            f"value {d}{n}",
            chunk=f"c{d}-{n}",
            document=f"d{d}",
        )
        for d in range(documents)
        for n, word in enumerate(("alpha", "beta", "gamma", "delta")[:each])
    ]


def split(candidates: list, texts: dict[str, str]) -> tuple[list[str], list[str]]:
    groups = group_of_each(candidates, texts.items(), similarity=0.8)
    table = assign_splits(groups, shares=Shares(0.15, 0.15), seed=3)
    return groups, [table[group] for group in groups]


def test_splits_share_no_document_and_come_close_to_their_shares() -> None:
    candidates = many(40, 4)
    texts = {f"d{d}": " ".join(f"w{d}x{n}" for n in range(50)) for d in range(40)}
    groups, splits = split(candidates, texts)
    assert measure_leakage(candidates, groups, splits, similarity=0.8).total == 0
    counts = Counter(splits)
    assert 12 <= counts["validation"] <= 36 and 12 <= counts["test"] <= 36


def test_near_duplicate_documents_stay_together() -> None:
    candidates = many(30, 2)
    shared = " ".join(f"shared{n}" for n in range(60))
    texts = {f"d{d}": f"{shared} tail{d}" if d < 10 else f"own{d} text" for d in range(30)}
    groups, splits = split(candidates, texts)
    first = [
        s for c, s in zip(candidates, splits, strict=True) if int(c.chunks[0].document_id[1:]) < 10
    ]
    assert len(set(first)) == 1
    assert len(set(groups)) <= 21


def test_the_check_sees_leaks_that_a_split_by_row_would_make() -> None:
    candidates = many(10, 4)
    groups = [c.chunks[0].document_id for c in candidates]
    by_row = [("train", "test")[n % 2] for n in range(len(candidates))]
    leakage = measure_leakage(candidates, groups, by_row, similarity=0.8)
    assert leakage.documents == 10 and leakage.groups == 10
    twins = [
        candidate("What is the alpha number of the tower?", "1", "1", document="a"),
        candidate("What is the alpha number of the tower ?", "1", "1", document="b"),
    ]
    assert measure_leakage(twins, ["a", "b"], ["train", "test"], similarity=0.8).questions == 1


def test_one_document_alone_trains() -> None:
    candidates = many(1, 4)
    _, splits = split(candidates, {"d0": "text"})
    assert set(splits) == {"train"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from("abcdef")),
        min_size=1,
        max_size=40,
    )
)
def test_no_input_makes_splits_leak(items: list[tuple[int, int, str]]) -> None:
    candidates = [
        candidate(f"What is {word * 6} of number {n}?", "x", "x", document=f"d{d}")
        for d, n, word in items
    ]
    texts = {f"d{d}": f"text number {d % 3} of the same few words again" for d in range(9)}
    groups, splits = split(candidates, texts)
    assert measure_leakage(candidates, groups, splits, similarity=0.8).total == 0
    assert "train" in splits
