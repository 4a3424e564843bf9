"""Joining the rankings of several searches into one."""

from __future__ import annotations

from collections.abc import Sequence

from rag_fti.schemas import Ranking


def convex(rankings: Sequence[Ranking], weights: Sequence[float]) -> Ranking:
    """Weighted sum of min-max normalised scores (Bruch et al. 2022, section 3).

    A row that a search did not return gets 0 from it. A ranking whose scores are all equal
    counts 1 for each of its rows.

    Args:
        rankings: Row id to score of each search, any order.
        weights: Weight of each search, in the order of ``rankings``.

    Returns:
        Every row once with its sum, best first; equal sums in the order of row ids, so that
        results do not depend on the order of the store's answers.
    """
    scores: Ranking = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if not ranking:
            continue
        low = min(ranking.values())
        width = max(ranking.values()) - low
        for row, score in ranking.items():
            share = (score - low) / width if width > 0 else 1.0
            scores[row] = scores.get(row, 0.0) + weight * share
    return _ranked(scores)


def reciprocal_rank(
    rankings: Sequence[Ranking], *, weights: Sequence[float], constant: int = 60
) -> Ranking:
    """Reciprocal rank fusion: the sum of ``weight / (constant + rank)`` (Cormack et al. 2009).

    Args:
        rankings: Row id to score of each search, best first.
        weights: Weight of each search; equal weights give the published formula up to scale.
        constant: Damps the lead of the first ranks.

    Returns:
        Every row once with its sum, best first.
    """
    scores: Ranking = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, row in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + weight / (constant + rank)
    return _ranked(scores)


def _ranked(scores: Ranking) -> Ranking:
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))
