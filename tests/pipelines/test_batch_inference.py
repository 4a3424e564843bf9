from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import batch_inference
from rag_fti.config import Settings, load_settings
from rag_fti.errors import ConfigError, ContractViolation, EngineDown, SourceError, StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.inference import build_engine
from rag_fti.lineage import Stores, tainted_by, trace
from rag_fti.registry import Registry
from tests.inference.corpus import CORPUS, FirstSentence, HashEmbedder, fill

QUESTIONS = [
    "Who keeps the cellar key?",
    "When does the office open on weekdays?",
    "What is a zebra?",
    "Where does the ferry leave?",
    "Do dogs travel free?",
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        values={"storage.root": str(tmp_path / "data"), "batch.batch_size": 2}, environment={}
    )


@pytest.fixture
def store(settings: Settings) -> FeatureStore:
    opened = FeatureStore.open(settings.storage.features_uri)
    fill(opened, CORPUS)
    return opened


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"id": f"q{n}", "question": text} for n, text in enumerate(QUESTIONS)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


Answerer = Callable[..., batch_inference.Summary]


@pytest.fixture
def answer(settings: Settings, store: FeatureStore, questions: Path, tmp_path: Path) -> Answerer:
    def made(
        generator: Any = None,
        *,
        output: str = "out.jsonl",
        source: Path = questions,
        **options: Any,
    ) -> batch_inference.Summary:
        engine = build_engine(
            settings, store=store, embedder=HashEmbedder(), generator=generator or FirstSentence()
        )
        return batch_inference.run(
            settings, source, tmp_path / output, store=store, engine=engine, **options
        )

    return made


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_prediction_per_question_in_file_and_table(
    answer: Answerer, store: FeatureStore, tmp_path: Path
) -> None:
    summary = answer()
    rows = lines_of(tmp_path / "out.jsonl")
    assert [row["question_id"] for row in rows] == ["q0", "q1", "q2", "q3", "q4"]
    assert rows[0]["answer"] == "The cellar key is kept by Ada Byrne. [1]"
    citation = rows[0]["citations"][0]
    assert CORPUS[citation["source"]][citation["start"] : citation["end"]] == citation["text"]
    assert (summary.questions, summary.abstained, summary.failed) == (5, 1, 0)
    assert summary.contract["ok"]
    stored = store.rows("predictions").to_pylist()
    assert {row["prediction_id"] for row in stored} == {row["prediction_id"] for row in rows}
    assert not list(tmp_path.glob(".*work*"))
    promised = {"run_id", "seconds", "contract", "model", "snapshot", "output"}
    assert promised <= set(summary.to_dict())


def test_predictions_are_traced_and_tainted(
    answer: Answerer, store: FeatureStore, tmp_path: Path
) -> None:
    stores = Stores(store, tmp_path / "datasets", Registry.open(str(tmp_path / "registry")))
    answer()
    row = lines_of(tmp_path / "out.jsonl")[0]
    found = trace(row["prediction_id"], stores=stores)
    assert (found["kind"], found["question"]) == ("prediction", QUESTIONS[0])
    assert [chunk["chunk_id"] for chunk in found["chunks"]] == row["chunk_ids"]
    assert len(row["chunk_ids"]) > len(row["citations"]) == 1
    assert [c["now"]["source"] for c in found["chunks"] if c["cited"]] == ["guide/keys.md"]
    uncited = next(c["document_id"] for c in found["chunks"] if not c["cited"])
    assert row["prediction_id"] in tainted_by([uncited], stores=stores).answers


def test_predictions_of_an_earlier_release_are_read_and_added_to(
    answer: Answerer, store: FeatureStore, tmp_path: Path
) -> None:
    answer()
    row = lines_of(tmp_path / "out.jsonl")[0]
    (cited,) = row["citations"]
    lancedb.connect(store.uri).open_table("predictions").drop_columns(["chunk_ids", "document_ids"])
    opened = FeatureStore.open(store.uri)
    stores = Stores(opened, tmp_path / "datasets", Registry.open(str(tmp_path / "registry")))
    for rows in (5, 10):
        assert opened.rows("predictions").num_rows == rows
        assert row["prediction_id"] in tainted_by([cited["document_id"]], stores=stores).answers
        (chunk,) = trace(row["prediction_id"], stores=stores)["chunks"]
        assert (chunk["chunk_id"], chunk["cited"]) == (cited["chunk_id"], True)
        if rows == 5:
            answer()


