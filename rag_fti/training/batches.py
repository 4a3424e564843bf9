"""Rows of examples as tensors.

A *row* is a tuple of examples. A packed row holds several: their positions start again at 0, from
which transformers builds a block-diagonal attention mask, so they do not see one another
(:mod:`~rag_fti.training.probing` makes sure the model at hand does this).

Where the model can leave out logits (``logits_to_keep``), only the positions that predict a
completion token go through the language model head. In retrieval-augmented data that is a few
tokens in a hundred, and the head is a quarter of a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rag_fti.training.examples import Example

IGNORED = -100
Row = tuple[Example, ...]


@dataclass(frozen=True)
class PackedBatches:
    """Collates packed rows for causal models."""

    pad_token_id: int
    trim_logits: bool
    """Compute logits only where a label is."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Tensors of a batch of rows.

        Returns:
            ``input_ids``, ``position_ids`` and ``labels``, int64 ``(rows, longest)``; with trimmed
            logits labels as in :func:`_trimmed`. There is no attention mask: padding stands at
            the end, and its positions make it a sequence of its own.
        """
        width = max(sum(len(example) for example in row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            column = 0
            for example in row:
                end = column + len(example)
                ids[number, column:end] = torch.tensor(example.input_ids)
                positions[number, column:end] = torch.arange(len(example))
                first = column + example.prompt_length
                labels[number, first:end] = ids[number, first:end]
                column = end
            positions[number, column:] = torch.arange(width - column)
        batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
        return _trimmed(batch) if self.trim_logits else batch


@dataclass(frozen=True)
class PaddedBatches:
    """Collates rows of one example each, padded on the right, with an attention mask."""

    pad_token_id: int
    trim_logits: bool = False
    """Compute logits only where a label is; rows of similar length share most such columns."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Tensors of a batch: ``input_ids``, ``attention_mask`` and ``labels``.

        Returns:
            int64 ``(rows, longest)`` each; with trimmed logits labels as in :func:`_trimmed`.
        """
        examples = [example for row in rows for example in row]
        width = max(len(example) for example in examples)
        ids = torch.full((len(examples), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(examples), width), dtype=torch.long)
        labels = torch.full((len(examples), width), IGNORED, dtype=torch.long)
        for number, example in enumerate(examples):
            length = len(example)
            ids[number, :length] = torch.tensor(example.input_ids)
            mask[number, :length] = 1
            labels[number, example.prompt_length : length] = ids[
                number, example.prompt_length : length
            ]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return _trimmed(batch) if self.trim_logits else batch


def _trimmed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with ``logits_to_keep``, int64 ``(kept,)``: columns where a row predicts a label.

    ``labels`` = ``shift_labels``, int64 ``(rows, kept)``, are the tokens to predict there.
    """
    targets = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    kept = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
    labels = targets[:, kept]
    return {**batch, "labels": labels, "shift_labels": labels, "logits_to_keep": kept}
