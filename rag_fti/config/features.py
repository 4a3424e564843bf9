"""Feature pipelines: loading, chunking, ingestion, indexes, validation, monitoring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rag_fti.config.section import Section


class LoadingConfig(Section):
    """How files become documents, and what is refused."""

    include: tuple[str, ...] = ()
    """Glob patterns of file names to take from directories; empty takes every known type."""
    exclude: tuple[str, ...] = (".*", "__pycache__", "node_modules")
    """Glob patterns of file or directory names to skip."""
    max_file_bytes: Annotated[int, Field(ge=1)] = 64 * 1024 * 1024
    """Largest file that is read, in bytes."""
    max_text_chars: Annotated[int, Field(ge=1)] = 50_000_000
    """Longest text a file may give, in characters."""
    max_pages: Annotated[int, Field(ge=1)] = 5000
    """Most pages of a paged document."""
    max_expansion: Annotated[float, Field(gt=1)] = 200.0
    """Largest ratio of unpacked to packed bytes of an archive or zip-based document."""
    parse_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest time one file may take to parse; its worker process is killed after that."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Parser processes; 0 is one per CPU core, at most 4."""
    allow_urls: bool = False
    """Whether ``http(s)`` sources may be fetched."""


class ChunkingConfig(Section):
    """How documents are cut."""

    max_tokens: Annotated[int, Field(ge=16, le=8192)] = 192
    """Longest chunk in tokens of the embedder; never above the embedder's own limit."""
    overlap_tokens: Annotated[int, Field(ge=0, le=2048)] = 0
    """Tokens shared by neighbouring chunks."""
    min_tokens: Annotated[int, Field(ge=0, le=1024)] = 24
    """Shorter pieces are joined with a neighbour of the same section where that fits."""


class IngestConfig(Section):
    """The ingestion pipeline."""

    collection: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "default"
    """Collection that documents go into; keys of the server are bound to collections."""
    prune: bool = False
    """Remove documents of the ingested paths that are gone."""
    batch_documents: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most documents per atomic commit."""
    batch_chunks: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """A commit is made once this many chunks are waiting; bounds memory."""
    engine: Literal["local", "ray"] = "local"
    """Where the batch functions run."""
    keep_versions_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 7.0
    """Days that old store versions stay readable; tagged ones stay for ever."""
    keep_answered_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 30.0
    """Days after an answer for which the version that it was made on stays readable, so that it can
    be replayed; 0 keeps none for that."""
    fail_on_quarantine: bool = True
    """Exit 1 when a file could not be read (the others are ingested all the same)."""


class IndexConfig(Section):
    """When and how vectors are indexed."""

    type: Literal["auto", "none", "ivf_flat", "ivf_rq", "ivf_pq", "hnsw_sq"] = "auto"
    """``auto`` searches exactly below ``exact_below`` rows and picks the IVF variant above."""
    exact_below: Annotated[int, Field(ge=0)] = 20_000
    """Rows up to which search is exact."""
    target_recall: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Recall@10 against exact search that ``nprobes`` and refine factor are chosen for."""
    full_text_stemming: bool = True
    """Stem words in the full-text index (English)."""
    language: str = "English"
    """Language of stemming and stop words."""


class FeatureValidationConfig(Section):
    """Limits of the feature validation pipeline."""

    sample_rows: Annotated[int, Field(ge=1)] = 2000
    """Chunks that are looked at closely."""
    max_duplicate_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Largest share of chunks whose text occurs more than once."""
    min_recall: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Least recall@10 of the index against exact search."""
    max_age_hours: Annotated[float, Field(gt=0)] = 24.0 * 365
    """Oldest that the newest document may be."""


class FeatureMonitoringConfig(Section):
    """The feature monitoring pipeline."""

    reference: str = "validated"
    """Tag or version that the current store is compared with. Until there is a ``validated`` one,
    the oldest stands in for it."""
    sample_rows: Annotated[int, Field(ge=1)] = 2000
    """Chunks drawn from each side."""
    max_drift: Annotated[float, Field(ge=0)] = 0.2
    """Population stability index from which drift is reported (0.2 is the usual alarm)."""
