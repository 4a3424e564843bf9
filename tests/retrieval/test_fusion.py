import pytest

from rag_fti.retrieval.fusion import convex, reciprocal_rank

A, B, C, D = 1, 2, 3, 4


def test_convex_by_hand() -> None:
    vector = {A: 0.9, B: 0.5, C: 0.1}
    text = {C: 12.0, D: 2.0}
    fused = convex([vector, text], [0.75, 0.25])
    assert list(fused) == [A, B, C, D]
    assert fused == pytest.approx({A: 0.75, B: 0.375, C: 0.25, D: 0.0})


def test_convex_with_one_empty_ranking_keeps_the_other_order() -> None:
    assert list(convex([{}, {B: 3.0, A: 1.0}], [0.5, 0.5])) == [B, A]
    assert convex([{}, {}], [0.5, 0.5]) == {}


def test_equal_scores_do_not_divide_by_zero_and_order_by_row() -> None:
    fused = convex([{B: 2.0, A: 2.0}], [1.0])
    assert list(fused.items()) == [(A, 1.0), (B, 1.0)]


def test_reciprocal_rank_by_hand() -> None:
    fused = reciprocal_rank([{A: 9.0, B: 8.0}, {B: 1.0, C: 0.5}], weights=[1.0, 1.0], constant=60)
    assert list(fused) == [B, A, C]
    assert fused == pytest.approx({B: 1 / 62 + 1 / 61, A: 1 / 61, C: 1 / 62})
