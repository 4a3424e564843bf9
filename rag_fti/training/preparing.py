"""From examples to the rows of a run, as the model allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rag_fti.training.batches import PackedBatches, PaddedBatches, Row
from rag_fti.training.examples import Example
from rag_fti.training.fitting import Schedule, plan_schedule
from rag_fti.training.packing import packed_order, padded_order
from rag_fti.training.probing import Capabilities


@dataclass(frozen=True)
class PreparedRun:
    """Rows, their collator and the schedule."""

    train: list[Row]
    validation: list[Row]
    collate: Callable[[Sequence[Row]], dict[str, Tensor]]
    schedule: Schedule
    packed: bool


def prepare(
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    capabilities: Capabilities,
    packing: bool,
    row_tokens: int,
    pad_token_id: int,
    batch_size: int,
    micro_batch_size: int,
    epochs: float,
    max_steps: int,
    evaluations_per_epoch: int,
    seed: int,
    min_steps: int = 1,
    processes: int = 1,
) -> PreparedRun:
    """Lay out a run.

    Args:
        train: Examples of the training split.
        validation: Examples of the validation split.
        capabilities: What the model can do.
        packing: Whether rows may hold several examples.
        row_tokens: Most tokens of a packed row.
        pad_token_id: Padding token.
        batch_size: Examples per optimizer step and process.
        micro_batch_size: Examples per forward pass; 0 for all of a step.
        epochs: Passes over the data.
        max_steps: Steps; 0 derives them from ``epochs``.
        evaluations_per_epoch: Validation runs per pass.
        seed: Seed of the order.
        min_steps: Least steps where they are derived from ``epochs``.
        processes: Processes that share the rows.
    """
    packed = packing and capabilities.packing
    lengths = [len(example) for example in train]
    capacity = row_capacity(lengths, batch_size=batch_size, limit=row_tokens)
    first = (
        packed_order(lengths, capacity=capacity, seed=seed)
        if packed
        else [[index] for index in range(len(train))]
    )
    schedule = plan_schedule(
        rows=len(first),
        examples=len(train),
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        epochs=epochs,
        max_steps=max_steps,
        evaluations_per_epoch=evaluations_per_epoch,
        min_steps=min_steps,
        processes=processes,
    )
    rows: list[Row] = []
    for number in range(schedule.passes):
        order = (
            packed_order(lengths, capacity=capacity, seed=seed + number)
            if packed
            else padded_order(lengths, batch=schedule.micro_rows, seed=seed + number)
        )
        rows += [tuple(train[index] for index in indices) for indices in order]
    collate: Callable[[Sequence[Row]], dict[str, Tensor]] = (
        PackedBatches(pad_token_id, capabilities.trim_logits)
        if packed
        else PaddedBatches(pad_token_id, capabilities.trim_logits)
    )
    if packed:
        held = packed_order([len(e) for e in validation], capacity=capacity, seed=seed)
    else:
        held = [
            [index] for index in sorted(range(len(validation)), key=lambda i: len(validation[i]))
        ]
    return PreparedRun(
        train=rows,
        validation=[tuple(validation[index] for index in indices) for indices in held],
        collate=collate,
        schedule=schedule,
        packed=packed,
    )


def row_capacity(lengths: Sequence[int], *, batch_size: int, limit: int) -> int:
    """Tokens of a packed row such that whole rows make up about ``batch_size`` examples.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per optimizer step.
        limit: Most tokens of a row.
    """
    wanted = batch_size * sum(lengths) / len(lengths)
    rows = math.ceil(wanted / limit)
    return min(limit, max(max(lengths), math.ceil(wanted / rows)))


def describe(run: PreparedRun, capabilities: Capabilities, **switches: Any) -> dict[str, Any]:
    """What was switched on, for the manifest and the report."""
    return {
        "packing": run.packed,
        "trimmed_logits": capabilities.trim_logits,
        "note": capabilities.note,
        "micro_rows": run.schedule.micro_rows,
        "accumulation": run.schedule.accumulation,
        "steps": run.schedule.steps,
        "epochs": round(run.schedule.epochs, 2),
        **switches,
    }
