"""The batch inference pipeline: a file of questions becomes a file and table of predictions.

A run works on one snapshot and one model version from its first question to its last. What is
done is on disk after every batch, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts, ids
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun, Outcome
from rag_fti.errors import ConfigError, InferenceError, SourceError
from rag_fti.files import write_bytes_atomic
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import Answer, field_table, predictions_schema

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import Engine

PIPELINE = "batch_inference"
OUTPUT_SUFFIXES = (".jsonl", ".parquet", ".csv")


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


@dataclass(frozen=True)
class Asked:
    """One line of the input."""

    id: str
    question: str


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
        StoreError: If the store cannot be read or written; the run can be continued.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import build_engine

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
    run_id = str(header.get("run_id") or contracts.new_run_id(PIPELINE))
    report_path = settings.storage.reports / PIPELINE / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    counts = Counter(item.id for item in asked)
    contract.require(
        {
            "questions": len(asked),
            "repeated_ids": sorted(name for name, count in counts.items() if count > 1),
            "store_filled": store.exists(),
        }
    )
    if dry_run:
        snapshot = store.resolve(str(job["at"]))
        report = contract.finish({"per_question": 0.0, "failed_share": 0.0})
        return Summary(
            run_id, str(output), len(asked), 0, 0, 0, len(done), model, snapshot,
            time.monotonic() - started, report.summary(report_path), dry_run=True,
        )  # fmt: skip
    engine = engine or build_engine(settings, store=store, model_ref=model or None)
    if header and header["model_answering"] != engine.model:
        progress.note(f"{engine.model} took over from {header['model_answering']}: starting anew.")
        header, done = {}, []
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
    contract.hold(facts_of(predictions, store, snapshot=snapshot, model=engine.model))
    publish_rows(store, predictions, run_id=run_id)
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
        contract=report.summary(report_path),
    )


def answer_all(
    engine: Engine,
    asked: Sequence[Asked],
    done: Sequence[dict[str, Any]],
    *,
    work: WorkFile,
    batch_size: int,
    at: str,
    collections: Sequence[str] | None,
    run_id: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Predictions of all questions, those of an interrupted run first; each batch is kept."""
    started = time.monotonic()
    if done:
        progress.note(f"Going on after {len(done)} of {len(asked)} questions.")
    predictions = list(done)
    progress.update("answering questions", len(predictions), len(asked))
    while len(predictions) < len(asked):
        batch = asked[len(predictions) : len(predictions) + batch_size]
        rows = answer_batch(engine, batch, at=at, collections=collections, run_id=run_id)
        work.add(rows)
        predictions.extend(rows)
        rate = (len(predictions) - len(done)) / max(1e-9, time.monotonic() - started)
        progress.update(
            "answering questions", len(predictions), len(asked), detail=f"{rate:.1f} questions/s"
        )
    return predictions


def answer_batch(
    engine: Engine,
    batch: Sequence[Asked],
    *,
    at: str,
    collections: Sequence[str] | None,
    run_id: str,
) -> list[dict[str, Any]]:
    """One prediction per question; a question that cannot be answered carries its error.

    Raises:
        StoreError: If the store fails; that is not the question's fault.
    """
    options: dict[str, Any] = {"at": at, "collections": collections}
    try:
        answers = engine.answer_many([item.question for item in batch], **options)
        return [prediction(item, a, run_id=run_id) for item, a in zip(batch, answers, strict=True)]
    except InferenceError as error:
        if len(batch) > 1:
            # One of them does not fit or makes the model fail: find out which.
            return [
                row
                for item in batch
                for row in answer_batch(
                    engine, [item], at=at, collections=collections, run_id=run_id
                )
            ]
        return [failure(batch[0], str(error), model=engine.model, snapshot=at, run_id=run_id)]


def prediction(item: Asked, answer: Answer, *, run_id: str) -> dict[str, Any]:
    """An answer as a row of ``predictions``."""
    return {
        **_common(item, run_id=run_id),
        "answer": answer.answer,
        "abstained": answer.abstained,
        "citations": json.dumps([c.to_dict() for c in answer.citations], ensure_ascii=False),
        "model": answer.model,
        "snapshot": answer.snapshot,
        "error": "",
    }


def failure(item: Asked, error: str, *, model: str, snapshot: str, run_id: str) -> dict[str, Any]:
    """A question without an answer as a row of ``predictions``."""
    return {
        **_common(item, run_id=run_id),
        "answer": "",
        "abstained": False,
        "citations": "[]",
        "model": model,
        "snapshot": snapshot,
        "error": error,
    }


