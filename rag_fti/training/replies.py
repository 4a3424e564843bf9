"""What a freshly trained model says to the validation split, through the generator that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rag_fti import prompts
from rag_fti.alignment import align, within_cell
from rag_fti.evaluation.answers import best_f1
from rag_fti.evaluation.calibration import Reply
from rag_fti.models.local import LocalGenerator
from rag_fti.progress import Progress
from rag_fti.protocols import GenerationRequest

_ROWS_AT_ONCE = 16


def validation_replies(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int,
    progress: Progress,
) -> list[Reply]:
    """Answer rows that were not trained on.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        rows: Rows of the validation split of an instruction dataset.
        max_tokens: Most tokens of an answer.
        progress: Receives progress.
    """
    was_training = model.training
    model.eval()
    generator = LocalGenerator(
        model=model, tokenizer=tokenizer, name="calibration", max_batch=_ROWS_AT_ONCE
    )
    replies = []
    try:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            made = generator.generate(
                [
                    GenerationRequest(
                        messages=tuple(row["messages"][:-1]), max_tokens=max_tokens, temperature=0.0
                    )
                    for row in part
                ]
            )
            replies += [
                _reply(row, generation.text, generation.confidence or 0.0)
                for row, generation in zip(part, made, strict=True)
            ]
            progress.update("calibrating", len(replies), len(rows))
    finally:
        generator.close()
        model.train(was_training)
    return replies


def _reply(row: Mapping[str, Any], text: str, confidence: float) -> Reply:
    words = prompts.without_markers(text)
    # As in serving, a tokenizer that loses case and spaces is made up for from the passages.
    shown = row["messages"][-2]["content"]
    found = align(words, shown)
    said = within_cell(found, shown).text if found else words
    answerable = bool(row["answerable"])
    return Reply(
        confidence=confidence,
        score=best_f1(said, [row["answer"]]) if answerable else 0.0,
        answerable=answerable,
        abstained=not prompts.says_something(text) or prompts.is_abstention(text),
    )
