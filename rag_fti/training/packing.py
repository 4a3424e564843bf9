"""The order of training: which examples share a row or a batch, so that little is padding.

All passes over the data are laid out beforehand from one seed. A resumed run therefore sees
exactly the rows an undisturbed one would, and every pass mixes the examples anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WINDOW = 1024
"""Examples that are sorted by length together: more fill better, fewer mix better."""


def packed_order(
    lengths: Sequence[int], *, capacity: int, seed: int, window: int = _WINDOW
) -> list[list[int]]:
    """Assign examples to rows, first fit by decreasing length within shuffled windows.

    Shuffling first keeps the rows random; sorting only within a window keeps them full.

    Args:
        lengths: Tokens of each example.
        capacity: Most tokens of a row; a longer example gets a row of its own.
        seed: Seed of the shuffle.
        window: Examples that are packed together.

    Returns:
        Indices of each row's examples, rows in random order.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths)).tolist()
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        open_rows: list[list[int]] = []
        free: list[int] = []
        for index in sorted(order[start : start + window], key=lambda i: -lengths[i]):
            length = lengths[index]
            place = next((n for n, room in enumerate(free) if room >= length), None)
            if place is None:
                open_rows.append([index])
                free.append(capacity - length)
            else:
                open_rows[place].append(index)
                free[place] -= length
        rows.extend(open_rows)
    return [rows[index] for index in random.permutation(len(rows)).tolist()]


def padded_order(
    lengths: Sequence[int], *, batch: int, seed: int, window: int = _WINDOW
) -> list[list[int]]:
    """One example a row; rows that are computed together have similar lengths.

    Args:
        lengths: Tokens of each example.
        batch: Rows per forward pass.
        seed: Seed of the shuffle.
        window: Examples that are sorted together.

    Returns:
        Indices, each in a row of its own. Only the last batch may be smaller than ``batch``.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths)).tolist()
    window = max(batch, window // batch * batch)
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: lengths[i])
        batches += [part[n : n + batch] for n in range(0, len(part), batch)]
    tail = [batches.pop()] if len(batches[-1]) < batch else []
    mixed = [batches[index] for index in random.permutation(len(batches)).tolist()]
    return [[index] for group in [*mixed, *tail] for index in group]
