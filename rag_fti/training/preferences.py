"""Preference optimisation: chosen over rejected replies to the same prompt.

Direct preference optimisation (Rafailov et al. 2023). The reference model is the base model
itself: the same weights with the adapter switched off, so that nothing is held twice. Prompts are
tokenized by the code that serving uses, which is why this is not left to a library that renders
them in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rag_fti.models.control_tokens import control_pattern
from rag_fti.protocols import Tokenizer
from rag_fti.training.batches import IGNORED, PaddedBatches, Row
from rag_fti.training.examples import encode
from rag_fti.training.fitting import Loss


def encode_pairs(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, *, end_token_id: int, max_tokens: int
) -> tuple[list[Row], int]:
    """Encode preference rows.

    Args:
        rows: Rows with ``prompt``, ``chosen`` and ``rejected`` messages.
        tokenizer: The base model's tokenizer.
        end_token_id: Token that ends the model's turn.
        max_tokens: Longest prompt with reply in tokens.

    Returns:
        Rows of two examples, the chosen one first, and how many pairs were too long.
    """
    pairs: list[Row] = []
    too_long = 0
    control = control_pattern(tokenizer)
    for row in rows:
        examples = [
            encode(
                row["prompt"], row[side][0], tokenizer, control=control, end_token_id=end_token_id
            )
            for side in ("chosen", "rejected")
        ]
        if max(map(len, examples)) > max_tokens:
            too_long += 1
        else:
            pairs.append(tuple(examples))
    return pairs, too_long


@dataclass(frozen=True)
class PairBatches:
    """Collates pairs: all chosen examples, then all rejected ones in the same order."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, int64 ``(2 * pairs, longest)``."""
        ordered = [(row[side],) for side in (0, 1) for row in rows]
        return PaddedBatches(self.pad_token_id)(ordered)


def preference_loss(beta: float) -> Loss:
    """The DPO loss of a batch of :class:`PairBatches`.

    Args:
        beta: How dearly a departure from the reference model is paid.
    """

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        policy = completion_log_probabilities(model, batch)
        # Several processes train a wrapped model, which has no disable_adapter.
        reference = reference_log_probabilities(getattr(model, "module", model), batch)
        chosen, rejected = (policy - reference).chunk(2)
        return -functional.logsigmoid(beta * (chosen - rejected)).mean()

    return loss


def completion_log_probabilities(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probability of each row's completion, float32 of shape ``(rows,)``, in nats."""
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    # Only where a token counts: the prompts times the vocabulary would be gigabytes.
    scores = functional.log_softmax(logits[:, :-1][counted].float(), dim=-1)
    picked = scores.gather(1, targets[counted][:, None])[:, 0]
    return picked.new_zeros(len(targets)).index_add(0, counted.nonzero()[:, 0], picked)


def reference_log_probabilities(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """What the base model gives each row's completion, without dropout or gradients.

    Returns:
        float32 of shape ``(rows,)``, in nats.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            return completion_log_probabilities(model, batch)
    finally:
        model.train(was_training)


def preference_accuracy(model: Any, rows: Sequence[Row], *, pad_token_id: int) -> float:
    """Share of pairs whose chosen reply gained more over the reference than the rejected one."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = 0
    try:
        with torch.no_grad():
            for row in rows:
                batch = {k: v.to(device) for k, v in PairBatches(pad_token_id)([row]).items()}
                policy = completion_log_probabilities(model, batch)
                reference = reference_log_probabilities(model, batch)
                chosen, rejected = (policy - reference).chunk(2)
                right += int((chosen > rejected).sum())
    finally:
        model.train(was_training)
    return right / len(rows)
