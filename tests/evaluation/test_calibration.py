"""The confidence threshold and the risk-coverage curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag_fti.evaluation.calibration import (
    Reply,
    area,
    calibrate,
    draw_risk_coverage,
    fit_abstain_bias,
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


def test_abstaining_is_made_as_easy_as_gets_most_replies_right() -> None:
    # Margin of abstaining, what the answer is worth if it may not abstain.
    told_apart = [(2.0, None), (1.5, 1.0), (1.0, None), (0.5, 1.0), (0.4, 1.0), (-3.0, 1.0)]
    margins = [margin for margin, _ in told_apart]
    replies = [Reply(0.5, s or 0.0, s is not None, abstained=False) for _, s in told_apart]

    def right(bias: float) -> float:
        return sum(
            float(not reply.answerable) if margin + bias > 0 else reply.score
            for margin, reply in zip(margins, replies, strict=True)
        )

    for most, wanted in ((1.0, 5.0), (0.25, 5.0), (0.0, 5.0)):
        bias = fit_abstain_bias(margins, replies, max_false_abstention=most)
        assert bias is not None and right(bias) == wanted > right(0.0) == 3.0
    assert -2.0 < bias < -1.5  # of equals the one that abstains least


def test_no_more_answers_go_than_allowed_and_few_questions_fit_nothing() -> None:
    margins = [3.0, 2.0, 1.0, 0.5, 0.1]
    replies = [told(0.5, 0.0)] * 2 + [told(0.5, 0.0, answerable=False)] * 3
    bias = fit_abstain_bias(margins, replies, max_false_abstention=0.5)
    assert bias is not None and sum(margin + bias > 0 for margin in margins) <= 1
    freely = fit_abstain_bias(margins, replies, max_false_abstention=1.0)
    assert freely is not None and all(margin + freely > 0 for margin in margins)
    few = {"max_false_abstention": 1.0, "least_unanswerable": 4}
    assert fit_abstain_bias(margins, replies, **few) is None
    assert fit_abstain_bias([], replies, max_false_abstention=1.0) is None
    assert fit_abstain_bias(margins[:2], replies[:2], max_false_abstention=1.0) is None


def test_a_fitted_bias_sets_no_threshold() -> None:
    found = calibrate(REPLIES, max_false_abstention=0.5, abstain_bias=-0.7)
    assert found.abstain_below == 0 and found.abstain_bias == -0.7
    assert calibrate(REPLIES, max_false_abstention=0.5).abstain_below > 0