def _common(item: Asked, *, run_id: str) -> dict[str, Any]:
    return {
        "prediction_id": ids.content_id("prediction", run_id, item.id),
        "run_id": run_id,
        "question_id": item.id,
        "question": item.question,
        "created_at": datetime.now(UTC).isoformat(),
    }


def facts_of(
    predictions: Sequence[Mapping[str, Any]], store: FeatureStore, *, snapshot: str, model: str
) -> dict[str, Any]:
    """What the invariants ask for."""
    citations = [c for row in predictions for c in json.loads(row["citations"])]
    hits = {
        hit.chunk_id: hit
        for hit in store.get_chunks(sorted({c["chunk_id"] for c in citations}), at=snapshot)
    }
    loose = 0
    for citation in citations:
        hit = hits.get(citation["chunk_id"])
        if hit is None or hit.document_id != citation["document_id"]:
            loose += 1
        elif hit.start <= citation["start"] and citation["end"] <= hit.end:
            own = hit.text[citation["start"] - hit.start : citation["end"] - hit.start]
            loose += own != citation["text"]
    return {
        "foreign_snapshots": sum(row["snapshot"] != snapshot for row in predictions),
        "foreign_models": sum(row["model"] != model for row in predictions),
        "loose_citations": loose,
    }


def publish_rows(
    store: FeatureStore, predictions: Sequence[Mapping[str, Any]], *, run_id: str
) -> None:
    """Append the predictions that the table does not hold yet (after a crash it may)."""
    known = set(
        store.rows("predictions", where=f"run_id = '{run_id}'")["prediction_id"].to_pylist()
    )
    store.append(
        "predictions",
        [
            {**row, "created_at": datetime.fromisoformat(row["created_at"])}
            for row in predictions
            if row["prediction_id"] not in known
        ],
    )


class WorkFile:
    """What an interrupted run has done: a header line, then one line per prediction.

    Args:
        output: The file the run will write in the end.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.work.jsonl")

    def open_run(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Header and predictions of an interrupted run of the same job; empty where none is."""
        if not self.path.is_file():
            return {}, []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if not whole:
            return {}, []
        if whole < len(content):
            os.truncate(self.path, whole)  # a torn last line is done again
        lines = content[:whole].split(b"\n")[:-1]
        header = json.loads(lines[0])
        if header.get("job") != json.loads(json.dumps(job)):
            return {}, []
        return header, [json.loads(line) for line in lines[1:]]

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin a new run."""
        write_bytes_atomic(self.path, json.dumps(header).encode() + b"\n")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put finished predictions on disk."""
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with self.path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)


def check_output(output: Path) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        ConfigError: If the suffix is unknown or the directory is not there.
    """
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ConfigError(
            f"Cannot tell the format of {output}.",
            next_step=f"End its name in one of {', '.join(OUTPUT_SUFFIXES)}.",
        )
    if not output.parent.is_dir() or output.is_dir():
        raise ConfigError(
            f"{output} cannot be written: "
            + ("it is a directory." if output.is_dir() else f"there is no {output.parent}."),
        )


def read_input(path: Path) -> list[Asked]:
    """The questions of a file, by its suffix.

    Raises:
        SourceError: If it cannot be read.
    """
    from rag_fti.evaluation.questions import question_ids, read_questions, read_rows

    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return [Asked(q.id, q.question) for q in read_questions(path)]
    rows: list[Mapping[str, Any]]
    try:
        if suffix in (".csv", ".tsv"):
            rows = [row for _, row in read_rows(path)]
        elif suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = [{"question": line} for line in lines]
        given = [(str(row.get("id") or ""), str(row["question"] or "").strip()) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else error
        raise SourceError(
            f"Cannot read the questions in {path}: {what}.",
            next_step="Give JSONL, CSV or Parquet with a column question, or text lines.",
        ) from error
    asked = [(own, text) for own, text in given if text]
    names = question_ids(asked)
    return [Asked(name, text) for name, (_, text) in zip(names, asked, strict=True)]


def write_output(output: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write the file, all of it or nothing."""
    rows = [{**row, "citations": json.loads(row["citations"])} for row in predictions]
    if output.suffix.lower() == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_bytes_atomic(output, ("\n".join(lines) + "\n").encode("utf-8"))
        return
    import io

    import pyarrow as pa

    table = pa.Table.from_pylist(
        [{**r, "created_at": datetime.fromisoformat(r["created_at"])} for r in predictions],
        schema=predictions_schema(),
    )
    if output.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes_atomic(output, buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=table.column_names)
    writer.writeheader()
    writer.writerows(predictions)
    write_bytes_atomic(output, text.getvalue().encode("utf-8"))


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["batch", *sys.argv[1:]])
