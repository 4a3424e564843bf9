"""Feature pipeline: documents in, chunks with vectors out. Run: ``python -m pipelines.ingest``."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti.contracts import Check, Contract, ContractRun, at_most, equals, is_true, new_run_id
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import documents_schema, field_table

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.ingestion import Ingestor
    from rag_fti.features.totals import IngestTotals
    from rag_fti.protocols import Embedder

_ROUNDS_PER_OPTIMIZE = 50
_MOST_SKIPPED = 100

CONTRACT = Contract(
    pipeline="ingest",
    purpose="Brings every document in, once, exactly.",
    inputs={
        "sources": "files, directories, glob patterns, archives, stdin, and URLs where allowed",
        "embedder": "any sentence-transformers model; the one that filled the store",
    },
    outputs={
        "documents": field_table(documents_schema()),
        "chunks": "one row per span of a document, with its vector (see docs/ingestion.md)",
    },
    preconditions=(
        Check("paths given", "there is something to ingest", is_true("paths_given")),
        Check(
            "same embedder",
            "the store was filled by the embedder in use, or is new",
            equals("embedder_mismatch", ""),
            next_step="Use the store's embedder, or a new storage root.",
        ),
    ),
    invariants=(
        Check(
            "full coverage", "chunks cover 100 % of every text", equals("uncovered_characters", 0)
        ),
        Check("exact spans", "text[start:end] is the chunk's text", equals("wrong_spans", 0)),
        Check("unique chunk ids", "no two chunks share an id", equals("duplicate_chunk_ids", 0)),
        Check("usable vectors", "every vector is finite and not zero", equals("bad_vectors", 0)),
    ),
    postconditions=(
        Check(
            "complete documents",
            "every document's row and chunks belong together",
            equals("incomplete_documents", 0),
            next_step="Run the same ingest again; it repairs what an interrupted run left.",
        ),
        Check("no duplicate rows", "every chunk id has one row", equals("repeated_chunk_rows", 0)),
    ),
    service_levels=(
        Check(
            "duration",
            "a run takes at most 30 s plus 60 s per million characters that changed, on two cores",
            at_most("seconds_over_allowance", 0.0),
        ),
    ),
    when_broken="What was committed stays; each batch of documents is a commit.",
)


@dataclass(frozen=True)
class Summary:
    """What an ingest did; ``to_dict`` has the keys that scripts rely on."""

    run_id: str
    snapshot: str
    documents: dict[str, int]
    chunks: dict[str, int]
    failures: list[dict[str, str]]
    near_duplicates: list[dict[str, Any]]
    seconds: float
    contract: dict[str, Any]
    skipped: int = 0
    skipped_files: list[dict[str, str]] = field(default_factory=list)
    """At most 100 of them, those first that can be saved in a format that is read."""
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "documents": self.documents,
            "chunks": self.chunks,
            "failures": self.failures,
            "near_duplicates": self.near_duplicates,
            "skipped": self.skipped,
            "skipped_files": self.skipped_files,
            "seconds": self.seconds,
            "contract": self.contract,
            "dry_run": self.dry_run,
        }


def run(
    settings: Settings,
    paths: Sequence[str | Path],
    *,
    stdin_name: str = "stdin",
    store: FeatureStore | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Summary:
    """Ingest documents.

    Args:
        settings: Everything but the paths.
        paths: Files, directories, glob patterns, archives, URLs, or ``-`` for stdin.
        stdin_name: Name of the document on stdin; its suffix tells the format.
        store: Feature store to use in place of the configured one.
        embedder: Embedder to use in place of the configured one.
        progress: Is told how far it is.
        dry_run: Only say what would be done.

    Raises:
        ContractViolation: If a promise cannot be kept.
        StoreError: If the store cannot be read or written.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.ingestion import build_ingestor
    from rag_fti.models.embedder import build_embedder

    progress = progress or Silent()
    names = [str(path) for path in paths]
    run_id = new_run_id("ingest")
    report_path = settings.storage.reports / "ingest" / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    storage = settings.storage
    store = store or FeatureStore.open(storage.features_uri, options=storage.options)
    embedder = embedder or build_embedder(settings.embedder)
    if dry_run:
        ingestor = build_ingestor(
            settings,
            store=store,
            embedder=embedder,
            run_id=run_id,
            progress=progress,
            prepare=False,
        )
        return preview(ingestor, store, run_id=run_id, paths=names, prune=settings.ingest.prune)
    contract.require(
        {
            "paths_given": bool(names),
            "embedder_mismatch": store.embedder_mismatch(embedder.fingerprint),
        }
    )
    started = time.monotonic()
    ingestor = build_ingestor(
        settings, store=store, embedder=embedder, run_id=run_id, progress=progress
    )
    totals = ingestor.ingest(names, prune=settings.ingest.prune, stdin_name=stdin_name)
    totals.seconds = time.monotonic() - started
    return finish(settings, store, contract, totals, progress=progress)


