from dataclasses import replace

import pytest

from rag_fti.retrieval.fusion import convex, reciprocal_rank
from tests.retrieval.hits import hit


def test_convex_by_hand() -> None:
    vector = [hit("a", 0.9), hit("b", 0.5), hit("c", 0.1)]
    text = [hit("c", 12.0), hit("d", 2.0)]
    fused = convex([vector, text], [0.75, 0.25])
    assert [(h.chunk_id, pytest.approx(h.score)) for h in fused] == [
        ("a", 0.75),
        ("b", 0.375),
        ("c", 0.25),
        ("d", 0.0),
    ]


def test_convex_with_one_empty_ranking_keeps_the_other_order() -> None:
    text = [hit("x", 3.0), hit("y", 1.0)]
    assert [h.chunk_id for h in convex([[], text], [0.5, 0.5])] == ["x", "y"]
    assert convex([[], []], [0.5, 0.5]) == []


def test_equal_scores_do_not_divide_by_zero_and_order_by_id() -> None:
    fused = convex([[hit("b", 2.0), hit("a", 2.0)]], [1.0])
    assert [(h.chunk_id, h.score) for h in fused] == [("a", 1.0), ("b", 1.0)]


def test_reciprocal_rank_by_hand() -> None:
    first = [hit("a", 9.0), hit("b", 8.0)]
    second = [hit("b", 1.0), hit("c", 0.5)]
    fused = reciprocal_rank([first, second], weights=[1.0, 1.0], constant=60)
    assert [h.chunk_id for h in fused] == ["b", "a", "c"]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert fused[1].score == pytest.approx(1 / 61)
    assert fused[2].score == pytest.approx(1 / 62)


def test_fusion_does_not_change_anything_but_the_score() -> None:
    original = hit("a", 5.0)
    for fused in (convex([[original]], [1.0]), reciprocal_rank([[original]], weights=[1.0])):
        assert replace(fused[0], score=5.0) == original
