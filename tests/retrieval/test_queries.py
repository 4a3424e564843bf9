from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rag_fti.protocols import EmbedderFingerprint, Vectors
from rag_fti.retrieval.queries import QueryVectors


class Counting:
    """The vector of a text is its length and who made it; counts what it is asked."""

    def __init__(self, name: str = "a") -> None:
        self.fingerprint = EmbedderFingerprint(name, name * 64, 2, 100, False, "", "")
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            self.asked += texts
        maker = ord(self.fingerprint.model)
        return np.array([[len(text), maker] for text in texts], dtype=np.float32)

    encode_documents = encode_queries

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]


def test_a_question_is_embedded_once_and_the_least_recent_goes_first() -> None:
    embedder = Counting()
    queries = QueryVectors(embedder, size=2)
    queries.encode(["x", "xx", "x"])
    assert embedder.asked == ["x", "xx"]
    queries.encode(["x"])
    queries.encode(["xxx"])  # "xx" has to go
    assert (len(queries), queries.asked, queries.hits) == (2, 5, 1)
    vectors = queries.encode(["x", "xx", "xxx"])
    assert embedder.asked == ["x", "xx", "xxx", "xx"]
    assert [int(vector[0]) for vector in vectors] == [1, 2, 3]
    assert vectors[0].dtype == np.float32


def test_the_exact_text_counts_and_another_embedder_has_its_own_vectors() -> None:
    embedder = Counting()
    queries = QueryVectors(embedder, size=10)
    queries.encode(["Why?", "why?", "Why? "])
    assert len(embedder.asked) == 3
    embedder.fingerprint = Counting("b").fingerprint
    assert queries.encode(["Why?"])[0][1] == ord("b")


def test_nobody_can_tell_what_others_asked() -> None:
    embedder = Counting()
    queries = QueryVectors(embedder, size=10)
    for asker in ("ann", "bob", "ann", ""):
        queries.encode(["x"], asker=asker)
    assert embedder.asked == ["x", "x", "x"]
    assert queries.hits == 1


def test_what_is_remembered_cannot_be_changed() -> None:
    queries = QueryVectors(Counting(), size=10)
    with pytest.raises(ValueError, match="read-only"):
        queries.encode(["x"])[0] *= 2
    assert queries.encode(["x"])[0][0] == 1


def test_nothing_is_remembered_with_size_0() -> None:
    embedder = Counting()
    queries = QueryVectors(embedder, size=0)
    assert [int(queries.encode(["x"])[0][0]) for _ in range(2)] == [1, 1]
    assert len(embedder.asked) == 2
    assert len(queries) == queries.hits == 0


def test_many_threads_get_their_own_vectors() -> None:
    queries = QueryVectors(Counting(), size=8)

    def ask(number: int) -> bool:
        length = number * 7 % 23 + 1
        return int(queries.encode(["x" * length])[0][0]) == length

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(2000)))
    assert len(queries) == 8
    assert queries.asked == 2000