def test_an_interrupted_run_goes_on_where_it_stopped_on_the_same_snapshot(
    answer: Answerer, store: FeatureStore, tmp_path: Path
) -> None:
    class Dies(FirstSentence):
        def stream(self, request: Any, cancellation: Any = None) -> Any:
            if len(self.requests) == 3:
                raise KeyboardInterrupt
            return super().stream(request, cancellation)

    with pytest.raises(KeyboardInterrupt):
        answer(Dies())
    assert not (tmp_path / "out.jsonl").exists()
    assert store.rows("predictions").num_rows == 0
    before = store.snapshot()
    fill(store, {"guide/keys.md": "The cellar key is kept by Bo Lind."})
    work = tmp_path / ".out.jsonl.work.jsonl"
    work.write_bytes(work.read_bytes() + b'{"torn": ')
    generator = FirstSentence()
    summary = answer(generator)
    assert summary.resumed == 2
    assert len(generator.requests) == 3
    rows = lines_of(tmp_path / "out.jsonl")
    assert {row["snapshot"] for row in rows} == {before}
    assert len({row["run_id"] for row in rows}) == 1
    assert store.rows("predictions").num_rows == 5


def test_another_input_or_model_starts_anew(answer: Answerer, questions: Path) -> None:
    class Dies(FirstSentence):
        def stream(self, request: Any, cancellation: Any = None) -> Any:
            if len(self.requests) == 3:
                raise KeyboardInterrupt
            return super().stream(request, cancellation)

    with pytest.raises(KeyboardInterrupt):
        answer(Dies())
    assert answer(FirstSentence("other")).resumed == 0
    with pytest.raises(KeyboardInterrupt):
        answer(Dies())
    questions.write_text(json.dumps({"question": "Do dogs travel free?"}), encoding="utf-8")
    assert answer().resumed == 0


def test_a_run_that_starts_anew_has_an_id_of_its_own(
    answer: Answerer, store: FeatureStore, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"

    class InTheWay(FirstSentence):
        def stream(self, request: Any, cancellation: Any = None) -> Any:
            output.mkdir(exist_ok=True)
            return super().stream(request, cancellation)

    with pytest.raises(IsADirectoryError):
        answer(InTheWay())
    (lost,) = set(store.rows("predictions")["run_id"].to_pylist())
    output.rmdir()
    summary = answer(FirstSentence("other"))
    assert summary.run_id != lost
    assert Path(summary.contract["report"]).stem == summary.run_id
    stored = store.rows("predictions", where=f"run_id = '{summary.run_id}'").to_pylist()
    assert [(row["prediction_id"], row["model"]) for row in stored] == [
        (row["prediction_id"], "other") for row in lines_of(output)
    ]


def test_a_run_whose_snapshot_is_gone_starts_anew(answer: Answerer, store: FeatureStore) -> None:
    class Deletes(FirstSentence):
        def stream(self, request: Any, cancellation: Any = None) -> Any:
            if len(self.requests) == 3:
                fill(store, {"guide/keys.md": "The cellar key is kept by Bo Lind."})
                store.purge()
                raise KeyboardInterrupt
            return super().stream(request, cancellation)

    with pytest.raises(KeyboardInterrupt):
        answer(Deletes())
    summary = answer()
    assert (summary.resumed, summary.snapshot) == (0, store.snapshot())
    assert summary.contract["ok"]


@pytest.mark.parametrize("damage", [b"\x00\x00\n", b'{"run_id": "x"}\n', b"[]\n", b"3\n"])
def test_damaged_work_is_put_aside(answer: Answerer, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / ".out.jsonl.work.jsonl").write_bytes(damage)
    assert answer().resumed == 0
    assert (tmp_path / ".out.jsonl.work.damaged").read_bytes() == damage


def test_one_bad_question_does_not_take_the_others_down(
    answer: Answerer, questions: Path, tmp_path: Path
) -> None:
    with questions.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"id": "long", "question": "word " * 4000}) + "\n")
    summary = answer()
    rows = lines_of(tmp_path / "out.jsonl")
    assert summary.failed == 1
    assert [row["question_id"] for row in rows if row["error"]] == ["long"]
    assert "tokens" in rows[-1]["error"]
    assert summary.contract["missed"] == ["failures"]


