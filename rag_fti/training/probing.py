"""What a model can do without changing its results: found out by trying, not by its name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rag_fti.training.batches import PackedBatches, PaddedBatches
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
    few = sorted(examples, key=len)[:2]
    was_training = model.training
    model.eval()
    notes = []
    try:
        with torch.no_grad():
            if "position_ids" in parameters:
                notes.append(_packing_fault(model, few[0], few[-1], pad_token_id))
            else:
                notes.append(f"{type(_bare(model)).__name__} takes no position_ids")
            if "logits_to_keep" in parameters:
                notes.append(_trimming_fault(model, few, pad_token_id))
            else:
                notes.append("the model cannot leave out logits")
    finally:
        model.train(was_training)
    packing, trimming = (not note for note in notes)
    return Capabilities(packing, trimming, "; ".join(note for note in notes if note))


def _packing_fault(model: Any, first: Example, second: Example, pad_token_id: int) -> str:
    """Why examples must not share a row; empty if they may."""
    plain = PackedBatches(pad_token_id, trim_logits=False)
    reversed_first = Example(tuple(reversed(first.input_ids)), first.prompt_length)
    alone = _run(model, plain([(second,)])).logits[0]
    beside = _run(model, plain([(first, second)])).logits[0, len(first) :]
    beside_other = _run(model, plain([(reversed_first, second)])).logits[0, len(first) :]
    scale = float(alone.float().std()) or 1.0
    leak = float((beside - beside_other).abs().max()) / scale
    change = float((beside - alone).abs().max()) / scale
    if leak <= _LEAK_TOLERANCE and change <= _ARITHMETIC_TOLERANCE:
        return ""
    return (
        f"packed examples change one another's logits (by {leak:.2g} and {change:.2g} "
        "standard deviations)"
    )


def _trimming_fault(model: Any, few: Sequence[Example], pad_token_id: int) -> str:
    """Why all logits must be computed; empty if the others can be left out."""
    rows = [(example,) for example in few]
    whole = _run(model, PaddedBatches(pad_token_id)(rows)).loss
    try:
        trimmed = _run(model, PaddedBatches(pad_token_id, trim_logits=True)(rows)).loss
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        # It takes the argument, but means another thing by it.
        return f"the model cannot leave out logits ({type(error).__name__})"
    if trimmed is None or abs(float(trimmed - whole)) > 1e-2 * max(abs(float(whole)), 1e-3):
        return f"trimmed logits gave loss {trimmed}, all of them {whole}"
    return ""


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _run(model: Any, batch: dict[str, Tensor]) -> Any:
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False)
