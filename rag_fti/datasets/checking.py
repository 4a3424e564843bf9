"""Checks of finished rows that trust nothing but the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_fti import prompts
from rag_fti.alignment import align

_PASSAGE = re.compile(r"<passage>\[(\d+)\][^\n]*\n(.*?)</passage>", re.DOTALL)


@dataclass(frozen=True)
class RowCheck:
    """Faults found."""

    unsupported: int
    """Rows whose answer does not stand in every passage that the target cites."""
    wrong_abstentions: int
    """Rows that abstain with a supporting passage, or answer without one."""


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
