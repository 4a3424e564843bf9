"""Speed and fidelity of the embedder's backends, side by side.

    python benchmarks/embedding.py --chunks 1024 --rounds 5
    python benchmarks/embedding.py --settings torch/float32 openvino/int8 --output embedding.json

Texts: chunks of RAG_FTI_SHARED_DATA/peps, cut by the project's chunker as ingestion does. All
settings are loaded and warmed up first; every round then embeds all chunks once with each, in
turn. Speed is the median of the rounds, wall and CPU. Fidelity is the cosine with torch in
float32, and recall@10: of the ten chunks that float32 finds for a question, how many the setting
finds, with both questions (the first words of every fourth chunk) and chunks in its own vectors.
Settings whose packages are missing are named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rag_fti import ids
from rag_fti.config import load_settings
from rag_fti.config.models import EmbedderConfig
from rag_fti.errors import ConfigError
from rag_fti.features.chunking import build_chunker
from rag_fti.features.documents import document_of
from rag_fti.features.loading import Limits, LoadTask, load
from rag_fti.models.embedder import build_embedder
from rag_fti.protocols import Embedder, Vectors

DATA = Path(os.environ.get("RAG_FTI_SHARED_DATA", "../shared/data"))
REFERENCE = "torch/float32"
SETTINGS = (
    REFERENCE,
    "torch/bfloat16",
    "onnx/float32",
    "onnx/int8",
    "openvino/float32",
    "openvino/bfloat16",
    "openvino/int8",
)
DEPTH = 10


@dataclass
class Measured:
    """One backend and arithmetic."""

    embedder: Embedder
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    vectors: Vectors | None = None


def chunk_texts(embedder: Embedder, wanted: int) -> list[str]:
    """Indexed texts of the first PEPs' chunks.

    Raises:
        SystemExit: If there are no PEPs.
    """
    chunker = build_chunker(load_settings().chunking, embedder)
    texts: list[str] = []
    for path in sorted((DATA / "peps").glob("*.rst")):
        loaded = load(LoadTask(path.name, path=path), Limits())
        document = document_of(
            loaded, source=path.name, collection="peps", raw_digest=ids.digest_file(path)
        )
        texts += [chunker.indexed_text(document, chunk) for chunk in chunker.chunk(document)]
        if len(texts) >= wanted:
            return texts[:wanted]
    if not texts:
        raise SystemExit(f"No PEPs under {DATA}; set RAG_FTI_SHARED_DATA.")
    return texts


def load_all(names: Sequence[str], batch_size: int) -> tuple[dict[str, Measured], dict[str, str]]:
    """Embedders by setting, and why the others are left out."""
    ready: dict[str, Measured] = {}
    missing: dict[str, str] = {}
    for name in names:
        backend, _, dtype = name.partition("/")
        config = EmbedderConfig.model_validate(
            {"backend": backend, "dtype": dtype, "batch_size": batch_size}
        )
        embedder = build_embedder(config)
        try:
            embedder.encode_documents(["warm-up " * 100] * 4)
        except ConfigError as error:
            missing[name] = str(error)
        else:
            ready[name] = Measured(embedder)
    return ready, missing


def nearest(vectors: Vectors, questions: Vectors) -> npt.NDArray[np.intp]:
    """Row numbers of the ten nearest, shape ``(questions, 10)``."""
    return np.argsort(-(questions @ vectors.T), axis=1, kind="stable")[:, :DEPTH]


def figures(measured: dict[str, Measured], questions: Sequence[str]) -> list[dict[str, Any]]:
    """One row per setting."""
    reference = measured[REFERENCE]
    assert reference.vectors is not None
    right = nearest(reference.vectors, reference.embedder.encode_queries(questions))
    slowest = statistics.median(reference.wall)
    rows = []
    for name, one in measured.items():
        assert one.vectors is not None
        cosines = (one.vectors * reference.vectors).sum(axis=1)
        found = nearest(one.vectors, one.embedder.encode_queries(questions))
        shared = [len(set(a) & set(b)) for a, b in zip(right.tolist(), found.tolist(), strict=True)]
        wall, cpu = statistics.median(one.wall), statistics.median(one.cpu)
        rows.append(
            {
                "setting": name,
                "chunks_per_second": round(len(one.vectors) / wall, 1),
                "chunks_per_cpu_second": round(len(one.vectors) / cpu, 1),
                "times_float32": round(slowest / wall, 2),
                "cosine_mean": round(float(cosines.mean()), 5),
                "cosine_least": round(float(cosines.min()), 5),
                "recall_at_10": round(sum(shared) / (DEPTH * len(shared)), 4),
                "wall_seconds": [round(value, 3) for value in one.wall],
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0, help="0 is what suits the device")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--output", type=Path, help="also write all figures as JSON")
    options = parser.parse_args()
    names = list(dict.fromkeys([REFERENCE, *options.settings]))
    measured, missing = load_all(names, options.batch_size)
    texts = chunk_texts(measured[REFERENCE].embedder, options.chunks)
    questions = [" ".join(text.split()[:12]) for text in texts[::4]]
    for _ in range(options.rounds):
        for one in measured.values():
            wall, cpu = time.perf_counter(), time.process_time()
            one.vectors = one.embedder.encode_documents(texts)
            one.wall.append(time.perf_counter() - wall)
            one.cpu.append(time.process_time() - cpu)
    rows = figures(measured, questions)
    print(f"{len(texts)} chunks, {options.rounds} rounds, {len(questions)} questions")
    print(f"{'':18} {'chunks/s':>9} {'x fp32':>7} {'cos mean':>9} {'least':>8} {'recall@10':>10}")
    for row in rows:
        print(
            f"{row['setting']:18} {row['chunks_per_second']:9.1f} {row['times_float32']:7.2f} "
            f"{row['cosine_mean']:9.5f} {row['cosine_least']:8.5f} {row['recall_at_10']:10.4f}"
        )
    for name, reason in missing.items():
        print(f"{name:18} left out: {reason}")
    if options.output:
        result = {"chunks": len(texts), "rounds": options.rounds, "figures": rows}
        options.output.write_text(json.dumps({**result, "left_out": missing}, indent=2) + "\n")


if __name__ == "__main__":
    main()
