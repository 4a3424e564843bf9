"""What a freshly trained model says to the validation split, through the generator that serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rag_fti import prompts
from rag_fti.alignment import align, as_copied
from rag_fti.evaluation.answers import best_f1
from rag_fti.evaluation.calibration import Reply
from rag_fti.models.continuous import left_padded
from rag_fti.models.control_tokens import control_pattern
from rag_fti.models.local import LocalGenerator, single_token
from rag_fti.progress import Progress
from rag_fti.protocols import GenerationRequest
from rag_fti.training.examples import prompt_ids

_ROWS_AT_ONCE = 16


def validation_replies(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int,
    progress: Progress,
    abstain_bias: float = 0.0,
) -> list[Reply]:
    """Answer rows that were not trained on.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        rows: Rows of the validation split whose prompts leave room for a reply.
        max_tokens: Most tokens of an answer.
        progress: Receives progress.
        abstain_bias: See :class:`rag_fti.models.local.LocalGenerator`.
    """
    was_training = model.training
    model.eval()
    generator = LocalGenerator(
        model=model,
        tokenizer=tokenizer,
        name="calibration",
        max_batch=_ROWS_AT_ONCE,
        abstain_bias=abstain_bias,
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


@torch.inference_mode()
def abstention_margins(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> list[float]:
    """By how much the first logit of abstaining exceeds the greatest other one, of each row.

    Empty where the tokenizer has no token that is the whole abstention.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer.
        rows: Rows of an instruction dataset whose prompts leave room for a reply.
    """
    token = single_token(tokenizer, prompts.ABSTENTION)
    if token is None:
        return []
    was_training = model.training
    model.eval()
    control = control_pattern(tokenizer)
    asked = [prompt_ids(row, tokenizer, control=control) for row in rows]
    order = sorted(range(len(asked)), key=lambda n: len(asked[n]))
    margins = [0.0] * len(asked)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        part = order[start : start + _ROWS_AT_ONCE]
        ids, mask = left_padded([asked[n] for n in part], pad_id=tokenizer.pad_token_id)
        output = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), logits_to_keep=1
        )
        logits = output.logits[:, -1].float()
        own = logits[:, token].clone()
        logits[:, token] = -torch.inf
        found = (own - logits.amax(dim=-1)).tolist()
        for n, margin in zip(part, found, strict=True):
            margins[n] = margin
    model.train(was_training)
    return margins


def _reply(row: Mapping[str, Any], text: str, confidence: float) -> Reply:
    words = prompts.without_markers(text)
    # As in serving, a tokenizer that loses case and spaces is made up for from the passages.
    shown = row["messages"][-2]["content"]
    found = align(words, shown)
    said = as_copied(found, shown).text if found else words
    answerable = bool(row["answerable"])
    return Reply(
        confidence=confidence,
        score=best_f1(said, [row["answer"]]) if answerable else 0.0,
        answerable=answerable,
        abstained=not prompts.says_something(text) or prompts.is_abstention(text),
    )
