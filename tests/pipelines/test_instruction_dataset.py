from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import instruction_dataset
from rag_fti import prompts, schemas
from rag_fti.config import Settings, load_settings
from rag_fti.datasets import open_dataset
from rag_fti.datasets.near_duplicates import jaccard, question_shingles
from rag_fti.errors import ConfigError, ContractViolation, SourceError
from rag_fti.evaluation.questions import read_questions
from rag_fti.feature_store import FeatureStore
from rag_fti.retrieval import build_retriever, pack_passages
from tests.features.made_up import HashEmbedder
from tests.pipelines.flow import ingested, settings_for, write_questions
from tests.training.tiny import build_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def settings(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    yield ingested(tmp_path_factory.mktemp("project"), llama)


@pytest.fixture(scope="module")
def summary(settings: Settings) -> dict:
    return instruction_dataset.run(settings, embedder=HashEmbedder()).to_dict()


def all_rows(settings: Settings, summary: dict) -> list[dict]:
    version = open_dataset(settings.storage.datasets_uri, summary["dataset"])
    version.verify()
    return [
        {**row, "split": split}
        for split in ("train", "validation", "test")
        for row in version.rows(split).to_pylist()
    ]


def test_the_summary_tells_what_was_built(settings: Settings, summary: dict) -> None:
    assert json.loads(json.dumps(summary)) == summary
    assert summary["created"] and summary["contract"]["ok"]
    assert summary["generators"]["structure"] > 20 and summary["generators"]["pairs"] >= 5
    assert summary["filters"]["held out"] == 7
    assert all(summary["splits"][split] > 0 for split in ("train", "validation", "test"))
    manifest = open_dataset(settings.storage.datasets_uri, summary["dataset"]).manifest
    store = FeatureStore.open(settings.storage.features_uri)
    assert manifest["embedder"] == store.recipe().embedder.to_dict()
    assert manifest["chunker_digest"] == store.recipe().chunker_digest
    tag = "dataset-" + summary["dataset"].replace("@", "-")
    assert store.tags()[tag] == summary["snapshot"] == manifest["snapshot"]


def test_building_again_gives_the_same_version(settings: Settings, summary: dict) -> None:
    again = instruction_dataset.run(settings, embedder=HashEmbedder())
    assert again.dataset == summary["dataset"] and not again.created


def test_contexts_are_what_serving_retrieves(settings: Settings, summary: dict) -> None:
    from rag_fti.models.causal import load_tokenizer

    retriever = build_retriever(settings, embedder=HashEmbedder())
    tokenizer = load_tokenizer(Path(settings.training.base_model))
    same = 0
    rows = [row for row in all_rows(settings, summary) if row["answerable"]]
    for row in rows:
        served = retriever.retrieve(row["question"], at=summary["snapshot"])
        hits, passages = pack_passages(
            served.hits,
            count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
            budget=settings.retrieval.context_tokens,
        )
        if set(row["supporting_chunk_ids"]) & {hit.chunk_id for hit in hits}:
            same += 1
            assert row["messages"][:-1] == prompts.answer_messages(row["question"], passages)
    assert same == pytest.approx(summary["retrieval_recall"] * len(rows), abs=0.5)
    assert same > 0.5 * len(rows)


def test_answers_stand_in_the_passage_they_cite(settings: Settings, summary: dict) -> None:
    for row in all_rows(settings, summary):
        target = row["messages"][-1]["content"]
        if not row["answerable"]:
            assert target == prompts.ABSTENTION and not row["supporting_chunk_ids"]
            continue
        (number,) = prompts.cited_numbers(target)
        blocks = re.findall(r"<passage>.*?</passage>", row["messages"][1]["content"], re.DOTALL)
        assert row["answer"] in blocks[number - 1]
        assert row["context_chunk_ids"][number - 1] in row["supporting_chunk_ids"]


def test_splits_share_nothing(settings: Settings, summary: dict) -> None:
    rows = all_rows(settings, summary)
    for one in ("train", "validation", "test"):
        for other in ("train", "validation", "test"):
            if one == other:
                continue
            left = [r for r in rows if r["split"] == one]
            right = [r for r in rows if r["split"] == other]
            assert not {r["group"] for r in left} & {r["group"] for r in right}
            for a in left:
                for b in right:
                    pair = question_shingles(a["question"]), question_shingles(b["question"])
                    assert jaccard(*pair) < settings.dataset.near_duplicate_similarity
    twins = {r["split"] for r in rows if "Jarrow" in r["question"] and r["answerable"]}
    assert len(twins) <= 1


def test_held_out_questions_are_not_in_the_dataset(settings: Settings, summary: dict) -> None:
    held = [q for q in read_questions(settings.dataset.pairs[0]) if q.held_out]
    rows = all_rows(settings, summary)
    assert held
    for question in held:
        for row in rows:
            near = jaccard(question_shingles(question.question), question_shingles(row["question"]))
            assert near < settings.dataset.near_duplicate_similarity
            assert not (question.answers and row["answer"] == question.answers[0])


def test_a_held_out_pair_is_not_trained_on_where_another_generator_asks_it(
    settings: Settings, summary: dict, tmp_path: Path
) -> None:
    made = [row for row in all_rows(settings, summary) if row["generator"] == "structure"]
    held = next(row for row in made if row["split"] == "train")
    line = {"question": held["question"], "answers": [held["answer"]], "held_out": True}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    changes = {"pairs": (path,), "name": "own"}
    changed = settings.model_copy(update={"dataset": settings.dataset.model_copy(update=changes)})
    own = instruction_dataset.run(changed, embedder=HashEmbedder()).to_dict()
    assert own["filters"]["same as an evaluation question"] >= 1
    assert held["question"] not in {row["question"] for row in all_rows(changed, own)}


def test_all_that_evaluation_asks_is_kept_out(settings: Settings) -> None:
    update = {"held_out_only": False}
    changed = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update=update)}
    )
    made = instruction_dataset.run(changed, embedder=HashEmbedder(), dry_run=True)
    assert "pairs" not in made.generators


