"""Thumbs and corrections of logged answers as candidates and as preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from rag_fti import ids, prompts
from rag_fti.alignment import align
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.filters import EvaluationQuestion
from rag_fti.datasets.near_duplicates import question_index, question_shingles
from rag_fti.schemas import Hit

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore

GENERATOR = "feedback"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))


def preferences_schema() -> pa.Schema:
    """One row per preference pair, as TRL's DPO reads it."""
    return pa.schema(
        [
            pa.field("response_id", pa.string(), nullable=False),
            pa.field("prompt", _MESSAGES, nullable=False),
            pa.field("chosen", _MESSAGES, nullable=False),
            pa.field("rejected", _MESSAGES, nullable=False),
            # Of all passages in the prompt; lineage follows them.
            pa.field("document_ids", pa.list_(pa.string()), nullable=False),
        ]
    )


@dataclass(frozen=True)
class Feedback:
    """What users said about answers."""

    candidates: tuple[Candidate, ...]
    preferences: tuple[dict[str, Any], ...]
    """Rows of :func:`preferences_schema` with two further keys: ``question``, and
    ``answer_document_ids`` of the documents that hold the answer."""
    dropped: dict[str, int]


def from_feedback(
    log: Sequence[Mapping[str, Any]],
    feedback: Sequence[Mapping[str, Any]],
    chunks: Mapping[str, Hit],
) -> Feedback:
    """Turn logged answers with feedback into training data.

    A thumb up makes the answer a candidate, supported by the chunks it cited. A correction makes
    the corrected answer a candidate and, as its context is known, a preference over what was
    said. An abstention that was approved or asked for holds for the passages it was said of. The
    last word counts where somebody changed their mind.

    Args:
        log: Rows of ``inference_log``.
        feedback: Rows of ``feedback``.
        chunks: Chunks of the snapshot by id; answers from chunks that are gone are left out.
    """
    latest: dict[str, Mapping[str, Any]] = {}
    for item in sorted(feedback, key=lambda row: row["created_at"]):
        latest[item["response_id"]] = item
    candidates: list[Candidate] = []
    preferences: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for entry in log:
        said = latest.get(entry["response_id"])
        if said is None:
            continue
        if not entry["question"]:
            dropped["feedback on a redacted answer"] += 1
            continue
        context = [chunks[chunk] for chunk in entry["chunk_ids"] if chunk in chunks]
        correction = said["correction"].strip()
        if said["rating"] > 0 and not correction:
            found = _liked(entry, context)
        elif correction:
            found = _corrected(entry, correction, context)
            if found is not None and len(context) == len(entry["chunk_ids"]):
                pair = _preference(entry, found, context)
                if pair["chosen"] == pair["rejected"]:
                    dropped["correction says what was said"] += 1
                else:
                    preferences.append(pair)
        else:
            dropped["thumb down without a correction"] += 1
            continue
        if found is None:
            dropped["feedback answer not in its chunks"] += 1
        else:
            candidates.append(found)
    return Feedback(tuple(candidates), tuple(preferences), dict(sorted(dropped.items())))


def read_feedback(store: FeatureStore) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was said and what it was said of: rows of ``inference_log`` and of ``feedback``."""
    feedback = store.rows("feedback").to_pylist()
    responses = pa.array({row["response_id"] for row in feedback}, pa.string())
    log = store.rows(
        "inference_log", columns=["response_id", "question", "answer", "abstained", "chunk_ids"]
    )
    said_of = log.filter(pc.is_in(log["response_id"], value_set=responses))
    return said_of.to_pylist(), feedback


def unseen_preferences(
    preferences: Sequence[dict[str, Any]],
    *,
    held: Sequence[Candidate],
    evaluation: Sequence[EvaluationQuestion],
    similarity: float,
) -> tuple[dict[str, Any], ...]:
    """Preference pairs, which are trained on, that give nothing away that models are judged by.

    Left out are near duplicates of evaluation questions and of validation and test rows, and
    answers in a document of those rows.

    Args:
        preferences: Pairs of :class:`Feedback`.
        held: Candidates of validation and test rows.
        evaluation: Questions of evaluation files.
        similarity: Jaccard similarity of questions that counts as a near duplicate.
    """
    asked = [*(item.question for item in evaluation), *(candidate.question for candidate in held)]
    index = question_index(asked, similarity=similarity)
    documents = {hit.document_id for candidate in held for hit in candidate.chunks}
    return tuple(
        pair
        for pair in preferences
        if documents.isdisjoint(pair["answer_document_ids"])
        and not index.find(question_shingles(pair["question"]))
    )


def _liked(entry: Mapping[str, Any], context: Sequence[Hit]) -> Candidate | None:
    if entry["abstained"]:
        return _unanswerable(entry, "thumb up")
    return _supported(entry, prompts.without_markers(entry["answer"]), context, "thumb up")


def _corrected(
    entry: Mapping[str, Any], correction: str, context: Sequence[Hit]
) -> Candidate | None:
    if prompts.is_abstention(correction):
        return _unanswerable(entry, "correction")
    return _supported(entry, prompts.without_markers(correction), context, "correction")


def _unanswerable(entry: Mapping[str, Any], rule: str) -> Candidate:
    shown = frozenset(entry["chunk_ids"])
    return Candidate(entry["question"], "", GENERATOR, (), rule, shown)


def _supported(
    entry: Mapping[str, Any], answer: str, context: Sequence[Hit], rule: str
) -> Candidate | None:
    holding = tuple(hit for hit in context if align(answer, hit.text) is not None)
    if not holding:
        return None
    return Candidate(entry["question"], answer, GENERATOR, holding, rule)


def _preference(
    entry: Mapping[str, Any], candidate: Candidate, context: Sequence[Hit]
) -> dict[str, Any]:
    passages = [prompts.Passage(hit.text, hit.title, hit.heading) for hit in context]
    numbers = [n for n, hit in enumerate(context, start=1) if hit in candidate.chunks][:1]
    chosen = prompts.answer_target(candidate.answer, numbers) if numbers else prompts.ABSTENTION
    return {
        "response_id": entry["response_id"],
        "question": entry["question"],
        "prompt": prompts.answer_messages(entry["question"], passages),
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": entry["answer"]}],
        "document_ids": list(dict.fromkeys(hit.document_id for hit in context)),
        "answer_document_ids": sorted({hit.document_id for hit in candidate.chunks}),
    }


def preferences_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Preference rows as a table, in the order of their ids."""
    ordered = sorted(rows, key=lambda row: ids.content_id(str(row["response_id"])))
    names = preferences_schema().names
    return pa.Table.from_pylist(
        [{name: row[name] for name in names} for row in ordered], schema=preferences_schema()
    )
