"""A feature store of any size from real texts, for measuring search and serving.

Texts are windows of 600 characters over PEPs, documentation and abstracts of
``RAG_FTI_SHARED_DATA``; where there is less text than chunks, windows overlap. A sample of them is
embedded with the real embedder; the other chunks get vectors drawn around that sample, each between
one of its vectors and a near one, moved by noise: neighbourhoods are then as crowded as real ones,
and a text's vector says little about the text. So such a store is good for costs, not for quality.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_fti import ids, schemas

DATA = Path(os.environ.get("RAG_FTI_SHARED_DATA", "../shared/data"))
WINDOW = 600
PER_DOCUMENT = 50
PER_COMMIT = 20_000
NEAR = 8
NOISE = 0.35
"""Length of the noise; stored vectors have length 1."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoreFacts:
    """What a store is made of."""

    chunks: int
    embedded: int
    """Vectors that the embedder made; the rest is drawn around them."""
    characters: int
    stride: int
    """Characters from one window to the next; below ``WINDOW`` they overlap."""


def build(store: Any, embedder: Any, *, chunks: int, embedded: int, index: Any) -> StoreFacts:
    """Fill an empty store.

    Args:
        store: A :class:`rag_fti.feature_store.FeatureStore`.
        embedder: The real embedder.
        chunks: How many chunks.
        embedded: How many of them the embedder is asked about.
        index: The section ``index`` of the settings.
    """
    text = "\n\n".join(corpus())
    stride = max(1, min(WINDOW, (len(text) - WINDOW) // chunks))
    windows = [text[at : at + WINDOW] for at in range(0, chunks * stride, stride)]
    random = np.random.default_rng(1)
    picks = random.choice(chunks, size=min(embedded, chunks), replace=False)
    known = embedder.encode_documents([windows[pick] for pick in picks])
    vectors = around(known, chunks, random)
    vectors[picks] = known
    store.prepare(embedder.fingerprint, language="English", stemming=True)
    for first in range(0, chunks, PER_COMMIT):
        last = min(chunks, first + PER_COMMIT)
        store.write_documents(*rows(windows, vectors, first, last))
    store.optimize()
    store.update_vector_index(
        kind=index.type, exact_below=index.exact_below, target_recall=index.target_recall
    )
    return StoreFacts(chunks, len(picks), len(text), stride)


def around(known: Floats, count: int, random: np.random.Generator) -> Floats:
    """Unit vectors like ``known``: between each and one of its nearest, plus noise.

    Args:
        known: float32 ``(n, dimension)``, unit length.
        count: How many to draw.
        random: Source of randomness.

    Returns:
        float32 ``(count, dimension)``.
    """
    similar = known @ known.T
    nearest = np.argsort(-similar, axis=1)[:, 1 : NEAR + 1]
    one = random.integers(len(known), size=count)
    other = nearest[one, random.integers(nearest.shape[1], size=count)]
    share = random.random((count, 1), dtype=np.float32)
    drawn = known[one] * share + known[other] * (1 - share)
    noise = random.standard_normal(drawn.shape, dtype=np.float32)
    drawn += NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)


def rows(
    windows: Sequence[str], vectors: Floats, first: int, last: int
) -> tuple[pa.Table, pa.Table]:
    """The rows of ``documents`` and ``chunks`` for a range of chunks."""
    now = datetime.now(UTC)
    documents, chunks = [], []
    for number in range(first, last):
        name, ordinal = divmod(number, PER_DOCUMENT)
        document, source = ids.document_id("default", f"{name}.md"), f"{name}.md"
        text = windows[number]
        chunks.append(
            {
                "chunk_id": ids.content_id("c", str(number)),
                "document_id": document,
                "document_version": "1",
                "collection": "default",
                "source": source,
                "title": f"Page {name}",
                "heading": "",
                "page": None,
                "ordinal": ordinal,
                "start": ordinal * WINDOW,
                "end": ordinal * WINDOW + len(text),
                "tokens": WINDOW // 4,
                "text": text,
                "indexed_text": text,
                "indexed_digest": str(number),
                "vector": vectors[number],
                "ingested_at": now,
            }
        )
        if ordinal == 0:
            documents.append(
                {
                    **{field.name: "" for field in schemas.documents_schema()},
                    "sketch": None,
                    "document_id": document,
                    "collection": "default",
                    "source": source,
                    "sources": [source],
                    "version": "1",
                    "chunk_count": PER_DOCUMENT,
                    "ingested_at": now,
                }
            )
    return (
        pa.Table.from_pylist(documents, schema=schemas.documents_schema()),
        pa.Table.from_pylist(chunks, schema=schemas.chunks_schema(vectors.shape[1])),
    )


def opened(folder: Path, embedder: Any, *, chunks: int, embedded: int, index: Any) -> Any:
    """The store in a folder, built there unless it is there already, and its facts."""
    from rag_fti.feature_store import FeatureStore

    facts = folder / "facts.json"
    store = FeatureStore.open(str(folder / "features"))
    if facts.is_file():
        return store, StoreFacts(**json.loads(facts.read_text(encoding="utf-8")))
    made = build(store, embedder, chunks=chunks, embedded=embedded, index=index)
    facts.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return store, made


def corpus() -> Iterator[str]:
    """Real texts, always in the same order."""
    for pattern in ("peps/*.rst", "texts/**/*.md"):
        for path in sorted(DATA.glob(pattern)):
            yield path.read_text(encoding="utf-8", errors="replace")
    for name in ("scifact", "cranfield"):
        for line in (DATA / name / "corpus.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            yield f"{row.get('title', '')}\n{row['text']}"


def questions() -> list[str]:
    """Real questions about such texts, every one once."""
    found = []
    for name in ("scifact", "cranfield"):
        for line in (DATA / name / "queries.jsonl").open(encoding="utf-8"):
            found.append(str(json.loads(line)["text"]))
    return list(dict.fromkeys(found))
