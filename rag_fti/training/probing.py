"""What a model can do without changing its results: found out by trying, not by its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rag_fti.training.batches import PackedBatches
from rag_fti.training.examples import Example

_LEAK_TOLERANCE = 1e-4
_ARITHMETIC_TOLERANCE = 0.1
"""In standard deviations of the logits: bfloat16 sums in another order differ by less."""


@dataclass(frozen=True)
class Capabilities:
    """What may be switched on."""

    packing: bool
    trim_logits: bool
    note: str
    """Why something is off; empty when all is on."""


def probe(model: Any, examples: Sequence[Example], *, pad_token_id: int) -> Capabilities:
    """Try packed rows and trimmed logits on a few examples.

    Packing is right when an example's logits do not change as its neighbour in the row does, and
    are those it gets alone. Trimming is right when the loss stays the same.

    Args:
        model: The model in the arithmetic it will train in.
        examples: Examples of the data; the shortest two are used.
        pad_token_id: Padding token.
    """
    parameters = inspect.signature(_bare(model).forward).parameters
    if "position_ids" not in parameters:
        return Capabilities(False, False, f"{type(_bare(model)).__name__} takes no position_ids")
    few = sorted(examples, key=len)[:2]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _try(model, few[0], few[-1], pad_token_id, "logits_to_keep" in parameters)
    finally:
        model.train(was_training)


def _try(
    model: Any, first: Example, second: Example, pad_token_id: int, can_trim: bool
) -> Capabilities:
    plain = PackedBatches(pad_token_id, trim_logits=False)
    reversed_first = Example(tuple(reversed(first.input_ids)), first.prompt_length)
    alone = _run(model, plain([(second,)])).logits[0]
    packed = _run(model, plain([(first, second)]))
    beside = packed.logits[0, len(first) :]
    beside_other = _run(model, plain([(reversed_first, second)])).logits[0, len(first) :]
    scale = float(alone.float().std()) or 1.0
    leak = float((beside - beside_other).abs().max()) / scale
    change = float((beside - alone).abs().max()) / scale
    if leak > _LEAK_TOLERANCE or change > _ARITHMETIC_TOLERANCE:
        return Capabilities(
            False,
            False,
            f"packed examples change one another's logits (by {leak:.2g} and {change:.2g} "
            "standard deviations)",
        )
    if not can_trim:
        return Capabilities(True, False, "the model cannot leave out logits")
    trimmed = float(_run(model, PackedBatches(pad_token_id, True)([(first, second)])).loss)
    whole = float(packed.loss)
    if abs(trimmed - whole) > 1e-2 * max(abs(whole), 1e-3):
        return Capabilities(
            True, False, f"trimmed logits gave loss {trimmed:.4f}, all of them {whole:.4f}"
        )
    return Capabilities(True, True, "")


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _run(model: Any, batch: dict[str, Tensor]) -> Any:
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False)
