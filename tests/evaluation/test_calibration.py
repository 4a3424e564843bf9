"""The confidence threshold and the risk-coverage curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag_fti.evaluation.calibration import (
    Reply,
    area,
    calibrate,
    draw_risk_coverage,
    risk_coverage,
)


def told(confidence: float, score: float, *, answerable: bool = True) -> Reply:
    return Reply(confidence, score, answerable, abstained=False)


REPLIES = [
    told(0.9, 1.0),
    told(0.8, 1.0),
    told(0.7, 1.0),
    told(0.6, 0.0, answerable=False),
    told(0.5, 0.0),
    told(0.4, 1.0),
    told(0.3, 0.0, answerable=False),
    Reply(0.2, 0.0, answerable=False, abstained=True),
]


def test_the_curve_counts_every_question() -> None:
    curve = risk_coverage(REPLIES)
    assert len(curve) == 7
    whole = curve[0]
    assert whole.threshold == 0.0
    assert whole.coverage == 7 / 8
    assert whole.risk == pytest.approx(3 / 7, abs=1e-4)
    assert whole.false_abstention == 0.0
    assert whole.abstention_recall == pytest.approx(1 / 3, abs=1e-4)
    surest = curve[-1]
    assert (surest.coverage, surest.risk) == (1 / 8, 0.0)
    assert [p.coverage for p in curve] == sorted((p.coverage for p in curve), reverse=True)


def test_as_much_is_withheld_as_is_allowed() -> None:
    # 0.3 can be withheld for nothing, 0.4 and 0.5 cost one answerable question in five each.
    none = calibrate(REPLIES, max_false_abstention=0.0)
    assert none.abstain_below == pytest.approx(0.35, abs=1e-5)  # rounded down
    two = calibrate(REPLIES, max_false_abstention=0.4)
    assert two.abstain_below == pytest.approx(0.65, abs=1e-5)
    assert two.chosen.abstention_recall == 1.0
    assert two.chosen.risk == 0.0
    assert two.without.coverage == 7 / 8


def test_a_few_unanswerable_questions_move_no_threshold() -> None:
    replies = [Reply(n / 20, 1.0, answerable=n > 3, abstained=False) for n in range(20)]
    assert calibrate(replies, max_false_abstention=0.1, least_unanswerable=4).abstain_below > 0
    few = calibrate(replies, max_false_abstention=0.1, least_unanswerable=5)
    assert (few.abstain_below, few.chosen) == (0.0, few.without)


def test_a_model_that_abstains_too_often_gets_no_threshold() -> None:
    shy = [Reply(0.1, 0.0, answerable=True, abstained=True), told(0.9, 1.0), told(0.8, 0.0)]
    assert calibrate(shy, max_false_abstention=0.1).abstain_below == 0.0


@pytest.mark.parametrize("replies", [[], [Reply(0.5, 0.0, answerable=True, abstained=True)]])
def test_nothing_to_learn_from(replies: list[Reply], tmp_path: Path) -> None:
    found = calibrate(replies, max_false_abstention=0.1)
    assert found.abstain_below == 0.0
    assert found.aurc is None
    draw_risk_coverage(tmp_path / "curve.png", {"none": found})


def test_a_confidence_that_tells_lowers_the_area() -> None:
    scores = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    told_apart = [told(0.9 - 0.1 * n, score) for n, score in enumerate(scores)]
    upside_down = [told(0.1 + 0.1 * n, score) for n, score in enumerate(scores)]
    good, bad = area(risk_coverage(told_apart)), area(risk_coverage(upside_down))
    assert good is not None and bad is not None
    assert good < 0.5 < bad


def test_without_answerable_questions_nothing_is_withheld() -> None:
    replies = [Reply(n / 10, 0.0, answerable=False, abstained=False) for n in range(1, 6)]
    assert calibrate(replies, max_false_abstention=0.1).abstain_below == 0.0


def test_rounding_does_not_withhold_the_surest() -> None:
    replies = [told(0.9999992, 0.0), *(told(0.9999999, 1.0) for _ in range(19))]
    found = calibrate(replies, max_false_abstention=0.1)
    withheld = [reply for reply in replies if reply.confidence < found.abstain_below]
    assert len(withheld) <= 1
