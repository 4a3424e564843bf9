"""Writing answered requests and feedback to the feature store, off the request path."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import pyarrow as pa

from rag_fti import schemas
from rag_fti.errors import StoreError
from rag_fti.schemas import Answer

logger = logging.getLogger(__name__)

Table = Literal["inference_log", "feedback"]

_SCHEMAS: Mapping[Table, Callable[[], pa.Schema]] = {
    "inference_log": schemas.inference_log_schema,
    "feedback": schemas.feedback_schema,
}
_RETRY_SECONDS = 1.0
_MISFITS = (pa.ArrowException, ValueError, TypeError, OverflowError)


class AppendableStore(Protocol):
    """The part of the feature store that logging needs."""

    def append(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a log table."""
        ...


class RequestLog:
    """Collects rows and writes them in the background.

    A row is on disk at most ``flush_seconds`` (plus the write) after :meth:`record`, so
    a killed process loses at most that; :meth:`close` writes everything. While the store cannot
    be written, rows wait; beyond ``max_pending`` the oldest are given up and counted.

    Args:
        store: Where rows go.
        redact: Leave the texts of question, earlier turns and answer out; the question's digest
            stays.
        sample: Share of requests that are logged, in [0, 1]; decided by the response id, so it
            is the same for a request wherever it is asked.
        flush_seconds: Longest time a row waits.
        max_pending: Most rows waiting.
    """

    def __init__(
        self,
        store: AppendableStore,
        *,
        redact: bool = False,
        sample: float = 1.0,
        flush_seconds: float = 0.5,
        max_pending: int = 10_000,
    ) -> None:
        self._store = store
        self._redact = redact
        self._sample = sample
        self._flush_seconds = flush_seconds
        self._max_pending = max_pending
        self._pending: deque[tuple[Table, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._writing = 0
        self._closed = False
        self.dropped = 0
        """Rows given up because the store could not be written for too long."""
        self.error = ""
        """Why the last write failed; empty after a good one."""
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Rows that are not on disk yet."""
        with self._changed:
            return len(self._pending) + self._writing

    def record(
        self,
        answer: Answer,
        *,
        key_id: str = "",
        collections: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> bool:
        """Log one answer.

        Args:
            answer: What was answered.
            key_id: Id of the API key, empty without keys.
            collections: Collections that were searched; None for all.
            settings: Request settings, JSON-ready, as of :func:`rag_fti.inference.replay.asked`.

        Returns:
            Whether it was sampled.
        """
        if not sampled(answer.id, self._sample):
            return False
        row = log_row(
            answer,
            key_id=key_id,
            collections=collections,
            settings=settings or {},
            redact=self._redact,
        )
        self._add("inference_log", row)
        return True

    def feedback(self, row: Mapping[str, Any]) -> None:
        """Log one piece of feedback, a row of the ``feedback`` table."""
        self._add("feedback", dict(row))

    def flush(self, *, timeout: float = 10.0) -> bool:
        """Wait until everything recorded so far is on disk; False if it took too long."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.notify_all()
            while self._pending or self._writing:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return not (self._pending or self._writing)
        return True

    def close(self, *, timeout: float = 30.0) -> None:
        """Write what is pending and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive() or self._pending:
            logger.error("%d log rows could not be written: %s", self.pending, self.error)

    def _add(self, table: Table, row: dict[str, Any]) -> None:
        with self._changed:
            if len(self._pending) >= self._max_pending:
                self._pending.popleft()
                self.dropped += 1
            self._pending.append((table, row))
            if len(self._pending) == 1:
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                if not self._pending:
                    return
                closing = self._closed
            if not closing:
                time.sleep(self._flush_seconds)
            if not self._write_pending() and self._closed:
                return

    def _write_pending(self) -> bool:
        with self._changed:
            batch = list(self._pending)
            self._pending.clear()
            self._writing = len(batch)
        failed: list[tuple[Table, dict[str, Any]]] = []
        problem = ""
        tables: tuple[Table, ...] = ("inference_log", "feedback")
        for table in tables:
            rows = self._fitting(table, [row for name, row in batch if name == table])
            if not rows:
                continue
            try:
                self._store.append(table, rows)
            except Exception as error:  # shown by readiness; this thread must go on
                if not isinstance(error, StoreError):
                    logger.exception("writing the log failed")
                logger.warning("log rows wait, the store cannot be written: %s", error)
                problem = str(error) or type(error).__name__
                failed.extend((table, row) for row in rows)
        self.error = problem
        with self._changed:
            self._pending.extendleft(reversed(failed))
            while len(self._pending) > self._max_pending:
                self._pending.popleft()
                self.dropped += 1
            self._writing = 0
            self._changed.notify_all()
            if failed and not self._closed:
                self._changed.wait(_RETRY_SECONDS)
        return not failed

    def _fitting(self, table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that can be stored; one that cannot must not keep the others waiting."""
        schema = _SCHEMAS[table]()
        try:
            pa.Table.from_pylist(rows, schema=schema)
        except _MISFITS:
            if len(rows) > 1:
                return [kept for row in rows for kept in self._fitting(table, [row])]
            logger.exception("a row of %s is given up: it does not fit", table)
            self.dropped += 1
            return []
        return rows


def sampled(response_id: str, share: float) -> bool:
    """Whether a response belongs to the logged share; uniform over ids."""
    if share >= 1.0:
        return True
    digest = hashlib.sha256(response_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def log_row(
    answer: Answer,
    *,
    key_id: str,
    collections: Sequence[str] | None,
    settings: Mapping[str, Any],
    redact: bool,
) -> dict[str, Any]:
    """An answer as a row of ``inference_log``."""
    extra = {
        **settings,
        "history": [] if redact else [dict(turn) for turn in answer.history],
        "finish_reason": answer.finish_reason,
        "question_digest": hashlib.sha256(
            answer.question.encode("utf-8", errors="surrogatepass")
        ).hexdigest(),
    }
    return {
        "response_id": answer.id,
        "created_at": datetime.now(UTC),
        "key_id": key_id,
        "collections": list(collections) if collections is not None else ["*"],
        "question": "" if redact else storable(answer.question),
        "answer": "" if redact else storable(answer.answer),
        "abstained": answer.abstained,
        "model": answer.model,
        "dataset": answer.dataset,
        "snapshot": answer.snapshot,
        "prompt_digest": answer.prompt_digest,
        "chunk_ids": [hit.chunk_id for hit in answer.hits],
        "document_ids": [hit.document_id for hit in answer.hits],
        "document_versions": [hit.document_version for hit in answer.hits],
        "scores": [hit.score for hit in answer.hits],
        "cited": [citation.marker for citation in answer.citations],
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "retrieval_seconds": answer.retrieval_seconds,
        "generation_seconds": answer.generation_seconds,
        "settings": storable(json.dumps(extra, sort_keys=True, ensure_ascii=False)),
    }


def storable(text: str) -> str:
    """A text without the halves of characters that a remote model may have been cut off in."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
