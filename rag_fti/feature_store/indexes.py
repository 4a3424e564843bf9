"""Which indexes the chunk table gets, and how vector search uses them.

Vectors are searched exactly while that is fast, and over an IVF index above. The number of
probed partitions and the refine factor are not defaults: they are raised until recall@10 against
exact search, measured on vectors of the table itself, reaches the target, and are recorded with
the table version.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from lancedb.index import FTS, Bitmap, BTree, HnswSq, IvfFlat, IvfPq, IvfRq

from rag_fti.errors import StoreError

VECTOR_INDEX = "vector_idx"
_POLICY_KEY = "rag_fti.search_policy"
_PROBES = (8, 16, 32, 64, 128, 256, 512)
_REFINE = {"ivf_flat": (0,), "ivf_rq": (4, 10, 30), "ivf_pq": (10, 30, 100), "hnsw_sq": (2, 10)}
_QUERY_NOISE = 0.35
"""Queries for measuring recall are stored vectors moved by noise of this length: real questions
lie near chunks, but not on them."""


@dataclass(frozen=True)
class SearchPolicy:
    """How vector search runs on a table version."""

    kind: str = "none"
    """``none`` is exact search."""
    nprobes: int = 0
    """Partitions looked into."""
    refine_factor: int = 0
    """Candidates per wanted hit that are re-scored with full vectors; 0 is none."""
    recall: float = 1.0
    """Measured recall@10 against exact search."""
    rows: int = 0
    """Rows when the index was built."""

    def apply(self, query: Any) -> Any:
        """The LanceDB vector query with these settings."""
        if self.kind == "none":
            return query.bypass_vector_index()
        query = query.nprobes(self.nprobes)
        if self.kind == "hnsw_sq":
            query = query.ef(max(100, 10 * self.refine_factor))
        return query.refine_factor(self.refine_factor) if self.refine_factor else query


def create_scalar(documents: Any, chunks: Any) -> None:
    """Scalar indexes on what is looked up: ids, digests, collection."""
    _create(documents, "document_id", BTree())
    _create(chunks, "document_id", BTree())
    _create(chunks, "chunk_id", BTree())
    _create(chunks, "indexed_digest", BTree())
    _create(chunks, "collection", Bitmap())


def create_full_text(chunks: Any, *, language: str, stemming: bool) -> None:
    """The BM25 index over title, headings and text."""
    config = FTS(
        language=language, stem=stemming, remove_stop_words=True, ascii_folding=True,
        with_position=False,
    )  # fmt: skip
    _create(chunks, "indexed_text", config)


def read_policy(table: Any) -> SearchPolicy:
    """The recorded policy of a table version; exact search where there is none."""
    text = table.to_lance().config().get(_POLICY_KEY)
    return SearchPolicy(**json.loads(text)) if text else SearchPolicy()


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
    current = read_policy(table)
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


def measure_recall(table: Any, policy: SearchPolicy, *, queries: int = 64, seed: int = 17) -> float:
    """Recall@10 of ``policy`` against exact search, for queries near stored vectors."""
    probes = _queries(table, queries, seed)
    return _recall(table, policy, probes, [_exact(table, probe) for probe in probes])


def _config(kind: str, rows: int) -> Any:
    partitions = max(1, round(math.sqrt(rows)))
    return {
        "ivf_flat": lambda: IvfFlat(distance_type="cosine", num_partitions=partitions),
        "ivf_rq": lambda: IvfRq(distance_type="cosine", num_partitions=partitions),
        "ivf_pq": lambda: IvfPq(distance_type="cosine", num_partitions=partitions),
        "hnsw_sq": lambda: HnswSq(distance_type="cosine", num_partitions=1),
    }[kind]()


def _tune(table: Any, kind: str, rows: int, target: float) -> SearchPolicy:
    probes = _queries(table, 64, seed=17)
    truth = [_exact(table, probe) for probe in probes]
    best = SearchPolicy(kind, 1, 0, 0.0, rows)
    for refine in _REFINE[kind]:
        for nprobes in _PROBES:
            policy = SearchPolicy(kind, nprobes, refine, 0.0, rows)
            recall = _recall(table, policy, probes, truth)
            policy = SearchPolicy(kind, nprobes, refine, round(recall, 4), rows)
            if recall >= target:
                return policy
            if recall > best.recall:
                best = policy
    raise StoreError(
        f"No setting of {kind} reaches recall@10 of {target} (best {best.recall} with nprobes "
        f"{best.nprobes}, refine factor {best.refine_factor}).",
        next_step="Use index.type=auto, or lower index.target_recall.",
    )


def _recall(
    table: Any,
    policy: SearchPolicy,
    probes: npt.NDArray[np.float32],
    truth: list[set[str]],
) -> float:
    found = [_top(policy.apply(_query(table, probe))) for probe in probes]
    wanted = sum(len(t) for t in truth)
    return sum(len(f & t) for f, t in zip(found, truth, strict=True)) / max(1, wanted)


def _exact(table: Any, probe: npt.NDArray[np.float32]) -> set[str]:
    return _top(_query(table, probe).bypass_vector_index())


def _query(table: Any, probe: npt.NDArray[np.float32]) -> Any:
    query = table.search(probe, vector_column_name="vector").distance_type("cosine")
    return query.select(["chunk_id", "_distance"]).limit(10)


def _top(query: Any) -> set[str]:
    return set(query.to_arrow()["chunk_id"].to_pylist())


def _queries(table: Any, count: int, seed: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    rows = table.count_rows()
    picks = sorted(generator.choice(rows, size=min(count, rows), replace=False).tolist())
    taken = table.take_offsets(picks).select(["vector"]).to_arrow()
    vectors = np.asarray(taken["vector"].to_pylist(), dtype=np.float32)
    vectors = vectors.reshape(len(picks), -1)
    noise = generator.normal(size=vectors.shape).astype(np.float32)
    noise *= _QUERY_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors + noise * lengths, dtype=np.float32)


def _record(table: Any, policy: SearchPolicy) -> None:
    table.to_lance().update_config({_POLICY_KEY: json.dumps(asdict(policy), sort_keys=True)})


def _create(table: Any, column: str, config: Any) -> None:
    name = f"{column}_idx"
    if name not in {index.name for index in table.list_indices()}:
        table.create_index(column, config=config, name=name, replace=False)
