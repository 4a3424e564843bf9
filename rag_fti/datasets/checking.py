"""Checks of finished rows that trust nothing but the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_fti import prompts
from rag_fti.alignment import align
from rag_fti.datasets.building import Built
from rag_fti.datasets.filters import EvaluationQuestion
from rag_fti.datasets.near_duplicates import question_index, question_shingles
from rag_fti.datasets.splitting import measure_leakage

_PASSAGE = re.compile(r"<passage>\[(\d+)\][^\n]*\n(.*?)</passage>", re.DOTALL)


@dataclass(frozen=True)
class RowCheck:
    """Faults found."""

    unsupported: int
    """Rows whose answer does not stand in every passage that the target cites."""
    wrong_abstentions: int
    """Rows that abstain with a supporting passage, or answer without one."""


def measure(
    built: Built, *, evaluation: Sequence[EvaluationQuestion], similarity: float
) -> dict[str, Any]:
    """What the rows of a dataset are like, whatever the steps before believed.

    Args:
        built: The rows.
        evaluation: Questions that must not be among them.
        similarity: Jaccard similarity of questions that counts as a near duplicate.

    Returns:
        Numbers by the names that the pipeline's contract reads; shares in [0, 1].
    """
    leakage = measure_leakage(
        built.candidates,
        [row["group"] for row in built.rows],
        [row["split"] for row in built.rows],
        similarity=similarity,
    )
    held = question_index((item.question for item in evaluation), similarity=similarity)
    checked = check_rows(built.rows)
    rows = max(1, len(built.rows))
    return {
        "rows": len(built.rows),
        "train_rows": built.splits["train"],
        "unsupported_rows": checked.unsupported,
        "wrong_abstentions": checked.wrong_abstentions,
        "leaks": leakage.total,
        "evaluation_leaks": sum(
            bool(held.find(question_shingles(row["question"]))) for row in built.rows
        ),
        "unanswerable_share": sum(not row["answerable"] for row in built.rows) / rows,
        "natural_share": sum(not c.answerable for c in built.candidates) / rows,
        "retrieval_recall": round(built.retrieval_recall, 4),
    }


def check_rows(rows: Sequence[Mapping[str, Any]]) -> RowCheck:
    """Read prompts and targets as a model sees them and look for contradictions."""
    unsupported = wrong = 0
    for row in rows:
        target = row["messages"][-1]["content"]
        abstains = prompts.is_abstention(target)
        wrong += abstains == row["answerable"] or abstains == bool(row["supporting_chunk_ids"])
        if abstains:
            continue
        shown = {
            int(number): text for number, text in _PASSAGE.findall(row["messages"][-2]["content"])
        }
        cited = prompts.cited_numbers(target)
        answer = prompts.quote(prompts.without_markers(target))
        unsupported += not cited or any(align(answer, shown.get(n, "")) is None for n in cited)
    return RowCheck(unsupported, wrong)
