"""Searching one version of the chunk table: rank row ids first, then read the chosen few.

Half of the work of a search is reading the texts of candidates that nobody will see, so ranking
and reading are apart. Both go to Lance's own dataset of the version: it answers several times as
fast as a query on the LanceDB table, which plans anew what a fixed version has settled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from rag_fti.errors import StoreError
from rag_fti.feature_store.rows import HIT_COLUMNS, hits
from rag_fti.protocols import Vectors
from rag_fti.schemas import Hit, Ranking

POLICY_KEY = "rag_fti.search_policy"
_TEXT = "indexed_text"
_VECTOR = "vector"


@dataclass(frozen=True)
class SearchPolicy:
    """How vector search runs on a table version."""

    kind: str = "none"
    """``none`` is exact search."""
    nprobes: int = 0
    """Partitions looked into; more, where a filter leaves too few hits in them."""
    refine_factor: int = 0
    """Candidates per wanted hit that are re-scored with full vectors; 0 is none."""
    recall: float = 1.0
    """Measured recall@10 against exact search."""
    rows: int = 0
    """Rows when the index was built."""

    def nearest(self, vector: pa.Array, *, k: int) -> dict[str, Any]:
        """The ``nearest`` argument of a Lance scanner with these settings."""
        query: dict[str, Any] = {"column": _VECTOR, "q": vector, "k": k, "metric": "cosine"}
        if self.kind == "none":
            return {**query, "use_index": False}
        query |= {"minimum_nprobes": self.nprobes, "search_effort": 0.0}
        if self.kind == "hnsw_sq":
            query["ef"] = max(100, 10 * self.refine_factor, k)
        if self.refine_factor:
            query["refine_factor"] = self.refine_factor
        return query


class ChunkSearcher:
    """Searches one version of the chunk table.

    Args:
        dataset: The table as a Lance dataset, opened at that version.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.policy = read_policy(dataset)
        fragments = {fragment.fragment_id for fragment in dataset.get_fragments()}
        indexed: dict[str, set[int]] = {}
        for index in dataset.describe_indices():
            for column in index.field_names:
                covered = indexed.setdefault(column, set())
                covered.update(*(segment.fragment_ids for segment in index.segments))
        self._indexed = {column for column, known in indexed.items() if known >= fragments}
        """Columns whose index knows every row, so that looking for other rows is in vain."""

    def by_vector(
        self, vector: Vectors, *, k: int, where: str | None, policy: SearchPolicy | None = None
    ) -> Ranking:
        """Rows nearest to a vector of shape ``(dimension,)``, with their cosine similarity."""
        policy = policy or self.policy
        values = pa.array(np.asarray(vector, dtype=np.float32).reshape(-1))
        found = self.dataset.scanner(
            columns=["_distance"],
            with_row_id=True,
            nearest=policy.nearest(values, k=k),
            filter=where,
            prefilter=True,
            fast_search=policy.kind != "none" and _VECTOR in self._indexed,
        ).to_table()
        return _ranking(found, 1.0 - found["_distance"].to_numpy())

    def by_text(self, query: str, *, k: int, where: str | None) -> Ranking:
        """Rows that match words of ``query``, with their BM25."""
        found = self.dataset.scanner(
            columns=["_score"],
            with_row_id=True,
            full_text_query=MatchQuery(query, _TEXT),
            limit=k,
            filter=where,
            prefilter=True,
            fast_search=_TEXT in self._indexed,
        ).to_table()
        return _ranking(found, found["_score"].to_numpy())

    def read(self, ranked: Ranking) -> list[Hit]:
        """The chunks of ranked rows, best first; equal scores in the order of their ids.

        Raises:
            StoreError: If one of the rows is not in this version.
        """
        if not ranked:
            return []
        # Half the time of a scan for these ids, which is the public way to read them.
        found = self.dataset._take_rows(list(ranked), columns=HIT_COLUMNS)
        if len(found) != len(ranked):
            missing = len(ranked) - len(found)
            raise StoreError(f"{missing} of {len(ranked)} ranked rows are not in this version.")
        rows = hits(found, np.array(list(ranked.values())))
        return sorted(rows, key=lambda hit: (-hit.score, hit.chunk_id))


def read_policy(dataset: Any) -> SearchPolicy:
    """The recorded policy of a table version; exact search where there is none."""
    text = dataset.config().get(POLICY_KEY)
    return SearchPolicy(**json.loads(text)) if text else SearchPolicy()


def _ranking(found: Any, scores: Sequence[float]) -> Ranking:
    return dict(zip(found["_rowid"].to_pylist(), np.asarray(scores).tolist(), strict=True))
