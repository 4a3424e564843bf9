"""The retriever over a small in-memory store that keeps the store's promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rag_fti.errors import ConfigError, StoreError
from rag_fti.protocols import EmbedderFingerprint, Vectors
from rag_fti.retrieval import Retriever
from rag_fti.schemas import Hit, Ranking
from tests.retrieval.hits import hit

TEXT = "Alpha rises. Beta falls. Gamma waits. Delta leaves."
SPANS = [(0, 13), (13, 25), (25, 38), (38, 51)]
WORDS = ["alpha", "beta", "gamma", "delta"]


class OneHot:
    """Embeds a text by which of the four words it holds."""

    fingerprint = EmbedderFingerprint("one-hot", "0" * 64, 4, 100, True, "", "")

    def __init__(self) -> None:
        self.calls = 0

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        self.calls += 1
        rows = [[float(word in text.lower()) for word in WORDS] for text in texts]
        return np.asarray(rows, dtype=np.float32)

    encode_queries = encode_documents

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class MemoryStore:
    def __init__(self) -> None:
        self.embedder = OneHot()
        self.seen: list[tuple[str, str | None, str]] = []
        self.chunks = [
            replace(hit(f"c{i}", 0.0), start=start, end=end, text=TEXT[start:end], ordinal=i)
            for i, (start, end) in enumerate(SPANS)
        ]
        self.matrix = self.embedder.encode_documents([c.text for c in self.chunks])

    def resolve(self, at: str) -> str:
        return at or "d1c1"

    def rank_vectors(self, vector: Any, *, k: int, where: str | None = None, at: str) -> Ranking:
        self.seen.append(("vector", where, at))
        return self._best(self.matrix @ np.asarray(vector), k)

    def rank_text(self, query: str, *, k: int, where: str | None = None, at: str) -> Ranking:
        self.seen.append(("text", where, at))
        words = query.lower().split()
        scores = [sum(3.0 for w in words if w in c.text.lower()) for c in self.chunks]
        return {row: score for row, score in self._best(np.asarray(scores), k).items() if score > 0}

    def _best(self, scores: Any, k: int) -> Ranking:
        order = np.argsort(-scores, kind="stable")[:k]
        return {int(row): float(scores[row]) for row in order}

    def read_rows(self, ranked: Ranking, *, at: str) -> list[Hit]:
        return [replace(self.chunks[row], score=score) for row, score in ranked.items()]

    def vectors(self, chunk_ids: Sequence[str], *, at: str = "") -> Vectors:
        return self.matrix[[int(name[1:]) for name in chunk_ids]]

    def neighbours(
        self,
        document_id: str,
        ordinal: int,
        radius: int,
        *,
        where: str | None = None,
        at: str = "",
    ) -> list[Hit]:
        return [
            c
            for c in self.chunks
            if 0 < abs(c.ordinal - ordinal) <= radius and (not where or c.chunk_id not in where)
        ]

    def with_pages(self, hits: Sequence[Hit], *, at: str = "") -> list[Hit]:
        return list(hits)

    def document(self, document_id: str, *, at: str = "") -> Mapping[str, Any] | None:
        return {"text": TEXT}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def build(store: MemoryStore, **options: Any) -> Retriever:
    return Retriever(store=store, embedder=store.embedder, **options)


def test_each_mode_searches_what_it_says(store: MemoryStore) -> None:
    retriever = build(store, k=2)
    for mode, expected in (
        ("vector", ["vector"]),
        ("text", ["text"]),
        ("hybrid", ["vector", "text"]),
    ):
        store.seen.clear()
        found = retriever.retrieve("gamma", mode=mode)  # type: ignore[arg-type]
        assert sorted(name for name, _, _ in store.seen) == sorted(expected)
        assert found.hits[0].chunk_id == "c2"
        assert found.snapshot == "d1c1"
        assert found.seconds > 0


def test_filters_collections_and_snapshot_reach_both_searches(store: MemoryStore) -> None:
    found = build(store).retrieve("beta", where="page = 1", at="tagged", collections=["b", "a"])
    assert found.snapshot == "tagged"
    assert {(where, at) for _, where, at in store.seen} == {
        ("collection IN ('a', 'b') AND (page = 1)", "tagged")
    }


def test_an_empty_question_finds_nothing_and_k_is_kept(store: MemoryStore) -> None:
    assert build(store).retrieve("  ").hits == ()
    assert len(build(store, k=3).retrieve("alpha").hits) == 3
    assert len(build(store, k=3).retrieve("alpha", k=1).hits) == 1


def test_an_unknown_mode_is_named(store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match="nearest"):
        build(store).retrieve("alpha", mode="nearest")  # type: ignore[arg-type]


def test_many_questions_are_embedded_together_and_equal_single_ones(store: MemoryStore) -> None:
    retriever = build(store, k=2)
    questions = ["alpha", "what does delta do", ""]
    before = store.embedder.calls
    together = retriever.retrieve_many(questions)
    assert store.embedder.calls == before + 1
    assert [r.hits for r in together] == [retriever.retrieve(q).hits for q in questions]
    assert retriever.retrieve_many([]) == []


def test_a_store_that_is_down_is_an_error_not_an_empty_result(store: MemoryStore) -> None:
    class Down(MemoryStore):
        def rank_text(self, query: str, **options: Any) -> Ranking:
            raise StoreError("The table cannot be read.")

    with pytest.raises(StoreError):
        build(Down()).retrieve("alpha")


def test_the_reranker_has_the_last_word(store: MemoryStore) -> None:
    class ByLength:
        model = "by length"

        def score(self, question: str, texts: Sequence[str]) -> Any:
            return np.asarray([-len(t) - ("Delta" not in t) * 100 for t in texts], np.float32)

    found = build(store, k=1, reranker=ByLength()).retrieve("alpha")
    assert found.hits[0].text == "Delta leaves."


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("beta gamma", [(0, 38)]),  # the second hit is inside the first one's surroundings
        ("alpha delta", [(0, 25), (25, 51)]),
        ("alpha gamma", [(0, 25), (25, 51)]),  # both have Beta beside them; it is shown once
    ],
)
def test_neighbours_widen_a_hit_without_repeating_text(
    store: MemoryStore, question: str, expected: list[tuple[int, int]]
) -> None:
    found = build(store, k=2, neighbours=1, mode="vector").retrieve(question)
    assert sorted((h.start, h.end) for h in found.hits) == expected
    for h in found.hits:
        assert h.text == TEXT[h.start : h.end]


def test_neighbours_end_where_a_chunk_is_left_out(store: MemoryStore) -> None:
    retriever = build(store, k=1, neighbours=3, mode="vector")
    (whole,) = retriever.retrieve("alpha").hits
    assert whole.text == TEXT
    (part,) = retriever.retrieve("alpha", where="chunk_id NOT IN ('c1')").hits
    assert (part.start, part.end) == SPANS[0]


def test_diversity_asks_for_vectors_and_keeps_k(store: MemoryStore) -> None:
    found = build(store, k=2, diversity=0.5).retrieve("alpha")
    assert found.hits[0].chunk_id == "c0"
    assert len(found.hits) == 2
