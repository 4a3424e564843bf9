"""From answers to scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rag_fti.evaluation.answers import best_exact_match, best_f1
from rag_fti.evaluation.calibration import Reply, area, risk_coverage
from rag_fti.schemas import Answer

PER_QUESTION = ("f1", "exact_match")
"""Metrics that are a mean over all questions, so that they can be compared pairwise."""

_RESAMPLED_VALUES = 1 << 20

QuestionSet = Literal["question_files", "test_split"]
"""Where a question comes from: written by people, or made by the dataset's generator."""


@dataclass(frozen=True)
class Judged:
    """One answer with what it is worth."""

    question_id: str
    question: str
    question_set: QuestionSet
    answerable: bool
    answer: str
    expected: tuple[str, ...]
    abstained: bool
    exact_match: float
    """0 or 1. For an unanswerable question 1 when the model abstained."""
    f1: float
    """In [0, 1]; for an unanswerable question as ``exact_match``."""
    citations: int
    """Passages cited."""
    supporting: int
    """Cited passages that hold the answer."""
    retrieved: bool
    """Whether a supporting passage was in the prompt."""
    seconds: float
    """Retrieval and generation; the share of one question where several ran together."""
    confidence: float | None = None
    """Of what the model said, also where it was withheld."""


def judge(
    answer: Answer,
    *,
    question_id: str,
    accepted: Sequence[str],
    answerable: bool,
    supporting_chunks: frozenset[str],
    question_set: QuestionSet = "question_files",
) -> Judged:
    """Score one answer.

    Args:
        answer: What the engine said.
        question_id: Id in the report.
        accepted: Accepted answers; empty for an unanswerable question.
        answerable: Whether the documents hold the answer.
        supporting_chunks: Ids of retrieved chunks that hold it.
        question_set: Where the question comes from.
    """
    if answerable:
        right = not answer.abstained
        exact = float(right and best_exact_match(answer.answer, accepted))
        close = best_f1(answer.answer, accepted) if right else 0.0
    else:
        exact = close = float(answer.abstained)
    cited = {citation.chunk_id for citation in answer.citations} if not answer.abstained else set()
    return Judged(
        question_id=question_id,
        question=answer.question,
        question_set=question_set,
        answerable=answerable,
        answer=answer.answer,
        expected=tuple(accepted),
        abstained=answer.abstained,
        exact_match=exact,
        f1=close,
        citations=len(cited),
        supporting=len(cited & supporting_chunks),
        retrieved=bool({hit.chunk_id for hit in answer.hits} & supporting_chunks),
        seconds=answer.retrieval_seconds + answer.generation_seconds,
        confidence=answer.confidence,
    )


def scores(judged: Sequence[Judged]) -> dict[str, Any]:
    """All metrics over some answers.

    Returns:
        ``questions``, ``answerable``: counts. ``f1``, ``exact_match``: means over all questions,
        where abstaining from an unanswerable one is right. ``f1_answerable``,
        ``exact_match_answerable``: over the answerable alone. ``retrieval_recall``: share of the
        answerable with a supporting passage in the prompt. ``citation_precision``: share of
        cited passages that hold the answer; ``citation_recall``: share of the answers given to
        answerable questions that cite one that does. ``abstention_precision``: share of
        abstentions that were right; ``abstention_recall``: share of the unanswerable abstained
        from; ``false_abstention``: share of the answerable abstained from. ``aurc``: area under
        the risk-coverage curve of the answers given.
        ``latency_mean_seconds``, ``latency_p95_seconds``. A metric that nothing can be said
        about is None.
    """
    answerable = [j for j in judged if j.answerable]
    unanswerable = [j for j in judged if not j.answerable]
    answered = [j for j in answerable if not j.abstained]
    abstained = [j for j in judged if j.abstained]
    seconds = [j.seconds for j in judged]
    return {
        "questions": len(judged),
        "answerable": len(answerable),
        "f1": _mean([j.f1 for j in judged]),
        "exact_match": _mean([j.exact_match for j in judged]),
        "f1_answerable": _mean([j.f1 for j in answerable]),
        "exact_match_answerable": _mean([j.exact_match for j in answerable]),
        "retrieval_recall": _mean([float(j.retrieved) for j in answerable]),
        "citation_precision": _ratio(
            sum(j.supporting for j in judged), sum(j.citations for j in judged)
        ),
        "citation_recall": _mean([float(j.supporting > 0) for j in answered]),
        "abstention_precision": _mean([float(not j.answerable) for j in abstained]),
        "abstention_recall": _mean([float(j.abstained) for j in unanswerable]),
        "false_abstention": _mean([float(j.abstained) for j in answerable]),
        "aurc": area(risk_coverage(replies(judged))),
        "latency_mean_seconds": _mean(seconds),
        "latency_p95_seconds": round(float(np.percentile(seconds, 95)), 4) if seconds else None,
    }


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready form."""
        return {name: round(getattr(self, name), 4) for name in ("mean", "low", "high")}


def paired_difference(
    one: Sequence[float], other: Sequence[float], *, samples: int, seed: int
) -> Interval:
    """Mean difference of two systems on the same questions, with a percentile interval.

    Questions are resampled with replacement, both systems together (paired bootstrap, Koehn
    2004; Efron and Tibshirani 1993).

    Args:
        one: Score of the first system per question.
        other: Score of the second system on the same questions.
        samples: Resamples.
        seed: Seed of the resampling.
    """
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return mean_interval(difference, samples=samples, seed=seed)


def mean_interval(
    values: Sequence[float] | npt.NDArray[np.float64], *, samples: int, seed: int
) -> Interval:
    """Mean with a 95 % percentile bootstrap interval."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return Interval(0.0, 0.0, 0.0)
    random = np.random.default_rng(seed)
    # In parts: all resamples of a large question set at once would not fit memory.
    step = max(1, _RESAMPLED_VALUES // len(array))
    means = np.concatenate(
        [
            array[random.integers(0, len(array), size=(min(step, samples - n), len(array)))].mean(1)
            for n in range(0, samples, step)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def by_question(judged: Sequence[Judged], metric: str) -> Mapping[str, float]:
    """``f1``, ``exact_match``, or either over the answerable alone, per question id."""
    name = metric.removesuffix("_answerable")
    return {
        j.question_id: float(getattr(j, name)) for j in judged if j.answerable or name == metric
    }


def replies(judged: Sequence[Judged]) -> list[Reply]:
    """The answers as calibration sees them, those of models that do not tell left out."""
    return [
        Reply(
            confidence=j.confidence,
            score=j.f1 if j.answerable else 0.0,
            answerable=j.answerable,
            abstained=j.abstained,
        )
        for j in judged
        if j.confidence is not None
    ]


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