def test_an_engine_that_is_down_ends_a_run_that_can_go_on(answer: Answerer, tmp_path: Path) -> None:
    class Down(FirstSentence):
        def generate(self, requests: Any) -> Any:
            if len(self.answered) >= 2:
                raise EngineDown("The server has failed several times in a row.")
            self.answered += requests
            return super().generate(requests)

        answered: ClassVar[list[Any]] = []

    with pytest.raises(EngineDown):
        answer(Down())
    assert not (tmp_path / "out.jsonl").exists()
    summary = answer()
    assert (summary.failed, summary.resumed) == (0, 2)


def test_a_failing_store_is_not_a_failed_question(answer: Answerer, store: FeatureStore) -> None:
    class Breaks(FirstSentence):
        def generate(self, requests: Any) -> Any:
            raise StoreError("The disk is gone.")

    with pytest.raises(StoreError):
        answer(Breaks())
    assert store.rows("predictions").num_rows == 0


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_inputs_and_outputs_of_every_kind(answer: Answerer, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"in{suffix}"
    if suffix == ".txt":
        source.write_text("\n".join(QUESTIONS) + "\n\n", encoding="utf-8")
    elif suffix == ".csv":
        source.write_text("id,question\n" + "".join(f"{n},{q}\n" for n, q in enumerate(QUESTIONS)))
    else:
        pq.write_table(pa.table({"question": QUESTIONS}), source)
    output = "out.csv" if suffix == ".txt" else "out.parquet"
    assert answer(source=source, output=output).questions == 5
    if output.endswith("csv"):
        with (tmp_path / output).open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["question"] for row in rows] == QUESTIONS
        assert json.loads(rows[0]["chunk_ids"])
    else:
        assert pq.read_table(tmp_path / output)["question"].to_pylist() == QUESTIONS


def test_the_same_line_twice_is_answered_twice(answer: Answerer, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join([QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]]), encoding="utf-8")
    assert answer(source=source).questions == 3
    first, _, again = lines_of(tmp_path / "out.jsonl")
    assert (first["answer"], again["question_id"]) == (again["answer"], f"{first['question_id']}-2")


def test_bad_inputs_are_refused_before_anything_is_computed(
    answer: Answerer, tmp_path: Path, settings: Settings
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(ContractViolation, match="at least one question"):
        answer(source=empty)
    twice = tmp_path / "twice.csv"
    twice.write_text("id,question\n1,a?\n1,b?\n")
    with pytest.raises(ContractViolation, match="own id"):
        answer(source=twice)
    with pytest.raises(SourceError):
        answer(source=tmp_path / "missing.csv")
    gap = tmp_path / "gap.csv"
    gap.write_text("id,question\n1,a?\n,\n\n2,\n")
    with pytest.raises(SourceError, match="line 5"):
        answer(source=gap)
    gap.write_text("id,question\n1,a?\n,\n\n2\n")
    with pytest.raises(SourceError, match="line 5"):
        answer(source=gap)
    nameless = tmp_path / "nameless.csv"
    nameless.write_text("text\nx\n")
    with pytest.raises(SourceError):
        answer(source=nameless)
    with pytest.raises(ConfigError, match="format"):
        answer(output="out.docx")
    with pytest.raises(ConfigError, match="written"):
        answer(output="no/such/out.jsonl")


def test_a_dry_run_writes_nothing(
    answer: Answerer, tmp_path: Path, store: FeatureStore, settings: Settings
) -> None:
    summary = answer(dry_run=True)
    assert summary.to_dict()["dry_run"] is True
    assert not (tmp_path / "out.jsonl").exists()
    assert not settings.storage.reports.exists()
    assert store.rows("predictions").num_rows == 0
