import numpy as np

from rag_fti.protocols import Vectors
from rag_fti.retrieval.diversity import maximal_marginal_relevance
from tests.retrieval.hits import hit


def slow_reference(scores: list[float], vectors: Vectors, k: int, diversity: float) -> list[int]:
    low, high = min(scores), max(scores)
    relevance = [(s - low) / (high - low) if high > low else 1.0 for s in scores]
    unit = [v / np.linalg.norm(v) for v in vectors]
    picked: list[int] = []
    while len(picked) < min(k, len(scores)):
        best, best_gain = -1, -np.inf
        for i in range(len(scores)):
            if i in picked:
                continue
            closest = max((float(unit[i] @ unit[j]) for j in picked), default=0.0)
            gain = (1 - diversity) * relevance[i] - diversity * closest
            if gain > best_gain + 1e-12:
                best, best_gain = i, gain
        picked.append(best)
    return picked


def test_parity_with_the_slow_reference() -> None:
    random = np.random.default_rng(5)
    for diversity in (0.0, 0.3, 0.7, 1.0):
        vectors = random.normal(size=(12, 8)).astype(np.float32)
        scores = sorted(random.uniform(size=12).tolist(), reverse=True)
        hits = [hit(str(i), s) for i, s in enumerate(scores)]
        got = maximal_marginal_relevance(hits, vectors, k=6, diversity=diversity)
        assert [int(h.chunk_id) for h in got] == slow_reference(scores, vectors, 6, diversity)


def test_a_repeated_passage_comes_after_a_different_one() -> None:
    vectors = np.asarray([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    hits = [hit("a", 1.0), hit("copy", 0.95), hit("other", 0.7)]
    got = maximal_marginal_relevance(hits, vectors, k=2, diversity=0.5)
    assert [h.chunk_id for h in got] == ["a", "other"]


def test_nothing_in_nothing_out() -> None:
    empty = np.zeros((0, 4), dtype=np.float32)
    assert maximal_marginal_relevance([], empty, k=3, diversity=0.5) == []
