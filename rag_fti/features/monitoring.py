"""What changed in the feature store since a reference: counts, freshness, drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rag_fti.feature_store import FeatureStore

_BINS = 10
_COMPONENTS = 8
_MMD_ROWS = 500
_PERMUTATIONS = 100

Array = npt.NDArray[np.float64]


@dataclass
class FeatureMetrics:
    """Measurements of the current state against a reference."""

    snapshot: str
    reference: str
    documents: int = 0
    chunks: int = 0
    documents_by_collection: dict[str, int] = field(default_factory=dict)
    reference_documents: int = 0
    reference_chunks: int = 0
    freshness_seconds: float = 0.0
    """Time since the newest document came in."""
    embedding_psi: float = 0.0
    """Population stability index, mean over the reference's first principal components."""
    embedding_mmd: float = 0.0
    """Squared maximum mean discrepancy, RBF kernel with median width (Gretton et al. 2012)."""
    embedding_mmd_p_value: float = 1.0
    """Share of random splits of both samples together with at least this discrepancy."""
    length_psi: float = 0.0
    """Population stability index of chunk lengths in tokens."""
    language_psi: float = 0.0
    languages: dict[str, int] = field(default_factory=dict)
    tokens_mean: float = 0.0
    tokens_p95: float = 0.0
    requests: int = 0
    """Logged answers."""
    abstention_rate: float = 0.0
    answer_seconds_p95: float = 0.0
    feedback_mean: float = 0.0
    """Mean of logged ratings, in [-1, 1]."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """Vectors and lengths drawn from both states, for the picture."""

    current_vectors: Array
    reference_vectors: Array
    current_tokens: Array
    reference_tokens: Array


def measure(
    store: FeatureStore, *, reference: str, sample_rows: int
) -> tuple[FeatureMetrics, Samples]:
    """Compare the newest state with a reference.

    Args:
        store: The feature store.
        reference: Tag or snapshot id.
        sample_rows: Chunks drawn from each side.

    Raises:
        StoreError: If the store cannot be read or holds nothing.
    """
    snapshot = store.snapshot()
    metrics = FeatureMetrics(snapshot=snapshot, reference=store.resolve(reference))
    now = store.documents(at=snapshot, columns=["collection", "language", "ingested_at"])
    then = store.documents(at=metrics.reference, columns=["language"])
    metrics.documents, metrics.reference_documents = now.num_rows, then.num_rows
    metrics.documents_by_collection = dict(Counter(now["collection"].to_pylist()))
    metrics.languages = dict(Counter(name or "unknown" for name in now["language"].to_pylist()))
    metrics.language_psi = round(
        categorical_psi(
            Counter(then["language"].to_pylist()), Counter(now["language"].to_pylist())
        ),
        4,
    )
    newest = pc.max(now["ingested_at"]).as_py()
    if newest is not None:
        metrics.freshness_seconds = round((datetime.now(UTC) - newest).total_seconds(), 1)
    metrics.chunks = store.count_chunks(at=snapshot)
    metrics.reference_chunks = store.count_chunks(at=metrics.reference)
    samples = _draw(store, snapshot, metrics.reference, sample_rows)
    if len(samples.current_vectors) and len(samples.reference_vectors):
        _measure_drift(metrics, samples)
    _measure_answers(store, metrics)
    return metrics, samples


def _draw(store: FeatureStore, snapshot: str, reference: str, rows: int) -> Samples:
    # Different seeds: with the same rows on both sides, equal states would look too equal.
    current = store.sample_chunks(rows, seed=1, at=snapshot, columns=["vector", "tokens"])
    before = store.sample_chunks(rows, seed=2, at=reference, columns=["vector", "tokens"])
    return Samples(_vectors(current), _vectors(before), _tokens(current), _tokens(before))


def _vectors(table: pa.Table) -> Array:
    rows = np.asarray(table["vector"].to_pylist(), dtype=np.float64)
    return rows.reshape(table.num_rows, table.schema.field("vector").type.list_size)


def _tokens(table: pa.Table) -> Array:
    return np.asarray(table["tokens"].to_pylist(), dtype=np.float64)


def _measure_drift(metrics: FeatureMetrics, samples: Samples) -> None:
    metrics.embedding_psi = round(
        embedding_psi(samples.reference_vectors, samples.current_vectors), 4
    )
    mmd, p_value = mean_discrepancy(samples.reference_vectors, samples.current_vectors)
    metrics.embedding_mmd, metrics.embedding_mmd_p_value = round(mmd, 6), round(p_value, 4)
    metrics.length_psi = round(psi(samples.reference_tokens, samples.current_tokens), 4)
    metrics.tokens_mean = round(float(samples.current_tokens.mean()), 2)
    metrics.tokens_p95 = round(float(np.percentile(samples.current_tokens, 95)), 2)


def _measure_answers(store: FeatureStore, metrics: FeatureMetrics) -> None:
    log = store.rows(
        "inference_log", columns=["abstained", "retrieval_seconds", "generation_seconds"]
    )
    metrics.requests = log.num_rows
    if log.num_rows:
        metrics.abstention_rate = round(pc.mean(pc.cast(log["abstained"], pa.float64())).as_py(), 4)
        seconds = pc.add(log["retrieval_seconds"], log["generation_seconds"])
        metrics.answer_seconds_p95 = round(pc.quantile(seconds, 0.95)[0].as_py(), 4)
    feedback = store.rows("feedback", columns=["rating"])
    if feedback.num_rows:
        metrics.feedback_mean = round(pc.mean(feedback["rating"]).as_py(), 4)


def psi(reference: Array, current: Array, *, bins: int = _BINS) -> float:
    """Population stability index of one variable.

    ``sum((q - p) * ln(q / p))`` over bins with equal shares of the reference; empty bins count
    as half an observation.

    Args:
        reference: Values, shape ``(n,)``.
        current: Values, shape ``(m,)``.
        bins: Quantile bins.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    size = len(edges) + 1
    p = np.bincount(np.searchsorted(edges, reference, side="right"), minlength=size)
    q = np.bincount(np.searchsorted(edges, current, side="right"), minlength=size)
    return _psi(p.astype(np.float64), q.astype(np.float64))


