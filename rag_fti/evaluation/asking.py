"""The questions that models are judged by, and asking them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rag_fti.datasets.candidates import RULES
from rag_fti.evaluation.questions import read_questions, supporting_chunks
from rag_fti.evaluation.scoring import Judged, judge
from rag_fti.progress import Progress
from rag_fti.schemas import Answer

if TYPE_CHECKING:
    from rag_fti.datasets import DatasetVersion

TEST_SPLIT = "test split"
Drawn = TypeVar("Drawn")


class Answers(Protocol):
    """An inference engine, as far as it is needed here."""

    def answer_many(
        self,
        questions: Sequence[str],
        *,
        where: str | None,
        at: str,
        collections: Sequence[str] | None,
    ) -> Sequence[Answer]:
        """One answer per question, in order."""
        ...


@dataclass(frozen=True)
class Item:
    """One question to ask."""

    id: str
    source: str
    """Name of its question file, or :data:`TEST_SPLIT`."""
    question: str
    accepted: tuple[str, ...]
    answerable: bool
    at: str
    """State of the store to ask."""
    spans: tuple[Mapping[str, Any], ...] = ()
    supporting: frozenset[str] = frozenset()
    """Chunks that hold the answer, where they are known without looking."""
    withheld: tuple[str, ...] = ()
    """Chunks that are not to be found."""
    collection: str = ""
    """The only one to search; empty searches all."""
    by_rules: bool = False
    """Whether rules made the question, in the words of the text."""


@dataclass
class Asked:
    """The answers of one model."""

    judged: list[Judged] = field(default_factory=list)
    """In the order of the questions."""
    snapshots: set[tuple[str, str]] = field(default_factory=set)
    """Question ids with the states they were answered on."""


def items_of_files(
    files: Sequence[Path],
    *,
    held_out_only: bool,
    most: int,
    at: str,
    progress: Progress,
    seed: int = 0,
) -> Iterator[Item]:
    """Questions of files.

    Args:
        files: JSONL or CSV; one that is named twice is read once.
        held_out_only: Of a file with held-out lines take only those.
        most: Most questions of a file; 0 takes all.
        at: State of the store to ask.
        progress: Told of questions that cannot be judged.
        seed: Decides which are taken.

    Raises:
        SourceError: If a file is wrong.
    """
    names = Counter(path.name for path in files)
    for path in dict.fromkeys(files):
        source = path.name if names[path.name] == 1 else str(path)
        questions = read_questions(path)
        if held_out_only and any(question.held_out for question in questions):
            questions = [question for question in questions if question.held_out]
        judgeable = [question for question in questions if question.judgeable]
        if len(judgeable) < len(questions):
            progress.note(
                f"{path}: {len(questions) - len(judgeable)} questions without an accepted answer, "
                "and not marked unanswerable, cannot be judged and are left out"
            )
        for question in drawn(judgeable, most, seed=seed):
            yield Item(
                id=f"{source}:{question.id}",
                source=source,
                question=question.question,
                accepted=question.answers,
                answerable=question.answerable,
                spans=question.spans,
                at=at,
            )


def items_of_test_split(
    dataset: DatasetVersion, *, most: int, at: str, seed: int = 0
) -> Iterator[Item]:
    """Questions of a dataset's test split, searched in what their contexts were found in.

    Args:
        dataset: The dataset.
        most: Most questions; 0 takes all.
        at: State of the store to ask.
        seed: Decides which are taken.
    """
    collection = str((dataset.manifest.get("settings") or {}).get("collection") or "")
    for row in drawn(dataset.rows("test").to_pylist(), most, seed=seed):
        yield Item(
            id=f"test:{row['example_id']}",
            source=TEST_SPLIT,
            question=row["question"],
            accepted=(row["answer"],) if row["answerable"] else (),
            answerable=row["answerable"],
            supporting=frozenset(row["supporting_chunk_ids"]),
            withheld=tuple(row["withheld_chunk_ids"] or ()),
            at=at,
            collection=collection,
            by_rules=row["generator"] == RULES,
        )


def drawn(items: Sequence[Drawn], most: int, *, seed: int) -> Sequence[Drawn]:
    """At most so many, in their order: the first ones would be those of a file's first documents.

    Args:
        items: What to draw from.
        most: How many; 0 keeps all.
        seed: Decides which.
    """
    if not most or len(items) <= most:
        return items
    return [items[n] for n in sorted(random.Random(seed).sample(range(len(items)), most))]


def ask(
    engine: Answers, items: Sequence[Item], *, batch: int, stage: str, progress: Progress
) -> Asked:
    """Let one model answer all questions and judge what it says.

    Args:
        engine: Holds the model.
        items: What to ask.
        batch: Questions answered together.
        stage: Name of the stage in progress.
        progress: Receives the count of questions.
    """
    asked = Asked()
    together: dict[tuple[str, str, tuple[str, ...]], list[Item]] = {}
    for item in items:
        together.setdefault((item.at, item.collection, item.withheld), []).append(item)
    for (at, collection, withheld), group in together.items():
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            answers = engine.answer_many(
                [item.question for item in part],
                where=_without(withheld),
                at=at,
                collections=[collection] if collection else None,
            )
            for item, answer in zip(part, answers, strict=True):
                asked.judged.append(_judge(item, answer))
                asked.snapshots.add((item.id, answer.snapshot))
            progress.update(stage, len(asked.judged), len(items))
    order = {item.id: number for number, item in enumerate(items)}
    asked.judged.sort(key=lambda judged: order[judged.question_id])
    return asked


def _without(chunk_ids: Sequence[str]) -> str | None:
    from rag_fti.feature_store import sql_string

    if not chunk_ids:
        return None
    return f"chunk_id NOT IN ({', '.join(map(sql_string, chunk_ids))})"


def _judge(item: Item, answer: Answer) -> Judged:
    supporting = item.supporting or supporting_chunks(
        answer.hits, spans=item.spans, answers=item.accepted if item.answerable else ()
    )
    return judge(
        answer,
        question_id=item.id,
        accepted=item.accepted,
        answerable=item.answerable,
        supporting_chunks=supporting,
        question_set="test_split" if item.source == TEST_SPLIT else "question_files",
    )
