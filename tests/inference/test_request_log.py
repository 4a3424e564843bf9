from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rag_fti.errors import StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.inference.request_log import RequestLog, sampled
from rag_fti.schemas import Answer
from tests.retrieval.hits import hit

ANSWER = Answer(
    id="chatcmpl-1",
    question="Who?",
    answer="Ada [1]",
    abstained=False,
    citations=(),
    hits=(hit("c1", 0.5),),
    model="assistant@3",
    dataset="qa@1",
    snapshot="d1c1",
    prompt_digest="p",
    prompt_tokens=10,
    completion_tokens=2,
    retrieval_seconds=0.1,
    generation_seconds=0.2,
)


class Flaky:
    """A store that can be down."""

    def __init__(self) -> None:
        self.down = False
        self.rows: list[Mapping[str, Any]] = []

    def append(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.down:
            raise StoreError("The disk is full.")
        self.rows.extend(rows)


def test_rows_arrive_in_the_real_store(store: FeatureStore) -> None:
    log = RequestLog(store, flush_seconds=0.01)
    assert log.record(ANSWER, key_id="k", collections=["a"], settings={"k": 3})
    assert log.flush()
    (row,) = store.rows("inference_log").to_pylist()
    assert (row["response_id"], row["key_id"], row["collections"]) == ("chatcmpl-1", "k", ["a"])
    assert row["chunk_ids"] == ["c1"]
    assert row["model"] == "assistant@3"
    log.close()


def test_redaction_leaves_texts_out_and_keeps_a_digest() -> None:
    store = Flaky()
    log = RequestLog(store, redact=True, flush_seconds=0.0)
    log.record(ANSWER)
    log.close()
    (row,) = store.rows
    assert (row["question"], row["answer"]) == ("", "")
    assert "question_digest" in row["settings"]
    assert "Ada" not in str(row)


def test_sampling_is_by_id_and_close_to_the_share() -> None:
    ids = [f"chatcmpl-{n}" for n in range(4000)]
    kept = [i for i in ids if sampled(i, 0.25)]
    assert 850 < len(kept) < 1150
    assert kept == [i for i in ids if sampled(i, 0.25)]
    assert not any(sampled(i, 0.0) for i in ids)


def test_an_outage_is_waited_out_and_a_long_one_is_bounded_and_counted() -> None:
    store = Flaky()
    store.down = True
    log = RequestLog(store, flush_seconds=0.0, max_pending=5)
    for number in range(12):
        log.record(replace(ANSWER, id=f"chatcmpl-{number}"))
    time.sleep(0.1)
    assert log.pending <= 5
    assert log.error == "The disk is full."
    store.down = False
    assert log.flush()
    assert len(store.rows) + log.dropped == 12
    assert store.rows[-1]["response_id"] == "chatcmpl-11"
    assert log.error == ""
    log.close()


def test_a_table_that_cannot_be_written_is_told_although_another_can() -> None:
    class HalfDown(Flaky):
        def append(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
            self.down = table == "inference_log"
            super().append(table, rows)

    store = HalfDown()
    log = RequestLog(store, flush_seconds=0.05)
    log.record(ANSWER)
    log.feedback(
        {
            "feedback_id": "fb-1",
            "response_id": ANSWER.id,
            "created_at": datetime.now(UTC),
            "key_id": "",
            "rating": 1,
            "correction": "",
            "comment": "",
        }
    )
    deadline = time.monotonic() + 10
    while log.pending != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [row["feedback_id"] for row in store.rows] == ["fb-1"]
    assert "disk is full" in log.error
    log.close(timeout=5)


def test_recording_never_waits_for_the_store() -> None:
    written = threading.Event()

    class Blocked(Flaky):
        def append(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
            assert written.wait(30)
            super().append(table, rows)

    store = Blocked()
    log = RequestLog(store, flush_seconds=0.0)
    for _ in range(100):
        log.record(ANSWER)  # would hang if it waited: nothing is stored before all are recorded
    assert not store.rows
    written.set()
    log.close()
    assert len(store.rows) == 100


def test_a_row_that_cannot_be_stored_keeps_nothing_waiting(store: FeatureStore) -> None:
    log = RequestLog(store, flush_seconds=0.01)
    log.record(replace(ANSWER, id="half", answer="Ada \ud83d [1]"))
    log.record(replace(ANSWER, id="huge", prompt_tokens=2**70))
    log.feedback({"feedback_id": "f", "rating": "much"})
    log.record(replace(ANSWER, id="good"))
    assert log.flush(timeout=10)
    log.record(replace(ANSWER, id="later"))
    assert log.flush(timeout=10)
    assert (log.dropped, log.pending, log.error) == (2, 0, "")
    rows = {row["response_id"]: row["answer"] for row in store.rows("inference_log").to_pylist()}
    assert rows == {"half": "Ada ? [1]", "good": "Ada [1]", "later": "Ada [1]"}
    log.close()


def test_no_error_of_the_store_ends_the_writer() -> None:
    class Odd(Flaky):
        def append(self, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
            if self.down:
                raise KeyError("version")
            super().append(table, rows)

    store = Odd()
    store.down = True
    log = RequestLog(store, flush_seconds=0.01)
    log.record(ANSWER)
    assert not log.flush(timeout=0.3)
    assert "version" in log.error
    store.down = False
    assert log.flush(timeout=10)
    assert (len(store.rows), log.error) == (1, "")
    log.close()


def test_many_threads_lose_nothing() -> None:
    store = Flaky()
    log = RequestLog(store, flush_seconds=0.01)
    threads = [
        threading.Thread(target=lambda: [log.record(ANSWER) for _ in range(100)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(store.rows) == 800


PROGRAM = """
import sys, time
from dataclasses import replace
from rag_fti.feature_store import FeatureStore
from rag_fti.inference.request_log import RequestLog
from tests.inference.test_request_log import ANSWER
log = RequestLog(FeatureStore.open(sys.argv[1]))
number = 0
while True:
    log.record(replace(ANSWER, id=f"chatcmpl-{number}"))
    print(number, time.time(), flush=True)
    number += 1
    time.sleep(0.02)
"""


def test_a_kill_loses_at_most_the_last_second(
    tmp_path: Path, store: FeatureStore, repository: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, store.uri],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert process.stdout is not None
    times = [float(process.stdout.readline().split()[1]) for _ in range(150)]
    process.send_signal(signal.SIGKILL)
    killed = time.time()
    process.stdout.close()
    process.wait()
    found = set(store.rows("inference_log")["response_id"].to_pylist())
    old = [n for n, when in enumerate(times) if killed - when > 1.0]
    assert len(old) > 30
    missing = [n for n in old if f"chatcmpl-{n}" not in found]
    assert missing == []


pytestmark = pytest.mark.timeout(60)
