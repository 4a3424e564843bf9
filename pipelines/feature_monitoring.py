"""Feature monitoring: counts, freshness and drift against a reference, as JSON, text and picture.

Run: ``python -m pipelines.feature_monitoring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti.contracts import Check, Contract, ContractRun, Facts, Outcome, is_true, new_run_id
from rag_fti.files import write_bytes_atomic, write_json_atomic
from rag_fti.progress import Progress, Silent

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.feature_store import FeatureStore

_VALIDATED = "validated"
"""The tag of feature validation; until there is one, the oldest state stands in for it."""


def _no_drift(facts: Facts) -> Outcome:
    value = {name: facts[name] for name in ("embedding_psi", "length_psi", "language_psi")}
    return Outcome(max(value.values()) <= facts["max_drift"], value, f"<= {facts['max_drift']}")


CONTRACT = Contract(
    pipeline="feature_monitoring",
    purpose="Shows how the feature store changes: rows, freshness, drift, languages, lengths.",
    inputs={
        "features": "the feature store's newest snapshot",
        "reference": "a tag or snapshot; the oldest readable state until one is validated",
    },
    outputs={
        "metrics.json": "all measurements",
        "metrics.prom": "the same in Prometheus's text format",
        "drift.png": "embeddings, lengths and languages, now and then",
    },
    preconditions=(
        Check(
            "documents",
            "the store holds documents",
            is_true("has_documents"),
            next_step="Fill it: rag-fti ingest PATH.",
        ),
    ),
    postconditions=(Check("written", "metrics and picture are there", is_true("written")),),
    service_levels=(
        Check(
            "no drift",
            "population stability indices stay below the alarm level",
            _no_drift,
            next_step="Look at drift.png; if the change is meant, validate and move the tag.",
        ),
    ),
)


def _written(files: Mapping[str, str]) -> bool:
    return all(Path(path).is_file() and Path(path).stat().st_size for path in files.values())


@dataclass(frozen=True)
class Summary:
    """Result of a monitoring run."""

    run_id: str
    metrics: dict[str, Any]
    drift: bool
    files: dict[str, str]
    seconds: float
    contract: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "run_id": self.run_id,
            "metrics": self.metrics,
            "drift": self.drift,
            "files": self.files,
            "seconds": self.seconds,
            "contract": self.contract,
        }


def run(
    settings: Settings,
    *,
    store: FeatureStore | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Summary:
    """Measure the feature store.

    Args:
        settings: ``feature_monitoring`` says what it is compared with.
        store: Feature store to use in place of the configured one.
        progress: Is told how far it is.
        dry_run: Measure, but write no metrics, picture or report.

    Raises:
        ContractViolation: If a promise does not hold.
        SnapshotNotFound: If there is no such reference.
        StoreError: If the store cannot be read.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.monitoring import draw, measure, prometheus_text

    progress = progress or Silent()
    run_id = new_run_id("feature_monitoring")
    reports = settings.storage.reports / "feature_monitoring"
    report_path = None if dry_run else reports / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    store = store or FeatureStore.open(
        settings.storage.features_uri, options=settings.storage.options
    )
    contract.require({"has_documents": store.exists()})
    options = settings.feature_monitoring
    reference = options.reference
    if reference == _VALIDATED and reference not in store.tags():
        reference = store.oldest_snapshot()
        progress.note(f"Nothing is validated yet: comparing with the oldest state, {reference}.")
    progress.update("measuring", 0, 2)
    metrics, samples = measure(store, reference=reference, sample_rows=options.sample_rows)
    progress.update("measuring", 1, 2)
    files: dict[str, str] = {}
    if not dry_run:
        folder = reports / run_id
        write_json_atomic(folder / "metrics.json", metrics.to_dict())
        write_bytes_atomic(folder / "metrics.prom", prometheus_text(metrics).encode("utf-8"))
        draw(metrics, samples, folder / "drift.png")
        files = {name: str(folder / name) for name in ("metrics.json", "metrics.prom", "drift.png")}
    progress.update("measuring", 2, 2)
    facts = {**metrics.to_dict(), "max_drift": options.max_drift, "written": _written(files)}
    contract.ensure(facts)
    report = contract.finish(facts)
    return Summary(
        run_id=run_id,
        metrics=metrics.to_dict(),
        drift=not _no_drift(facts).ok,
        files=files,
        seconds=report.seconds,
        contract=report.summary(report_path),
    )


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["monitor", *sys.argv[1:]])