def watch(
    settings: Settings,
    paths: Sequence[str | Path],
    *,
    stop: threading.Event,
    store: FeatureStore | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Ingest documents, then keep the store in step with the files until told to stop.

    Args:
        settings: Everything but the paths.
        paths: Files and directories.
        stop: Set it to end the watch.
        store: Feature store to use in place of the configured one.
        embedder: Embedder to use in place of the configured one.
        progress: Is told about every round of changes.

    Returns:
        The first run and all rounds together.

    Raises:
        ContractViolation: If a promise cannot be kept.
        StoreError: If the store cannot be read or written.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.ingestion import build_ingestor
    from rag_fti.features.totals import IngestTotals
    from rag_fti.features.watching import watch as watch_paths
    from rag_fti.models.embedder import build_embedder

    progress = progress or Silent()
    store = store or FeatureStore.open(
        settings.storage.features_uri, options=settings.storage.options
    )
    embedder = embedder or build_embedder(settings.embedder)
    first = run(settings, paths, store=store, embedder=embedder, progress=progress)
    embedder.encode_queries(["warm-up"])  # so that the first change does not wait for the model
    run_id = new_run_id("ingest")
    report_path = settings.storage.reports / "ingest" / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    ingestor = build_ingestor(settings, store=store, embedder=embedder, run_id=run_id)
    names = [str(path) for path in paths]
    total = IngestTotals()
    rounds = watch_paths(
        ingestor,
        names,
        stop=stop,
        include=settings.loading.include,
        exclude=settings.loading.exclude,
    )
    progress.note(f"{first.documents['added']} added; watching {', '.join(names)} (Ctrl-C ends it)")
    for number, totals in enumerate(rounds, start=1):
        total.absorb(totals)
        progress.note(
            f"{totals.added} added, {totals.updated} updated, {totals.deleted} deleted, "
            f"{len(totals.failures)} failed: snapshot {store.snapshot()}"
        )
        if number % _ROUNDS_PER_OPTIMIZE == 0:
            clean_up(settings, store)
    return _together(first, finish(settings, store, contract, total, progress=progress))


def _together(first: Summary, rounds: Summary) -> Summary:
    """What a first run and the rounds after it did; contract and state are those of the rounds."""
    failures = {f["source"]: f for f in [*first.failures, *rounds.failures]}
    documents = {name: n + first.documents[name] for name, n in rounds.documents.items()}
    chunks = {name: n + first.chunks[name] for name, n in rounds.chunks.items()}
    return replace(
        rounds,
        documents={**documents, "failed": len(failures)},
        chunks={**chunks, "total": rounds.chunks["total"]},
        failures=list(failures.values()),
        near_duplicates=[*first.near_duplicates, *rounds.near_duplicates],
        skipped=first.skipped + rounds.skipped,
        seconds=first.seconds + rounds.seconds,
    )


def finish(
    settings: Settings,
    store: FeatureStore,
    contract: ContractRun,
    totals: IngestTotals,
    *,
    progress: Progress,
) -> Summary:
    """Check what was written, look after the indexes, and close the report."""
    contract.hold(
        {
            "uncovered_characters": totals.uncovered_characters,
            "wrong_spans": totals.wrong_spans,
            "duplicate_chunk_ids": totals.duplicate_chunk_ids,
            "bad_vectors": totals.bad_vectors,
        }
    )
    if totals.changed:
        progress.update("optimizing indexes", 0, 1)
        clean_up(settings, store)
        index = settings.index
        store.update_vector_index(
            kind=index.type, exact_below=index.exact_below, target_recall=index.target_recall
        )
        progress.update("optimizing indexes", 1, 1)
    contract.ensure(
        {
            "incomplete_documents": len(store.incomplete_documents()) if totals.changed else 0,
            "repeated_chunk_rows": store.repeated_chunks() if totals.changed else 0,
        }
    )
    allowance = 30.0 + 60.0 * totals.characters / 1e6
    over = round(max(0.0, totals.seconds - allowance), 3)
    report = contract.finish({"seconds_over_allowance": over})
    return _summary(
        totals,
        store,
        run_id=contract.run_id,
        seconds=report.seconds,
        contract=report.summary(contract.report_path),
    )


def clean_up(settings: Settings, store: FeatureStore) -> None:
    """Compact the store, and drop the states that are kept no longer."""
    kept = settings.ingest
    store.optimize(keep_days=kept.keep_versions_days, keep_answered_days=kept.keep_answered_days)


def preview(
    ingestor: Ingestor,
    store: FeatureStore,
    *,
    run_id: str,
    paths: Sequence[str],
    prune: bool,
) -> Summary:
    """What a run would do, by hashes alone."""
    totals = ingestor.preview(paths, prune=prune)
    nothing = {"ok": True, "report": "", "missed": []}
    return _summary(totals, store, run_id=run_id, seconds=0.0, contract=nothing, dry_run=True)


def _summary(
    totals: IngestTotals,
    store: FeatureStore,
    *,
    run_id: str,
    seconds: float,
    contract: dict[str, Any],
    dry_run: bool = False,
) -> Summary:
    from rag_fti.features.loading.formats import unread_reason

    filled = store.exists() or not dry_run
    skipped = sorted(totals.skipped.items(), key=lambda item: (not unread_reason(item[0]), item))
    return Summary(
        run_id=run_id,
        snapshot=store.snapshot() if filled else "",
        documents={
            "added": totals.added,
            "updated": totals.updated,
            "unchanged": totals.unchanged,
            "deleted": totals.deleted,
            "failed": len(totals.failures),
        },
        chunks={
            "added": totals.chunks_added,
            "reused": totals.chunks_reused,
            "deleted": totals.chunks_deleted,
            "total": store.count_chunks() if filled else 0,
        },
        failures=[{"source": s, "reason": r} for s, r in sorted(totals.failures.items())],
        near_duplicates=[asdict(pair) for pair in totals.near_duplicates],
        seconds=seconds,
        contract=contract,
        skipped=len(totals.skipped),
        skipped_files=[{"source": s, "reason": r} for s, r in skipped[:_MOST_SKIPPED]],
        dry_run=dry_run,
    )


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["ingest", *sys.argv[1:]])
