"""Rows of tables as the values that the store hands out."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_fti.schemas import Hit

HIT_COLUMNS = [
    "chunk_id", "document_id", "document_version", "source", "title", "heading", "page",
    "start", "end", "text", "ordinal",
]  # fmt: skip
_LOOKUP_BATCH = 1000


def lookup_batches(values: Sequence[str]) -> list[list[str]]:
    """Values in parts that fit one SQL filter."""
    return [list(values[i : i + _LOOKUP_BATCH]) for i in range(0, len(values), _LOOKUP_BATCH)]


def matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of vectors, shape ``(rows, dimension)``."""
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks)
    values = combined.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(len(column), combined.type.list_size)


def pages_of(hit: Hit, starts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The pages that a hit has a part of, given where the pages of its document start."""
    first = max(1, bisect.bisect_right(starts, hit.start))
    return tuple((starts[n - 1], n) for n in range(first, bisect.bisect_left(starts, hit.end) + 1))


def hits(table: pa.Table | pa.RecordBatch, scores: npt.NDArray[Any]) -> list[Hit]:
    """Rows of chunks as hits, with a score for each."""
    columns = table.select(HIT_COLUMNS).to_pylist()
    return [Hit(**row, score=float(score)) for row, score in zip(columns, scores, strict=True)]
