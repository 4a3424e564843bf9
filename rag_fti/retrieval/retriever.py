"""From a question to ranked chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from rag_fti.errors import ConfigError, StoreError
from rag_fti.protocols import Embedder, Reranker, Vectors
from rag_fti.retrieval.diversity import maximal_marginal_relevance
from rag_fti.retrieval.filters import restrict
from rag_fti.retrieval.fusion import convex, reciprocal_rank
from rag_fti.retrieval.queries import QueryVectors
from rag_fti.schemas import Hit, Ranking

Mode = Literal["hybrid", "vector", "text"]

_SEARCH_THREADS = 8
_SEARCHED_CHARS = 4000
"""Most of a question that full text looks for, from its end: each word costs time, and nobody can
stop a search that runs."""
_SEARCH_TRIES = 3


class SearchableStore(Protocol):
    """The part of the feature store that searching needs."""

    def resolve(self, at: str) -> str:
        """Id of the snapshot that a tag, an id or "" (the newest) means."""
        ...

    def rank_vectors(self, vector: Any, *, k: int, where: str | None = None, at: str) -> Ranking:
        """Nearest rows, best first; the score is the cosine similarity."""
        ...

    def rank_text(self, query: str, *, k: int, where: str | None = None, at: str) -> Ranking:
        """Rows that match, best first; the score is BM25."""
        ...

    def read_rows(self, ranked: Ranking, *, at: str) -> list[Hit]:
        """The chunks of ranked rows, best first."""
        ...

    def vectors(self, chunk_ids: Sequence[str], *, at: str = "") -> Vectors:
        """Embeddings of chunks, shape ``(len(chunk_ids), dimension)``."""
        ...

    def neighbours(
        self,
        document_id: str,
        ordinal: int,
        radius: int,
        *,
        where: str | None = None,
        at: str = "",
    ) -> list[Hit]:
        """The chunks of a document around one of them."""
        ...

    def with_pages(self, hits: Sequence[Hit], *, at: str = "") -> list[Hit]:
        """Hits with the pages that each has a part of, where their documents have pages."""
        ...

    def document(self, document_id: str, *, at: str = "") -> Mapping[str, Any] | None:
        """A document's row."""
        ...


@dataclass(frozen=True)
class Retrieved:
    """The result of one search."""

    hits: tuple[Hit, ...]
    """Best first."""
    snapshot: str
    """The state of the store that was searched."""
    seconds: float
    """Wall time, embedding of the question included (its share, when embedded in a batch)."""