def test_a_model_words_the_questions_that_rules_found(settings: Settings, summary: dict) -> None:
    """A random model: its nonsense is filtered, and the answers are still the rules' own."""
    section = settings.dataset.model_copy(
        update={"generators": ("pairs", "model"), "name": "worded"}
    )
    changed = settings.model_copy(update={"dataset": section})
    made = instruction_dataset.run(changed, embedder=HashEmbedder()).to_dict()
    assert made["contract"]["ok"]
    worded = [row for row in all_rows(changed, made) if row["generator"] == "model"]
    by_rules = [row for row in all_rows(settings, summary) if row["generator"] == "structure"]
    assert len(worded) == made["generators"]["model"] >= 1
    assert len(worded) + sum(made["filters"].values()) > len(by_rules)
    assert {row["answer"] for row in worded} <= {row["answer"] for row in by_rules}
    assert not {row["question"] for row in worded} & {row["question"] for row in by_rules}
    assert all(row["question"].strip() for row in worded)


def test_preferences_give_away_nothing_that_is_judged_by(settings: Settings, summary: dict) -> None:
    store = FeatureStore.open(settings.storage.features_uri)
    rows = [row for row in all_rows(settings, summary) if row["answerable"]]
    schema = schemas.inference_log_schema()
    empty = {f.name: "" if f.type == pa.string() else 0 for f in schema} | {
        f.name: [] for f in schema if pa.types.is_list(f.type)
    }
    now = datetime.now(UTC)
    logged = [
        {
            **empty,
            "response_id": row["example_id"],
            "created_at": now,
            "question": row["question"],
            "answer": "something else",
            "abstained": False,
            "chunk_ids": row["context_chunk_ids"],
        }
        for row in rows
    ]
    store.append("inference_log", logged)
    store.append(
        "feedback",
        [
            {
                "feedback_id": row["example_id"],
                "response_id": row["example_id"],
                "created_at": now,
                "key_id": "",
                "rating": -1,
                "correction": row["answer"],
                "comment": "",
            }
            for row in rows
        ],
    )
    section = settings.dataset.model_copy(
        update={"generators": ("pairs", "structure", "feedback"), "name": "corrected"}
    )
    changed = settings.model_copy(update={"dataset": section})
    made = instruction_dataset.run(changed, embedder=HashEmbedder()).to_dict()
    version = open_dataset(settings.storage.datasets_uri, made["dataset"])
    pairs = version.rows("preferences").to_pylist()
    left_out = made["filters"]["preference of a held-out question or document"]
    assert pairs and left_out and len(pairs) + left_out <= len(rows)
    asked = {pair["prompt"][-1]["content"].split("\n\n")[0] for pair in pairs}
    judged_by = [row for row in all_rows(changed, made) if row["split"] != "train"]
    assert asked.isdisjoint(row["question"] for row in judged_by)
    assert all(pair["document_ids"] for pair in pairs)


def test_a_dry_run_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"datasets": str(tmp_path / "d")})}
    )
    summary = instruction_dataset.run(other, embedder=HashEmbedder(), dry_run=True)
    assert summary.dataset == "" and summary.splits["train"] > 0
    assert not (tmp_path / "d").exists()
    assert summary.contract["report"] == ""


def test_a_dry_run_asks_no_teacher(settings: Settings) -> None:
    teacher = settings.dataset.teacher.model_copy(
        update={"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    )
    update = {"generators": ("structure", "teacher"), "teacher": teacher}
    other = settings.model_copy(update={"dataset": settings.dataset.model_copy(update=update)})
    summary = instruction_dataset.run(other, embedder=HashEmbedder(), dry_run=True)
    assert summary.filters["over the budget"] > 0
    assert not any(reason.startswith("teacher:") for reason in summary.filters)


def test_an_empty_store_breaks_the_precondition(tmp_path: Path, llama: Path) -> None:
    settings = settings_for(tmp_path, llama, write_questions(tmp_path / "q.jsonl"))
    with pytest.raises(ContractViolation, match="Ingest documents first"):
        instruction_dataset.run(settings, embedder=HashEmbedder())


def test_another_embedder_breaks_the_precondition(settings: Settings) -> None:
    with pytest.raises(ContractViolation, match=r"one recipe: got .*max_tokens"):
        instruction_dataset.run(settings, embedder=HashEmbedder(max_tokens=64))


def test_bad_inputs_are_named(settings: Settings, tmp_path: Path) -> None:
    def with_dataset(**values: object) -> Settings:
        return settings.model_copy(update={"dataset": settings.dataset.model_copy(update=values)})

    with pytest.raises(SourceError, match="Cannot read the question file"):
        instruction_dataset.run(
            with_dataset(pairs=(tmp_path / "none.jsonl",)), embedder=HashEmbedder()
        )
    with pytest.raises(ConfigError, match="teacher generator needs"):
        instruction_dataset.run(with_dataset(generators=("teacher",)), embedder=HashEmbedder())
    assert load_settings(files=[Path("configs/instruction_dataset.yaml")]).dataset.seed == 17
