"""What the special tokens of a prompt say: which token stands in which passage.

::

    [CLS] question …  <passage>[1] title … text</passage>  <passage>[2] …</passage>  <|answer|> …
    └── question ──┘  └───────── passage 1 ───────────┘  └──── passage 2 ────┘  └── answer …

The question attends to itself, a passage to itself and the question, the answer to everything
before it. Passages do not see one another, so a passage gets the same states whatever stands
beside it, and its positions start again after the question: a prompt of many passages needs no
more positions than its longest passage.

All of it is read from the token ids, the same way in training and in generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rag_fti.models.reader_config import ReaderConfig


@dataclass(frozen=True)
class PromptStructure:
    """Structure of a batch of token ids, every field of shape ``(batch, length)`` but two."""

    valid: Tensor
    """bool: not padding."""
    block: Tensor
    """int64: 0 for question and answer, n for the n-th passage."""
    answer: Tensor
    """bool: from the answer token on. All true in a row that has no answer token: such a row
    is read causally, as by any language model."""
    positions: Tensor
    """int64: row of the position table."""
    copyable: Tensor
    """bool: prompt tokens that an answer may copy."""
    marker: Tensor
    """bool: citation markers inside passages."""
    answer_start: Tensor
    """int64 ``(batch,)``: column of the answer token."""
    question_length: Tensor
    """int64 ``(batch,)``: tokens of the question, which is the answer token's position."""


def _last_seen(flags: Tensor, columns: Tensor) -> Tensor:
    """Column of the nearest true flag at or before each column, -1 where there is none."""
    return torch.where(flags, columns, -1).cummax(dim=1).values


def read_structure(input_ids: Tensor, valid: Tensor, config: ReaderConfig) -> PromptStructure:
    """Read passages and answer off the special tokens.

    Args:
        input_ids: int64 ``(batch, length)``; padding may stand on either side.
        valid: bool ``(batch, length)``, false at padding.
        config: Names the special token ids.
    """
    length = input_ids.shape[1]
    columns = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    opens = _last_seen((input_ids == config.passage_open_id) & valid, columns)
    closes = _last_seen((input_ids == config.passage_close_id) & valid, columns)
    closed_before = torch.cat([torch.full_like(closes[:, :1], -1), closes[:, :-1]], dim=1)
    cues = torch.where((input_ids == config.answer_id) & valid, columns, -1)
    first_valid = valid.long().argmax(dim=1)
    has_cue = cues.amax(dim=1) >= 0
    answer_start = torch.where(has_cue, cues.amax(dim=1), first_valid)
    answer = columns >= answer_start[:, None]

    inside = (opens > closed_before) & ~answer & valid
    number = ((input_ids == config.passage_open_id) & valid).long().cumsum(dim=1)
    block = torch.where(inside, number, 0)
    question = ~inside & ~answer & valid
    question_length = question.long().sum(dim=1)
    positions = torch.where(
        answer,
        question_length[:, None] + columns - answer_start[:, None],
        torch.where(
            inside, question_length[:, None] + columns - opens, question.long().cumsum(dim=1) - 1
        ),
    ).clamp(0, config.window_positions - 1)
    marker_ids = torch.tensor(config.marker_ids, dtype=input_ids.dtype, device=input_ids.device)
    fixed = torch.tensor(
        [config.passage_open_id, config.passage_close_id, config.answer_id],
        dtype=input_ids.dtype,
        device=input_ids.device,
    )
    started = columns > first_valid[:, None]
    return PromptStructure(
        valid=valid,
        block=block,
        answer=answer & valid,
        positions=positions,
        copyable=valid & ~answer & started & ~torch.isin(input_ids, fixed),
        marker=inside & torch.isin(input_ids, marker_ids),
        answer_start=answer_start,
        question_length=question_length,
    )


def rank_log_odds(block: Tensor, exponent: float) -> Tensor:
    """How much likelier each position's passage holds the answer than passages in any order would.

    The reader is trained on passages in random order. Where they stand in the order of retrieval,
    Bayes' rule adds the logarithm of ``P(n) * count`` to what it makes of the n-th of ``count``
    passages, with ``P(n)`` proportional to ``n ** -exponent``.

    Args:
        block: int64 ``(batch, length)``, passage of each position from 1, 0 outside.
        exponent: Of the power law; 0 for passages in any order.

    Returns:
        float32 ``(batch, length)``, 0 outside passages.
    """
    count = block.amax(dim=1, keepdim=True)
    ranks = torch.arange(1, int(count.max()) + 1, device=block.device)
    weights = ranks.float() ** -exponent * (ranks <= count)
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
    odds = (shares * count).clamp(min=1e-30).log()
    return torch.nn.functional.pad(odds, (1, 0)).gather(1, block)


def prompt_mask(structure: PromptStructure) -> Tensor:
    """Who may attend to whom: bool ``(batch, 1, length, length)``, query before key.

    Padding attends to itself alone, which keeps its (unused) states finite.
    """
    length = structure.block.shape[1]
    device = structure.block.device
    key_block, query_block = structure.block[:, None, :], structure.block[:, :, None]
    key_answer, query_answer = structure.answer[:, None, :], structure.answer[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    from_answer = query_answer & (~key_answer | causal)
    from_prompt = ~query_answer & ~key_answer & ((key_block == query_block) | (key_block == 0))
    allowed = (from_answer | from_prompt) & structure.valid[:, None, :]
    allowed = allowed | torch.eye(length, dtype=torch.bool, device=device)
    return allowed[:, None]


def continuation_mask(valid: Tensor, new: int) -> Tensor:
    """Mask for ``new`` answer tokens after a cached prefix.

    Args:
        valid: bool ``(batch, past + new)``, false at padding.
        new: Number of new tokens.

    Returns:
        bool ``(batch, 1, new, past + new)``.
    """
    total = valid.shape[1]
    causal = torch.ones(new, total, dtype=torch.bool, device=valid.device).tril(total - new)
    return (causal & valid[:, None, :])[:, None]
