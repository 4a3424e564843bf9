"""Joining the rankings of several searches into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rag_fti.schemas import Hit


def convex(rankings: Sequence[Sequence[Hit]], weights: Sequence[float]) -> list[Hit]:
    """Weighted sum of min-max normalised scores (Bruch et al. 2022, section 3).

    A hit that a search did not return gets 0 from it. A ranking whose scores are all equal
    counts 1 for each of its hits.

    Args:
        rankings: Hits of each search, any order.
        weights: Weight of each search, in the order of ``rankings``.

    Returns:
        Every hit once, best first, ``score`` replaced by the sum; equal scores are ordered by
        chunk id, so that results do not depend on the order of the stores' answers.
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if not ranking:
            continue
        low = min(hit.score for hit in ranking)
        width = max(hit.score for hit in ranking) - low
        for hit in ranking:
            share = (hit.score - low) / width if width > 0 else 1.0
            scores[hit.chunk_id] = scores.get(hit.chunk_id, 0.0) + weight * share
            hits.setdefault(hit.chunk_id, hit)
    return _ranked(hits, scores)


def reciprocal_rank(
    rankings: Sequence[Sequence[Hit]], *, weights: Sequence[float], constant: int = 60
) -> list[Hit]:
    """Reciprocal rank fusion: the sum of ``weight / (constant + rank)`` (Cormack et al. 2009).

    Args:
        rankings: Hits of each search, best first.
        weights: Weight of each search; equal weights give the published formula up to scale.
        constant: Damps the lead of the first ranks.

    Returns:
        Every hit once, best first, ``score`` replaced by the sum.
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.chunk_id] = scores.get(hit.chunk_id, 0.0) + weight / (constant + rank)
            hits.setdefault(hit.chunk_id, hit)
    return _ranked(hits, scores)


def _ranked(hits: dict[str, Hit], scores: dict[str, float]) -> list[Hit]:
    order = sorted(hits, key=lambda chunk_id: (-scores[chunk_id], chunk_id))
    return [replace(hits[chunk_id], score=scores[chunk_id]) for chunk_id in order]
