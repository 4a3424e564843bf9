"""What the model says to a few questions, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from rag_fti.models.control_tokens import control_pattern
from rag_fti.models.local import context_window, end_ids
from rag_fti.training.examples import prompt_ids


def generate_samples(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    adapted: bool,
    max_tokens: int = 48,
) -> list[str]:
    """Greedy replies to the prompts of some rows.

    Args:
        model: A model with an adapter.
        tokenizer: Its tokenizer.
        rows: Rows of an instruction dataset whose prompts leave room for a reply.
        adapted: With the adapter, or as the base model.
        max_tokens: Longest reply in tokens.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    control = control_pattern(tokenizer)
    window = context_window(model, tokenizer)
    replies = []
    try:
        with torch.no_grad(), nullcontext() if adapted else model.disable_adapter():
            for row in rows:
                ids = prompt_ids(row, tokenizer, control=control)
                prompt = torch.tensor([ids], device=device)
                output = model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=min(max_tokens, window - len(ids)),
                    use_cache=True,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=sorted(end_ids(model, tokenizer)),
                )
                reply = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
                replies.append(str(reply).strip())
    finally:
        model.train(was_training)
    return replies


def sample_rows(rows: Sequence[Mapping[str, Any]], *, count: int) -> list[Mapping[str, Any]]:
    """Some rows, spread evenly, with at least one unanswerable where there is any."""
    if not rows:
        return []
    step = max(1, len(rows) // count)
    chosen = list(rows[::step][:count])
    unanswerable = [row for row in rows if not row["answerable"]]
    if unanswerable and all(row["answerable"] for row in chosen):
        chosen[-1] = unanswerable[0]
    return chosen
