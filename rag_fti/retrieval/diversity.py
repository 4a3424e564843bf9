"""Choosing hits that do not repeat one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rag_fti.protocols import Vectors
from rag_fti.schemas import Hit


def maximal_marginal_relevance(
    hits: Sequence[Hit], vectors: Vectors, *, k: int, diversity: float
) -> list[Hit]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998).

    Picks, one after the other, the hit with the largest ``(1 - diversity) · relevance -
    diversity · similarity``, where similarity is the largest cosine to a hit picked before.
    Relevance is the hit's score, min-max normalised to [0, 1].

    Args:
        hits: Candidates, best first.
        vectors: Their embeddings, float32 of shape ``(len(hits), dimension)``.
        k: Most hits to pick.
        diversity: 0 keeps the order, 1 looks at dissimilarity alone; in [0, 1].

    Returns:
        At most ``k`` hits in the order picked, scores unchanged.
    """
    if not hits:
        return []
    scores = np.asarray([hit.score for hit in hits], dtype=np.float64)
    width = scores.max() - scores.min()
    relevance = (scores - scores.min()) / width if width > 0 else np.ones_like(scores)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, 1e-12)
    picked: list[int] = []
    similarity = np.zeros(len(hits))
    open_ = np.ones(len(hits), dtype=bool)
    for _ in range(min(k, len(hits))):
        gain = (1 - diversity) * relevance - diversity * similarity
        choice = int(np.argmax(np.where(open_, gain, -np.inf)))
        picked.append(choice)
        open_[choice] = False
        cosine = unit @ unit[choice]
        similarity = cosine if len(picked) == 1 else np.maximum(similarity, cosine)
    return [hits[index] for index in picked]
