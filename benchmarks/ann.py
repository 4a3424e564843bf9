"""Approximate vector search: recall, latency, build time and bytes, against exact search.

    python benchmarks/ann.py --rows 100000
    python benchmarks/ann.py --rows 1000000 --kinds ivf_flat ivf_rq --hnswlib

Vectors are drawn from the distribution of real embeddings: each is a stored chunk's vector of a
feature store (``--store``) moved by noise along the principal axes of those vectors, with
their variances, so that clusters and intrinsic dimension are those of text. Queries are drawn the
same way and are not among the rows. Every index goes through the project's own policy
(``FeatureStore.update_vector_index``), which tunes nprobes and refine factor to the target.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_fti import schemas
from rag_fti.errors import StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.protocols import EmbedderFingerprint

Array = npt.NDArray[np.float32]
_NOISE = 0.6
_BATCH = 50_000


def real_vectors(store: Path) -> Array:
    """Vectors of an ingested corpus."""
    table = FeatureStore.open(str(store)).chunks(columns=["vector"])
    return np.asarray(table["vector"].to_pylist(), dtype=np.float32)


def drawn(seeds: Array, count: int, *, seed: int) -> Iterator[Array]:
    """Vectors like ``seeds``, in batches of shape ``(n, dimension)``, of unit length."""
    centre = seeds.mean(axis=0)
    _, scales, axes = np.linalg.svd(seeds - centre, full_matrices=False)
    spread = (scales / np.sqrt(len(seeds)))[:, None] * axes
    generator = np.random.default_rng(seed)
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        picked = seeds[generator.integers(len(seeds), size=size)]
        noise = generator.normal(size=(size, len(spread))).astype(np.float32) @ spread
        moved = picked + _NOISE * noise.astype(np.float32)
        yield (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def rows_of(vectors: Array, start: int) -> pa.Table:
    """Chunk rows that hold nothing but vectors."""
    count, dimension = vectors.shape
    names = [f"{start + n:032d}" for n in range(count)]
    empty, zero = [""] * count, [0] * count
    columns: dict[str, Any] = dict.fromkeys(schemas.chunks_schema(dimension).names, empty)
    columns |= {
        "chunk_id": names,
        "document_id": names,
        "indexed_digest": names,
        "page": [None] * count,
        **dict.fromkeys(("ordinal", "start", "end", "tokens"), zero),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension),
        "ingested_at": pa.array(zero, pa.timestamp("us", tz="UTC")),
    }
    return pa.table(columns, schema=schemas.chunks_schema(dimension))


def filled(uri: Path, seeds: Array, rows: int) -> FeatureStore:
    """A store of drawn vectors."""
    dimension = seeds.shape[1]
    fingerprint = EmbedderFingerprint("drawn", "0" * 64, dimension, 256, True, "", "")
    store = FeatureStore.open(str(uri))
    store.prepare(fingerprint, language="English", stemming=True)
    nothing = schemas.documents_schema().empty_table()
    start = 0
    for batch in drawn(seeds, rows, seed=1):
        store.write_documents(nothing, rows_of(batch, start))
        start += len(batch)
    return store


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def searched(store: FeatureStore, queries: Array) -> tuple[list[set[str]], list[float]]:
    """First ten ids and milliseconds of each query."""
    found, times = [], []
    for query in queries:
        started = time.perf_counter()
        hits = store.search_vectors(query, k=10)
        times.append(1000 * (time.perf_counter() - started))
        found.append({hit.chunk_id for hit in hits})
    return found, times


def report(name: str, figures: dict[str, Any]) -> None:
    """Print one line."""
    print(f"{name:10s} " + "  ".join(f"{k} {v}" for k, v in figures.items()), flush=True)


def figures_of(found: list[set[str]], truth: list[set[str]], times: list[float]) -> dict[str, Any]:
    """Recall and latency."""
    recall = sum(len(f & t) for f, t in zip(found, truth, strict=True)) / (10 * len(truth))
    return {
        "recall@10": round(recall, 4),
        "p50_ms": round(float(np.percentile(times, 50)), 2),
        "p95_ms": round(float(np.percentile(times, 95)), 2),
    }


def with_hnswlib(seeds: Array, rows: int, queries: Array, truth: list[set[str]]) -> dict[str, Any]:
    """The same with hnswlib (M 16, ef_construction 200, ef raised until recall is 0.95)."""
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=seeds.shape[1])
    index.init_index(max_elements=rows, M=16, ef_construction=200)
    started, start = time.monotonic(), 0
    for batch in drawn(seeds, rows, seed=1):
        index.add_items(batch, np.arange(start, start + len(batch)))
        start += len(batch)
    built = time.monotonic() - started
    result: dict[str, Any] = {}
    for ef in (32, 64, 128, 256, 512):
        index.set_ef(ef)
        found, times = [], []
        for query in queries:
            begun = time.perf_counter()
            labels, _ = index.knn_query(query, k=10)
            times.append(1000 * (time.perf_counter() - begun))
            found.append({f"{int(label):032d}" for label in labels[0]})
        result = {**figures_of(found, truth, times), "build_s": round(built, 1), "ef": ef}
        if result["recall@10"] >= 0.95:
            break
    return result


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("data/features"))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=["ivf_flat", "ivf_rq", "ivf_pq", "hnsw_sq"])
    parser.add_argument("--hnswlib", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/ann"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    seeds = real_vectors(arguments.store)
    started = time.monotonic()
    store = filled(arguments.work, seeds, arguments.rows)
    print(
        f"{arguments.rows} rows from {len(seeds)} embeddings in {time.monotonic() - started:.0f} s"
    )
    queries = next(drawn(seeds, arguments.queries, seed=2))
    truth, times = searched(store, queries)
    size = folder_bytes(arguments.work)
    results = {"exact": {**figures_of(truth, truth, times), "MB": round(size / 1e6, 1)}}
    report("exact", results["exact"])
    for kind in arguments.kinds:
        started = time.monotonic()
        try:
            policy = store.update_vector_index(kind=kind, exact_below=0, target_recall=0.95)
        except StoreError as error:
            print(f"{kind:10s} {error}", flush=True)
            continue
        built = time.monotonic() - started
        found, times = searched(store, queries)
        results[kind] = {
            **figures_of(found, truth, times),
            "build_and_tune_s": round(built, 1),
            "nprobes": policy.nprobes,
            "refine": policy.refine_factor,
            "MB": round((folder_bytes(arguments.work) - size) / 1e6, 1),
        }
        report(kind, results[kind])
        size = folder_bytes(arguments.work)
    if arguments.hnswlib:
        results["hnswlib"] = with_hnswlib(seeds, arguments.rows, queries, truth)
        report("hnswlib", results["hnswlib"])
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
