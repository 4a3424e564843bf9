"""Feature validation: judges the newest snapshot and moves the ``validated`` tag to it.

Run: ``python -m pipelines.feature_validation``. Runs beside ingestion on its own cadence; a
server that follows the tag (``inference.follow=validated``) only ever reads what was judged good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_fti.contracts import (
    Check,
    Contract,
    ContractRun,
    Facts,
    Outcome,
    at_least,
    equals,
    is_true,
    new_run_id,
)
from rag_fti.files import write_json_atomic
from rag_fti.progress import Progress, Silent

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.feature_store import FeatureStore
    from rag_fti.protocols import Embedder

VALIDATED = "validated"


def _limit(fact: str, limit: str, *, least: bool = False) -> Callable[[Facts], Outcome]:
    """A measure against a limit that the configuration sets."""

    def measure(facts: Facts) -> Outcome:
        value, bound = facts[fact], facts[limit]
        ok = value >= bound if least else value <= bound
        return Outcome(ok, value, f"{'>=' if least else '<='} {bound}")

    return measure


CONTRACT = Contract(
    pipeline="feature_validation",
    purpose="Judges the newest snapshot of the feature store and tags it as validated.",
    inputs={"features": "the feature store's newest snapshot", "embedder": "the store's own"},
    outputs={
        "tag": f"{VALIDATED} on the snapshot",
        "report": "<root>/reports/feature_validation/<run id>/facts.json",
    },
    preconditions=(
        Check(
            "documents",
            "the store holds documents",
            is_true("has_documents"),
            next_step="Fill it: rag-fti ingest PATH.",
        ),
        Check("same embedder", "the embedder is the store's", equals("embedder_mismatch", "")),
    ),
    postconditions=(
        Check("schema", "all columns are there with their types", equals("wrong_columns", [])),
        Check("no nulls", "required columns hold no nulls", equals("nulls", 0)),
        Check("vectors", "vectors are finite and of unit length", equals("bad_vectors", 0)),
        Check(
            "reproducible vectors",
            "the embedder gives the stored vectors again (cosine)",
            at_least("least_reembedding_similarity", 0.98),
        ),
        Check("coverage", "chunks cover 100 % of their texts", equals("uncovered_characters", 0)),
        Check(
            "complete documents",
            "every document's row and chunks belong together",
            equals("incomplete_documents", 0),
            next_step="Run the interrupted ingest again.",
        ),
        Check(
            "unique documents",
            "every document id has one row",
            equals("repeated_document_rows", 0),
        ),
        Check("unique chunks", "every chunk id has one row", equals("repeated_chunk_rows", 0)),
        Check(
            "duplicates",
            "few chunks repeat the text of another",
            _limit("duplicate_rate", "max_duplicate_rate"),
            next_step="See near_duplicates in the report, or raise max_duplicate_rate.",
        ),
        Check(
            "recall",
            "vector search finds what exact search finds (recall@10)",
            _limit("recall", "min_recall", least=True),
            next_step="Run ingest again to rebuild the index, or set index.type=none.",
        ),
        Check("full text", "chunks are found by their words", equals("unfindable_chunks", 0)),
    ),
    service_levels=(
        Check(
            "freshness",
            "the newest document is not older than agreed (hours)",
            _limit("age_hours", "max_age_hours"),
        ),
    ),
    when_broken=f"The tag {VALIDATED} stays where it was.",
)


@dataclass(frozen=True)
class Summary:
    """Result of a validation."""

    run_id: str
    snapshot: str
    validated: bool
    facts: dict[str, Any]
    seconds: float
    contract: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "validated": self.validated,
            "facts": self.facts,
            "seconds": self.seconds,
            "contract": self.contract,
        }


def run(
    settings: Settings,
    *,
    store: FeatureStore | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Summary:
    """Validate the newest snapshot.

    Args:
        settings: The limits are in ``feature_validation``.
        store: Feature store to use in place of the configured one.
        embedder: Embedder to use in place of the configured one.
        progress: Is told how far it is.
        dry_run: Judge, but leave the tag where it is and write no report.

    Raises:
        ContractViolation: If the snapshot does not pass; the tag stays where it was.
        StoreError: If the store cannot be read.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.validation import measure
    from rag_fti.models.embedder import build_embedder

    progress = progress or Silent()
    run_id = new_run_id("feature_validation")
    reports = settings.storage.reports / "feature_validation"
    report_path = None if dry_run else reports / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    store = store or FeatureStore.open(
        settings.storage.features_uri, options=settings.storage.options
    )
    embedder = embedder or build_embedder(settings.embedder)
    contract.require(
        {
            "has_documents": store.exists(),
            "embedder_mismatch": store.embedder_mismatch(embedder.fingerprint),
        }
    )
    stages = 0

    def advance(stage: str) -> None:
        nonlocal stages
        progress.update("validating", stages, 6, detail=stage)
        stages += 1

    limits = settings.feature_validation
    facts = measure(
        store, embedder=embedder, sample_rows=limits.sample_rows, advance=advance
    ).to_dict()
    progress.update("validating", 6, 6)
    if not dry_run:
        write_json_atomic(reports / run_id / "facts.json", facts)
    bounds = {
        "max_duplicate_rate": limits.max_duplicate_rate,
        "min_recall": limits.min_recall,
        "max_age_hours": limits.max_age_hours,
    }
    contract.ensure({**facts, **bounds})
    if not dry_run:
        store.tag(VALIDATED, facts["snapshot"])
    report = contract.finish({**facts, **bounds})
    return Summary(
        run_id=run_id,
        snapshot=facts["snapshot"],
        validated=not dry_run,
        facts=facts,
        seconds=report.seconds,
        contract=report.summary(report_path),
    )


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["validate", *sys.argv[1:]])
