"""The batch inference pipeline: a file of questions becomes a file and table of predictions.

A run works on one snapshot and one model version from its first question to its last. What is
done is on disk after every batch, so an interrupted run goes on where it stopped. Where its
snapshot is gone or another model answers now, a new run begins.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts, ids
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun, Outcome
from rag_fti.errors import SnapshotNotFound
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import field_table, predictions_schema

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import Engine

PIPELINE = "batch_inference"


def _no_repeated(facts: Mapping[str, Any]) -> Outcome:
    repeated = facts["repeated_ids"]
    return Outcome(not repeated, repeated[:5], "no question id twice")


CONTRACT = Contract(
    pipeline=PIPELINE,
    purpose="Answer a file of questions on one snapshot with one model version.",
    inputs={
        "questions": "JSONL with question (and id), CSV or Parquet with a column question, or "
        "text with one question per line",
        "feature store": "the documents answered from",
    },
    outputs={
        "file": "one prediction per question, in order (JSONL, Parquet or CSV)",
        "predictions": field_table(predictions_schema()),
    },
    preconditions=(
        Check("questions", "there is at least one question", contracts.at_least("questions", 1)),
        Check("unique ids", "every question has its own id", _no_repeated),
        Check(
            "documents",
            "the feature store holds documents",
            contracts.is_true("store_filled"),
            "Fill it: rag-fti ingest PATH.",
        ),
    ),
    invariants=(
        Check(
            "one snapshot",
            "every answer was made on the run's snapshot",
            contracts.equals("foreign_snapshots", 0),
        ),
        Check(
            "one model",
            "every answer was made by the run's model",
            contracts.equals("foreign_models", 0),
        ),
        Check(
            "citations hold",
            "every cited span is a chunk of the snapshot or part of one",
            contracts.equals("loose_citations", 0),
        ),
    ),
    postconditions=(
        Check(
            "complete",
            "as many predictions as questions, in their order",
            contracts.is_true("complete"),
        ),
        Check(
            "table",
            "the predictions table holds every prediction of the run once",
            contracts.equals("rows_missing", 0),
        ),
    ),
    service_levels=(
        Check(
            "duration", "at most 10 seconds per question", contracts.at_most("per_question", 10.0)
        ),
        Check(
            "failures",
            "at most 1 % of the questions end in an error",
            contracts.at_most("failed_share", 0.01),
        ),
    ),
    when_broken="The file was not written.",
)


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    run_id: str
    output: str
    questions: int
    answered: int
    abstained: int
    failed: int
    resumed: int
    """Predictions taken over from an interrupted run."""
    model: str
    snapshot: str
    seconds: float
    contract: Mapping[str, Any]
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "seconds": round(self.seconds, 3),
        }


def run(
    settings: Settings,
    questions_file: Path,
    output: Path,
    *,
    model: str = "",
    at: str = "",
    collections: Sequence[str] | None = None,
    store: FeatureStore | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Summary:
    """Answer every question of a file.

    Args:
        settings: All inference sections and ``batch``.
        questions_file: Input.
        output: File to write; its suffix picks the format.
        model: ``name@version``, an alias or ``base``; empty takes the configured model.
        at: Snapshot or tag to answer on; empty takes ``inference.follow`` or the newest.
        collections: Only these; None searches all.
        store: An open store; None opens the configured one.
        engine: A ready engine; None builds it.
        progress: Receives the count of questions.
        dry_run: Check the contract's preconditions and stop.

    Raises:
        ContractViolation: If a promise does not hold.
        SourceError: If the input cannot be read.
        ConfigError: If there is no such collection.
        StoreError: If the store cannot be read or written; the run can be continued.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import build_engine
    from rag_fti.inference.batch_files import WorkFile, check_output, read_input, write_output
    from rag_fti.inference.predictions import answer_all, measure, publish
    from rag_fti.retrieval.filters import require_collections

    progress = progress or Silent()
    started = time.monotonic()
    check_output(output)
    asked = read_input(questions_file)
    store = store or FeatureStore.open(
        settings.storage.features_uri, options=settings.storage.options
    )
    work = WorkFile(output)
    job = {
        "input": ids.digest_json([[item.id, item.question] for item in asked]),
        "model": model,
        "at": at or settings.inference.follow,
        "collections": list(collections) if collections is not None else None,
        "retrieval": settings.retrieval.model_dump(mode="json"),
        "inference": settings.inference.model_dump(mode="json"),
        "generator": settings.generator.model_dump(mode="json"),
    }
    header, done = work.open_run(job) if settings.batch.resume else ({}, [])
    counts = Counter(item.id for item in asked)
    facts = {
        "questions": len(asked),
        "repeated_ids": sorted(name for name, count in counts.items() if count > 1),
        "store_filled": store.exists(),
    }
    contract = _begin(settings, facts, run_id=str(header.get("run_id", "")), dry_run=dry_run)
    require_collections(store, collections, at=str(job["at"]))
    if dry_run:
        snapshot = store.resolve(str(job["at"]))
        report = contract.finish({"per_question": 0.0, "failed_share": 0.0})
        return Summary(
            contract.run_id, str(output), len(asked), 0, 0, 0, len(done), model, snapshot,
            time.monotonic() - started, report.summary(contract.report_path), dry_run=True,
        )  # fmt: skip
    engine = engine or build_engine(settings, store=store, model_ref=model or None)
    if header and (reason := _outdated(header, store, model=engine.model)):
        progress.note(f"{reason}: starting anew.")
        header, done = {}, []
        contract = _begin(settings, facts)  # what the other run published keeps its id
    run_id = contract.run_id
    if not header:
        header = {
            "run_id": run_id,
            "job": job,
            "snapshot": store.resolve(str(job["at"])),
            "model_answering": engine.model,
        }
        work.start(header)
    snapshot = str(header["snapshot"])
    predictions = answer_all(
        engine,
        asked,
        done,
        work=work,
        batch_size=settings.batch.batch_size,
        at=snapshot,
        collections=collections,
        run_id=run_id,
        progress=progress,
    )
    contract.hold(measure(predictions, store, snapshot=snapshot, model=engine.model))
    publish(store, predictions, run_id=run_id)
    stored = store.rows("predictions", where=f"run_id = '{run_id}'")
    contract.ensure(
        {
            "complete": [row["question_id"] for row in predictions] == [a.id for a in asked],
            "rows_missing": abs(len(predictions) - stored.num_rows),
        }
    )
    write_output(output, predictions)
    work.remove()
    seconds = time.monotonic() - started
    failed = sum(bool(row["error"]) for row in predictions)
    report = contract.finish(
        {"per_question": seconds / len(asked), "failed_share": failed / len(asked)}
    )
    abstained = sum(row["abstained"] for row in predictions)
    return Summary(
        run_id=run_id,
        output=str(output),
        questions=len(asked),
        answered=len(asked) - abstained - failed,
        abstained=abstained,
        failed=failed,
        resumed=len(done),
        model=engine.model,
        snapshot=snapshot,
        seconds=seconds,
        contract=report.summary(contract.report_path),
    )


def _begin(
    settings: Settings, facts: Mapping[str, Any], *, run_id: str = "", dry_run: bool = False
) -> ContractRun:
    """Check the preconditions of a run; an empty id makes a new one."""
    run_id = run_id or contracts.new_run_id(PIPELINE)
    report = settings.storage.reports / PIPELINE / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=None if dry_run else report)
    contract.require(facts)
    return contract


def _outdated(header: Mapping[str, Any], store: FeatureStore, *, model: str) -> str:
    """Why an interrupted run cannot go on; empty if it can."""
    if header["model_answering"] != model:
        return f"{model} took over from {header['model_answering']}"
    try:
        store.resolve(str(header["snapshot"]))
    except SnapshotNotFound:
        return f"The snapshot {header['snapshot']} of the interrupted run is gone"
    return ""


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["batch", *sys.argv[1:]])
