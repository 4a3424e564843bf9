"""Which indexes the chunk table gets, and how vector search uses them.

Vectors are searched exactly while that is fast, and over an IVF index above. The number of
probed partitions and the refine factor are not defaults: they are raised until recall@10 against
exact search, measured on vectors of the table itself, exceeds the target by its standard error (so
that queries it was not measured on reach it too), and are recorded with the table version.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from lancedb.index import FTS, Bitmap, BTree, HnswSq, IvfFlat, IvfPq, IvfRq

from rag_fti.errors import IncompatibleArtifact, StoreError
from rag_fti.feature_store.rows import matrix
from rag_fti.feature_store.searching import POLICY_KEY, ChunkSearcher, SearchPolicy, read_policy

VECTOR_INDEX = "vector_idx"
_ATTEMPTS = 6
_PROBES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_REFINE = {"ivf_flat": (0,), "ivf_rq": (4, 10, 30), "ivf_pq": (10, 30, 100), "hnsw_sq": (2, 10)}
_QUERY_NOISE = 0.35
"""Queries for measuring recall are stored vectors moved by noise of this length: real questions
lie near chunks, but not on them."""


def create_scalar(documents: Any, chunks: Any) -> None:
    """Scalar indexes on what is looked up: ids, digests, collection."""
    _create(documents, "document_id", BTree())
    _create(chunks, "document_id", BTree())
    _create(chunks, "chunk_id", BTree())
    _create(chunks, "indexed_digest", BTree())
    _create(chunks, "collection", Bitmap())


def create_full_text(chunks: Any, *, language: str, stemming: bool) -> None:
    """The BM25 index over title, headings and text.

    Raises:
        IncompatibleArtifact: If there is one of another language, or with other stemming.
    """
    for index in chunks.to_lance().describe_indices():
        if index.name != "indexed_text_idx":
            continue
        there = index.details["language"], index.details["stem"]
        if there != (language, stemming):
            raise IncompatibleArtifact(
                f"The store's full-text index is {_described(*there)}, the configuration asks for "
                f"{_described(language, stemming)}.",
                next_step="Set index.language and index.full_text_stemming to what the store has, "
                "or ingest into a new storage.root.",
            )
    config = FTS(
        language=language, stem=stemming, remove_stop_words=True, ascii_folding=True,
        with_position=False,
    )  # fmt: skip
    _create(chunks, "indexed_text", config)


def _described(language: str, stemming: bool) -> str:
    return f"{language} {'with' if stemming else 'without'} stemming"


def update_vector_index(
    table: Any, *, kind: str, exact_below: int, target_recall: float
) -> SearchPolicy:
    """Build, rebuild or drop the vector index, as the policy asks.

    New rows join an existing index when the table is optimised; it is rebuilt once the table
    has doubled since, because partitions then no longer fit the data.

    Args:
        table: The chunk table.
        kind: ``auto`` or a fixed kind.
        exact_below: Rows up to which ``auto`` searches exactly.
        target_recall: Recall@10 to reach.

    Raises:
        StoreError: If a fixed kind cannot reach the target.
    """
    rows = table.count_rows()
    wanted = kind
    if kind == "auto":
        wanted = "none" if rows <= exact_below else "ivf_flat"
    current = read_policy(table.to_lance())
    if wanted == "none" or rows < 256:
        if current.kind != "none":
            table.drop_index(VECTOR_INDEX)
            _record(table, SearchPolicy(rows=rows))
        return SearchPolicy(rows=rows)
    if current.kind == wanted and rows < 2 * current.rows and current.recall >= target_recall:
        return current
    table.create_index("vector", config=_config(wanted, rows), replace=True, name=VECTOR_INDEX)
    policy = _tune(table, wanted, rows, target_recall)
    _record(table, policy)
    return policy


def measure_recall(searcher: ChunkSearcher, *, queries: int = 64, seed: int = 17) -> float:
    """Recall@10 of a version's policy against exact search, for queries near stored vectors."""
    probes = _queries(searcher, queries, seed)
    truth = [_top(searcher, probe, SearchPolicy()) for probe in probes]
    return _recall(searcher, searcher.policy, probes, truth)[0]


def _config(kind: str, rows: int) -> Any:
    partitions = max(1, round(math.sqrt(rows)))
    return {
        "ivf_flat": lambda: IvfFlat(distance_type="cosine", num_partitions=partitions),
        "ivf_rq": lambda: IvfRq(distance_type="cosine", num_partitions=partitions),
        "ivf_pq": lambda: IvfPq(distance_type="cosine", num_partitions=partitions),
        "hnsw_sq": lambda: HnswSq(distance_type="cosine", num_partitions=1),
    }[kind]()


def _tune(table: Any, kind: str, rows: int, target: float) -> SearchPolicy:
    searcher = ChunkSearcher(table.to_lance())
    probes = _queries(searcher, 64, seed=17)
    truth = [_top(searcher, probe, SearchPolicy()) for probe in probes]
    best = SearchPolicy(kind, 1, 0, 0.0, rows)
    for refine in _REFINE[kind]:
        for nprobes in _PROBES:
            policy = SearchPolicy(kind, nprobes, refine, 0.0, rows)
            recall, error = _recall(searcher, policy, probes, truth)
            policy = SearchPolicy(kind, nprobes, refine, round(recall, 4), rows)
            if recall - error >= target:
                return policy
            if recall > best.recall:
                best = policy
    if best.recall >= target:
        return best
    raise StoreError(
        f"No setting of {kind} reaches recall@10 of {target} (best {best.recall} with nprobes "
        f"{best.nprobes}, refine factor {best.refine_factor}).",
        next_step="Use index.type=auto, or lower index.target_recall.",
    )


def _recall(
    searcher: ChunkSearcher,
    policy: SearchPolicy,
    probes: npt.NDArray[np.float32],
    truth: list[set[int]],
) -> tuple[float, float]:
    """Mean recall over the probes, and its standard error."""
    found = [_top(searcher, probe, policy) for probe in probes]
    shares = [len(f & t) / max(1, len(t)) for f, t in zip(found, truth, strict=True)] or [0.0]
    return float(np.mean(shares)), float(np.std(shares) / math.sqrt(len(shares)))


def _top(searcher: ChunkSearcher, probe: npt.NDArray[np.float32], policy: SearchPolicy) -> set[int]:
    return set(searcher.by_vector(probe, k=10, where=None, policy=policy))


def _queries(searcher: ChunkSearcher, count: int, seed: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    rows = searcher.dataset.count_rows()
    picks = sorted(generator.choice(rows, size=min(count, rows), replace=False).tolist())
    vectors = matrix(searcher.dataset.take(picks, columns=["vector"])["vector"])
    noise = generator.normal(size=vectors.shape).astype(np.float32)
    noise *= _QUERY_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors + noise * lengths, dtype=np.float32)


def _record(table: Any, policy: SearchPolicy) -> None:
    table.to_lance().update_config({POLICY_KEY: json.dumps(asdict(policy), sort_keys=True)})


def _create(table: Any, column: str, config: Any) -> None:
    name = f"{column}_idx"
    for attempt in range(_ATTEMPTS):
        if name in {index.name for index in table.list_indices()}:
            return
        try:
            table.create_index(column, config=config, name=name, replace=False)
        except (RuntimeError, ValueError) as error:
            # An object store has no lock: another ingest may be creating indexes right now.
            other = any(sign in str(error).lower() for sign in ("conflict", "already exists"))
            if not other or attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        else:
            return