class Retriever:
    """Hybrid search with fusion, reranking, diversity and neighbouring chunks.

    Args:
        store: Where to search.
        embedder: Turns questions into vectors; must be the one the store was built with.
        mode: ``vector``, ``text`` (BM25) or ``hybrid``, both fused.
        k: Hits returned.
        candidates: Hits taken from each search before fusion.
        fusion: ``convex`` (weighted min-max scores) or ``rrf`` (reciprocal ranks).
        vector_weight: Weight of the vector search, the text search gets the rest; in [0, 1].
        rrf_constant: The constant of reciprocal rank fusion.
        diversity: 0 off; above, maximal marginal relevance; in [0, 1].
        neighbours: Chunks before and after a hit that are joined to it.
        reranker: Re-orders the first ``rerank_candidates`` hits.
        rerank_candidates: Hits that are re-scored.
        query_cache: Questions whose vectors are remembered.
    """

    def __init__(
        self,
        *,
        store: SearchableStore,
        embedder: Embedder,
        mode: Mode = "hybrid",
        k: int = 5,
        candidates: int = 50,
        fusion: Literal["convex", "rrf"] = "convex",
        vector_weight: float = 0.5,
        rrf_constant: int = 60,
        diversity: float = 0.0,
        neighbours: int = 0,
        reranker: Reranker | None = None,
        rerank_candidates: int = 30,
        query_cache: int = 4096,
    ) -> None:
        self.store = store
        self.embedder = embedder
        self.mode = mode
        self.k = k
        self.candidates = candidates
        self.fusion = fusion
        self.vector_weight = vector_weight
        self.rrf_constant = rrf_constant
        self.diversity = diversity
        self.neighbours = neighbours
        self.reranker = reranker
        self.rerank_candidates = rerank_candidates
        self.queries = QueryVectors(embedder, size=query_cache)
        self._searchers = ThreadPoolExecutor(_SEARCH_THREADS, thread_name_prefix="search")

    def retrieve(
        self,
        question: str,
        *,
        k: int | None = None,
        mode: Mode | None = None,
        where: str | None = None,
        at: str = "",
        collections: Sequence[str] | None = None,
        asker: str = "",
    ) -> Retrieved:
        """Search with one question.

        Args:
            question: Any text; an empty one finds nothing.
            k: Hits wanted; None takes the retriever's own.
            mode: Search mode; None takes the retriever's own.
            where: SQL condition over the chunk columns.
            at: Snapshot or tag to search; "" is the newest.
            collections: Only these collections; None searches all.
            asker: Who asks; questions are remembered for each alone.

        Raises:
            StoreError: If the store cannot be read; never an empty result instead.
            SnapshotNotFound: If ``at`` names nothing.
            ConfigError: If ``where`` is not one condition.
        """
        return self.retrieve_many(
            [question], k=k, mode=mode, where=where, at=at, collections=collections, asker=asker
        )[0]

    def retrieve_many(
        self,
        questions: Sequence[str],
        *,
        k: int | None = None,
        mode: Mode | None = None,
        where: str | None = None,
        at: str = "",
        collections: Sequence[str] | None = None,
        asker: str = "",
    ) -> list[Retrieved]:
        """Search with several questions on one snapshot, embedding them together.

        Returns:
            One result per question, in order. Arguments and errors as :meth:`retrieve`.
        """
        if not questions:
            return []
        mode = mode or self.mode
        if mode not in ("hybrid", "vector", "text"):
            raise ConfigError(
                f"Unknown search mode {mode!r}.", next_step="Use hybrid, vector or text."
            )
        condition = restrict(where, collections)
        tries = _SEARCH_TRIES
        while True:
            snapshot = self.store.resolve(at)
            try:
                return self._search(
                    questions, snapshot, mode=mode, where=condition, k=k or self.k, asker=asker
                )
            except StoreError:
                # A purge removes the state that is being read; the next one is there already.
                tries -= 1
                if not tries or self.store.resolve(at) == snapshot:
                    raise

    def _search(
        self,
        questions: Sequence[str],
        snapshot: str,
        *,
        mode: Mode,
        where: str | None,
        k: int,
        asker: str,
    ) -> list[Retrieved]:
        depth = max(k, self.candidates)
        started = time.perf_counter()
        # Full text needs no vector: it is searched while the questions are embedded.
        by_text = [
            self._searchers.submit(
                self.store.rank_text, question[-_SEARCHED_CHARS:], k=depth, where=where, at=snapshot
            )
            if mode != "vector" and question.strip()
            else None
            for question in questions
        ]
        vectors = None if mode == "text" else self.queries.encode(questions, asker=asker)
        shared = (time.perf_counter() - started) / len(questions)
        results = []
        for number, question in enumerate(questions):
            started = time.perf_counter()
            rankings = []
            if vectors is not None and question.strip():
                rankings.append(
                    self.store.rank_vectors(vectors[number], k=depth, where=where, at=snapshot)
                )
            text_search = by_text[number]
            if text_search is not None:
                rankings.append(text_search.result())
            hits = self._refine(question, rankings, k=k, where=where, at=snapshot)
            results.append(Retrieved(tuple(hits), snapshot, shared + time.perf_counter() - started))
        return results

    def _refine(
        self,
        question: str,
        rankings: Sequence[Ranking],
        *,
        k: int,
        where: str | None,
        at: str,
    ) -> list[Hit]:
        """Fuse, read, rerank, diversify, cut to ``k``, widen and number the pages."""
        if not rankings:
            return []
        ranked = rankings[0] if len(rankings) == 1 else self._fuse(*rankings)
        wanted = k
        if self.reranker is not None:
            wanted = max(wanted, self.rerank_candidates)
        if self.diversity > 0:
            wanted = max(wanted, self.candidates)
        hits = self.store.read_rows(dict(islice(ranked.items(), wanted)), at=at)
        if self.reranker is not None:
            hits = self._rerank(question, hits, k=k)
        if self.diversity > 0 and len(hits) > 1:
            embeddings = self.store.vectors([hit.chunk_id for hit in hits], at=at)
            hits = maximal_marginal_relevance(hits, embeddings, k=k, diversity=self.diversity)
        hits = hits[:k]
        if self.neighbours:
            hits = self._with_neighbours(hits, where=where, at=at)
        return self.store.with_pages(hits, at=at)

    def _fuse(self, by_vector: Ranking, by_text: Ranking) -> Ranking:
        rankings = [by_vector, by_text]
        weights = [self.vector_weight, 1.0 - self.vector_weight]
        if self.fusion == "convex":
            return convex(rankings, weights)
        return reciprocal_rank(rankings, weights=weights, constant=self.rrf_constant)

    def _rerank(self, question: str, hits: list[Hit], *, k: int) -> list[Hit]:
        assert self.reranker is not None
        pool = hits[: max(k, self.rerank_candidates)]
        if not pool:
            return []
        scores = self.reranker.score(question, [hit.text for hit in pool])
        order = np.argsort(-scores, kind="stable")
        return [replace(pool[int(i)], score=float(scores[int(i)])) for i in order]

    def _with_neighbours(self, hits: list[Hit], *, where: str | None, at: str) -> list[Hit]:
        """Hits widened by the chunks around them; overlapping ones join the better hit.

        What ``where`` leaves out is not shown as a neighbour either, nor what lies beyond it.
        """
        widened: list[Hit] = []
        for hit in hits:
            around = _adjoining(
                hit,
                self.store.neighbours(
                    hit.document_id, hit.ordinal, self.neighbours, where=where, at=at
                ),
            )
            start = min([hit.start, *(other.start for other in around)])
            end = max([hit.end, *(other.end for other in around)])
            taken = [h for h in widened if h.document_id == hit.document_id]
            if any(h.start <= hit.start and hit.end <= h.end for h in taken):
                continue
            for other in taken:
                # Never show the same characters twice.
                if other.start < end and start < other.end:
                    start, end = (other.end, end) if other.start <= start else (start, other.start)
            widened.append(
                self._span(hit, start=min(start, hit.start), end=max(end, hit.end), at=at)
            )
        return widened

    def _span(self, hit: Hit, *, start: int, end: int, at: str) -> Hit:
        if (start, end) == (hit.start, hit.end):
            return hit
        document = self.store.document(hit.document_id, at=at)
        if document is None:  # deleted between the two reads of a store without snapshots
            return hit
        return replace(hit, start=start, end=end, text=str(document["text"])[start:end])


def _adjoining(hit: Hit, around: Sequence[Hit]) -> list[Hit]:
    """Those of ``around`` that follow the hit on either side without a gap."""
    known = {other.ordinal: other for other in around}
    found = []
    for step in (-1, 1):
        ordinal = hit.ordinal + step
        while ordinal in known:
            found.append(known[ordinal])
            ordinal += step
    return found
