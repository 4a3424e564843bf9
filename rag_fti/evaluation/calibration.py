"""When to withhold an answer: a confidence threshold, and the risk-coverage curve behind it.

*Coverage* is the share of questions that are answered, *risk* one minus the mean score of the
answers given (Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural Networks").
An answer to an unanswerable question scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Reply:
    """What the model said to one question."""

    confidence: float
    """In [0, 1]."""
    score: float
    """What the answer is worth, in [0, 1]; 0 for an unanswerable question."""
    answerable: bool
    abstained: bool
    """Whether the model abstained by itself, whatever the threshold."""


@dataclass(frozen=True)
class Operation:
    """How a threshold works out. Shares; None where nothing can be said."""

    threshold: float
    coverage: float
    risk: float | None
    false_abstention: float | None
    """Of the answerable questions."""
    abstention_recall: float | None
    """Of the unanswerable questions."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it was chosen from."""

    abstain_below: float
    max_false_abstention: float
    questions: int
    aurc: float | None
    """Area under the risk-coverage curve: lower is better, the risk at full coverage if
    confidence tells nothing."""
    chosen: Operation
    without: Operation
    """The model's own abstentions alone."""
    curve: tuple[Operation, ...]
    """Every threshold that changes something, from 0 on."""
    abstain_bias: float = 0.0
    """Added to the logit of abstaining, here and in serving."""

    def to_dict(self, *, curve: bool = True) -> dict[str, Any]:
        """JSON-ready form, with or without the curve."""
        found = asdict(self)
        if not curve:
            del found["curve"]
        return found


def fit_abstain_bias(
    margins: Sequence[float],
    replies: Sequence[Reply],
    *,
    max_false_abstention: float,
    least_unanswerable: int = 0,
) -> float | None:
    """What to add to the logit of abstaining so that most replies are right.

    Right is an answer by its score, and an abstention from an unanswerable question. A confidence
    threshold can only withhold; this gives back answers too.

    Args:
        margins: Of each question, by how much the logit of abstaining exceeds the next one.
        replies: What the model says to each when it may not abstain.
        max_false_abstention: Most answerable questions that may go unanswered, as a share.
        least_unanswerable: Unanswerable questions below which nothing is fitted: what abstaining
            gains cannot be seen then.

    Returns:
        The number to add, or None where nothing was fitted.
    """
    answerable = np.array([reply.answerable for reply in replies], dtype=bool)
    if not len(margins) or (~answerable).sum() < max(1, least_unanswerable):
        return None
    margin, score = np.asarray(margins), np.array([reply.score for reply in replies])
    steps = np.unique(margin)
    # From never abstaining on, so that of equals the one that abstains least is taken.
    limits = [steps[-1] + 1.0, *((steps[:-1] + steps[1:]) / 2)[::-1], steps[0] - 1.0]
    best, bias = -1.0, 0.0
    for limit in limits:
        abstains = margin > limit
        if answerable.any() and abstains[answerable].mean() > max_false_abstention:
            break
        right = float(score[answerable & ~abstains].sum() + abstains[~answerable].sum())
        if right > best:
            best, bias = right, -float(limit)
    return bias


def calibrate(
    replies: Sequence[Reply],
    *,
    max_false_abstention: float,
    least_unanswerable: int = 0,
    abstain_bias: float | None = None,
) -> Calibration:
    """The threshold that withholds most, as far as answerable questions are not hurt too often.

    Args:
        replies: What the model said to questions it was not trained on.
        max_false_abstention: Most answerable questions that may go unanswered, as a share. Where
            the model alone abstains from more, or no question is answerable, the threshold is 0.
        least_unanswerable: Unanswerable questions below which the threshold is 0 too: what it
            would gain cannot be seen, what it costs is sure.
        abstain_bias: Fitted by :func:`fit_abstain_bias`, and in the replies: it then decides, and
            the threshold is 0.
    """
    curve = risk_coverage(replies)
    without = curve[0]
    allowed = [
        point
        for point in curve
        if point.false_abstention is not None and point.false_abstention <= max_false_abstention
    ]
    unanswerable = sum(not reply.answerable for reply in replies)
    fits = allowed and unanswerable >= least_unanswerable and abstain_bias is None
    chosen = allowed[-1] if fits else without
    return Calibration(
        abstain_below=chosen.threshold,
        max_false_abstention=max_false_abstention,
        questions=len(replies),
        aurc=area(curve),
        chosen=chosen,
        without=without,
        curve=tuple(curve),
        abstain_bias=abstain_bias or 0.0,
    )


def risk_coverage(replies: Sequence[Reply]) -> list[Operation]:
    """The curve from the model's own abstentions (threshold 0) to answering nothing but the surest.

    A threshold lies halfway between two confidences, so that rounding changes nothing.
    """
    confidence = np.array([reply.confidence for reply in replies])
    score = np.array([reply.score for reply in replies])
    answerable = np.array([reply.answerable for reply in replies], dtype=bool)
    spoke = np.array([not reply.abstained for reply in replies], dtype=bool)
    steps = np.unique(confidence[spoke]) if len(replies) else np.array([])
    thresholds = [0.0, *((steps[:-1] + steps[1:]) / 2)]
    return [_operation(float(t), confidence, score, answerable, spoke) for t in thresholds]


def area(curve: Sequence[Operation]) -> float | None:
    """Mean risk over the coverages of the curve, by the trapezoid rule; None without answers."""
    points = sorted((p.coverage, p.risk) for p in curve if p.risk is not None)
    if not points:
        return None
    coverage, risk = (np.array(values) for values in zip(*points, strict=True))
    if len(points) == 1 or coverage[-1] == coverage[0]:
        return round(float(risk.mean()), 4)
    total = float(np.trapezoid(risk, coverage))
    return round(total / float(coverage[-1] - coverage[0]), 4)


def draw_risk_coverage(path: Path, curves: Mapping[str, Calibration]) -> None:
    """Risk over coverage, each threshold marked, as PNG. Needs matplotlib.

    Args:
        path: File to write.
        curves: One line per name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, calibration in curves.items():
        points = [(p.coverage, p.risk) for p in calibration.curve if p.risk is not None]
        coverage, risk = zip(*points, strict=True) if points else ((), ())
        (line,) = axes.plot(coverage, risk, label=name)
        chosen = calibration.chosen
        if chosen.risk is not None:
            axes.plot(chosen.coverage, chosen.risk, "o", color=line.get_color())
    axes.set_xlabel("coverage: share of questions answered")
    axes.set_ylabel("risk: 1 - mean F1 of the answers")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)


def _operation(
    threshold: float,
    confidence: npt.NDArray[np.float64],
    score: npt.NDArray[np.float64],
    answerable: npt.NDArray[np.bool_],
    spoke: npt.NDArray[np.bool_],
) -> Operation:
    answered = spoke & (confidence >= threshold)
    return Operation(
        threshold=math.floor(threshold * 1e6) / 1e6,  # up, it could withhold the surest
        coverage=_share(answered) or 0.0,
        risk=round(1.0 - float(score[answered].mean()), 4) if answered.any() else None,
        false_abstention=_share(~answered[answerable]),
        abstention_recall=_share(~answered[~answerable]),
    )


def _share(flags: npt.NDArray[np.bool_]) -> float | None:
    return round(float(flags.mean()), 4) if len(flags) else None
