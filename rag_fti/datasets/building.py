"""From filtered candidates to the rows of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rag_fti import ids, prompts, schemas
from rag_fti.datasets.candidates import RULES, Candidate
from rag_fti.datasets.contexts import SPARE_HITS, Context, with_answer, without_answer
from rag_fti.datasets.storage import SPLITS
from rag_fti.progress import Progress
from rag_fti.schemas import Hit

TASK = "answer"
UNANSWERABLE_SHARE = 0.1
"""Of the rows whose questions rules did not make, where nothing else is wanted."""
_BATCH = 64


class Retrieves(Protocol):
    """The serving retriever, as far as it is needed here."""

    def retrieve_many(
        self, questions: Sequence[str], *, k: int, at: str, collections: Sequence[str] | None
    ) -> Sequence[Any]:
        """Ranked hits of each question."""
        ...


@dataclass
class Built:
    """Rows and what was seen on the way."""

    rows: list[dict[str, Any]]
    """Rows with a further key ``split``."""
    candidates: list[Candidate]
    """The candidate of each row."""
    dropped: dict[str, int] = field(default_factory=dict)
    retrieved: int = 0
    """Answerable candidates whose supporting chunk was among the passages by itself."""
    inserted: int = 0
    """Answerable candidates for which it was put in."""
    wanted_unanswerable_share: float = 0.0
    """Of all rows."""

    @property
    def retrieval_recall(self) -> float:
        """Share of the questions for which the serving retriever finds the answer."""
        asked = self.retrieved + self.inserted
        return self.retrieved / asked if asked else 0.0

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(row["split"] == split for row in self.rows) for split in SPLITS}

    @property
    def generators(self) -> dict[str, int]:
        """Rows by generator."""
        return dict(sorted(Counter(row["generator"] for row in self.rows).items()))

    @property
    def rules(self) -> dict[str, int]:
        """Rows by what made them, most first."""
        return dict(Counter(c.rule or c.generator for c in self.candidates).most_common())

    @property
    def held(self) -> list[Candidate]:
        """Candidates of validation and test rows."""
        rows = zip(self.candidates, self.rows, strict=True)
        return [candidate for candidate, row in rows if row["split"] != "train"]

    def table(self, split: str) -> pa.Table:
        """Rows of one split."""
        rows = [
            {k: v for k, v in row.items() if k != "split"}
            for row in self.rows
            if row["split"] == split
        ]
        return pa.Table.from_pylist(rows, schema=schemas.instructions_schema())

    def tables(self) -> dict[str, pa.Table]:
        """Rows of each split."""
        return {split: self.table(split) for split in SPLITS}


def build_rows(
    candidates: Sequence[Candidate],
    *,
    groups: Sequence[str],
    splits: Mapping[str, str],
    retriever: Retrieves,
    snapshot: str,
    collections: Sequence[str] | None,
    passages: int,
    unanswerable_share: float | None,
    count_tokens: Callable[[str], int],
    budget: int,
    seed: int,
    progress: Progress,
) -> Built:
    """Give every candidate a context and a target.

    Args:
        candidates: Filtered candidates.
        groups: Group of each.
        splits: Split of each group.
        retriever: The serving retriever.
        snapshot: State of the store to search.
        collections: Collections to search; None for all.
        passages: Passages shown.
        unanswerable_share: Share of rows without the answer in their context, counting
            questions that the documents do not answer at all. None takes
            :data:`UNANSWERABLE_SHARE` of the questions that rules did not make, and none of
            theirs: these share their words with the answer's sentence, so that withholding it
            teaches to abstain wherever a question has words of its own.
        count_tokens: Tokens of a text as the model to be trained counts them.
        budget: Most tokens of all passages.
        seed: Decides which rows lose their answer, and where missed chunks are put in.
        progress: Receives progress.
    """
    asked = [c for c in candidates if unanswerable_share is not None or c.generator != RULES]
    natural = sum(not candidate.answerable for candidate in asked)
    wanted = len(asked) * (UNANSWERABLE_SHARE if unanswerable_share is None else unanswerable_share)
    share = max(0.0, wanted - natural) / max(1, len(asked) - natural)
    built = Built([], [], wanted_unanswerable_share=wanted / max(1, len(candidates)))
    for start in range(0, len(candidates), _BATCH):
        part = candidates[start : start + _BATCH]
        found = retriever.retrieve_many(
            [candidate.question for candidate in part],
            k=passages + SPARE_HITS,
            at=snapshot,
            collections=collections,
        )
        for offset, (candidate, result) in enumerate(zip(part, found, strict=True)):
            group = groups[start + offset]
            identity = ids.content_id("example", candidate.question, candidate.answer)
            random = np.random.default_rng([seed, int(identity[:12], 16)])
            spared = unanswerable_share is None and candidate.generator == RULES
            keep = candidate.answerable and (spared or random.random() >= share)
            context = (
                with_answer(
                    candidate, result.hits, passages=passages, count_tokens=count_tokens,
                    budget=budget, random=random,
                )
                if keep
                else without_answer(
                    candidate, result.hits, passages=passages, count_tokens=count_tokens,
                    budget=budget,
                )
            )  # fmt: skip
            reason = ""
            if context is None:
                reason = "answer does not fit the context" if keep else "no passage left"
            elif candidate.shown is not None and not candidate.shown.issuperset(
                hit.chunk_id for hit in context.hits
            ):
                reason = "abstention on other passages"
            if context is None or reason:
                built.dropped[reason] = built.dropped.get(reason, 0) + 1
                continue
            if keep:
                built.inserted += context.inserted
                built.retrieved += not context.inserted
            built.rows.append(_row(identity, candidate, context, group, splits[group]))
            built.candidates.append(candidate)
        progress.update(
            "retrieving contexts", min(start + _BATCH, len(candidates)), len(candidates)
        )
    return built


def _row(
    identity: str, candidate: Candidate, context: Context, group: str, split: str
) -> dict[str, Any]:
    answered = bool(context.supporting)
    target = (
        prompts.answer_target(candidate.answer, context.supporting[:1])
        if answered
        else prompts.ABSTENTION
    )
    messages = [
        *prompts.answer_messages(candidate.question, context.passages),
        {"role": "assistant", "content": target},
    ]
    sources: dict[str, Hit] = {}
    for hit in (*context.hits, *candidate.chunks):
        sources.setdefault(hit.document_id, hit)
    return {
        "example_id": identity,
        "task": TASK,
        "question": candidate.question,
        "answer": candidate.answer if answered else "",
        "answerable": answered,
        "messages": messages,
        "context_chunk_ids": [hit.chunk_id for hit in context.hits],
        "supporting_chunk_ids": [context.hits[n - 1].chunk_id for n in context.supporting],
        "withheld_chunk_ids": list(context.withheld),
        "document_ids": list(sources),
        "document_versions": [hit.document_version for hit in sources.values()],
        "group": group,
        "generator": candidate.generator,
        "split": split,
    }
