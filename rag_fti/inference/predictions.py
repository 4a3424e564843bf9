"""Many questions, answered in batches that are kept as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rag_fti import ids
from rag_fti.errors import EngineDown, InferenceError
from rag_fti.inference.batch_files import Asked, WorkFile
from rag_fti.inference.request_log import storable
from rag_fti.progress import Progress
from rag_fti.schemas import Answer

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference.engine import Engine


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
    except EngineDown:  # no question's fault; the run can be continued
        raise
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
        "answer": storable(answer.answer),
        "abstained": answer.abstained,
        "citations": json.dumps([c.to_dict() for c in answer.citations], ensure_ascii=False),
        "model": answer.model,
        "snapshot": answer.snapshot,
        "error": "",
        "chunk_ids": [hit.chunk_id for hit in answer.hits],
        "document_ids": [hit.document_id for hit in answer.hits],
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
        "chunk_ids": [],
        "document_ids": [],
    }


def _common(item: Asked, *, run_id: str) -> dict[str, Any]:
    return {
        "prediction_id": ids.content_id("prediction", run_id, item.id),
        "run_id": run_id,
        "question_id": item.id,
        "question": item.question,
        "created_at": datetime.now(UTC).isoformat(),
    }


def measure(
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


def publish(store: FeatureStore, predictions: Sequence[Mapping[str, Any]], *, run_id: str) -> None:
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