def categorical_psi(reference: Mapping[Any, int], current: Mapping[Any, int]) -> float:
    """Population stability index of counts by category."""
    names = sorted({str(n) for n in reference} | {str(n) for n in current})
    if not names or not reference or not current:
        return 0.0
    p = np.asarray([reference.get(name, 0) for name in names], dtype=np.float64)
    q = np.asarray([current.get(name, 0) for name in names], dtype=np.float64)
    return _psi(p, q)


def _psi(p: Array, q: Array) -> float:
    shares_p = np.maximum(p, 0.5) / np.maximum(p, 0.5).sum()
    shares_q = np.maximum(q, 0.5) / np.maximum(q, 0.5).sum()
    return float(((shares_q - shares_p) * np.log(shares_q / shares_p)).sum())


def embedding_psi(reference: Array, current: Array) -> float:
    """Mean population stability index along the reference's first principal components.

    Args:
        reference: Vectors, shape ``(n, dimension)``.
        current: Vectors, shape ``(m, dimension)``.
    """
    centre = reference.mean(axis=0)
    _, _, axes = np.linalg.svd(reference - centre, full_matrices=False)
    axes = axes[:_COMPONENTS]
    left, right = (reference - centre) @ axes.T, (current - centre) @ axes.T
    return float(np.mean([psi(left[:, n], right[:, n]) for n in range(left.shape[1])]))


def mean_discrepancy(reference: Array, current: Array, *, seed: int = 17) -> tuple[float, float]:
    """Squared maximum mean discrepancy and its p-value under random splits.

    Args:
        reference: Vectors, shape ``(n, dimension)``; at most 500 are used.
        current: Vectors, shape ``(m, dimension)``; at most 500 are used.
        seed: Seed of the splits.
    """
    left, right = reference[:_MMD_ROWS], current[:_MMD_ROWS]
    both = np.concatenate([left, right])
    squares = (both**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * both @ both.T, 0.0)
    width = np.median(distances[distances > 0]) if (distances > 0).any() else 1.0
    kernel = np.exp(-distances / width)
    np.fill_diagonal(kernel, 0.0)
    n, m = len(left), len(right)
    if n < 2 or m < 2:
        return 0.0, 1.0

    def statistic(order: npt.NDArray[np.int64]) -> float:
        a, b = order[:n], order[n:]
        within = kernel[np.ix_(a, a)].sum() / (n * (n - 1)) + kernel[np.ix_(b, b)].sum() / (
            m * (m - 1)
        )
        return float(within - 2 * kernel[np.ix_(a, b)].mean())

    observed = statistic(np.arange(n + m))
    generator = np.random.default_rng(seed)
    splits = [statistic(generator.permutation(n + m)) for _ in range(_PERMUTATIONS)]
    return observed, (1 + sum(s >= observed for s in splits)) / (1 + _PERMUTATIONS)


def prometheus_text(metrics: FeatureMetrics) -> str:
    """The metrics in Prometheus's text format, for a node exporter's textfile collector."""
    lines = []
    for name, value in metrics.to_dict().items():
        full = f"rag_fti_features_{name}"
        if isinstance(value, int | float):
            lines += [f"# TYPE {full} gauge", f"{full} {value}"]
        elif isinstance(value, dict):
            label = "language" if name == "languages" else "collection"
            lines.append(f"# TYPE {full} gauge")
            lines += [
                f'{full}{{{label}="{_escaped(key)}"}} {count}'
                for key, count in sorted(value.items())
            ]
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    """A label value as the text format wants it: one wrong line spoils the whole file."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def draw(metrics: FeatureMetrics, samples: Samples, path: Path) -> None:
    """A picture of both states: embeddings on two principal components, lengths, languages.

    Args:
        metrics: For the captions.
        samples: What is drawn.
        path: Where the PNG file goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    reference, current = samples.reference_vectors, samples.current_vectors
    if len(reference) and len(current):
        centre = reference.mean(axis=0)
        _, _, axes = np.linalg.svd(reference - centre, full_matrices=False)
        for vectors, name in ((reference, "reference"), (current, "now")):
            points = (vectors - centre) @ axes[:2].T
            left.scatter(points[:, 0], points[:, -1], s=4, alpha=0.4, label=name)
        left.legend()
        bins = np.histogram_bin_edges(
            np.concatenate([samples.reference_tokens, samples.current_tokens]), bins=20
        )
        for tokens, name in (
            (samples.reference_tokens, "reference"),
            (samples.current_tokens, "now"),
        ):
            middle.hist(tokens, bins=bins, alpha=0.5, density=True, label=name)
        middle.legend()
    left.set_title(
        f"Embeddings: PSI {metrics.embedding_psi:.3f}, MMD² p {metrics.embedding_mmd_p_value:.2f}"
    )
    middle.set_title(f"Chunk lengths in tokens: PSI {metrics.length_psi:.3f}")
    names = list(metrics.languages)
    right.bar(names, [metrics.languages[name] for name in names])
    right.set_title(f"Documents by language: PSI {metrics.language_psi:.3f}")
    figure.suptitle(
        f"{metrics.documents} documents, {metrics.chunks} chunks in {metrics.snapshot}, "
        f"compared with {metrics.reference}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
