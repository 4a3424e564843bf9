"""A key-value cache whose rows come and go without the others being copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_ROOM = 256
"""Columns kept empty behind the newest; once so many tokens everything is copied."""


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, all rows ending in the same column of one buffer.

    transformers' own layer copies all it holds for every token, and again for each row that joins
    or leaves. Here a token is written behind the last, a new row below the last, and the last row
    takes the place of one that leaves. ``keys`` and ``values`` are views of what is in use.

    Args:
        like: A layer with keys and values of the model, each ``(rows, heads, columns, size)``.
        rows: Most rows.
    """

    def __init__(self, like: DynamicLayer, *, rows: int) -> None:
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        self._buffers = [
            states.new_empty(rows, states.shape[1], 0, states.shape[3])
            for states in (like.keys, like.values)
        ]
        self._rows = self._start = self._end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add one token to every row.

        Args:
            key_states: ``(rows, heads, 1, size)``.
            value_states: Likewise.
            args: Unused.
            kwargs: Unused.

        Returns:
            Keys and values of all columns in use.
        """
        if self._end == self._buffers[0].shape[2]:
            self._move(self._end - self._start)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end] = states[:, :, 0]
        self._end += 1
        self._show()
        return self.keys, self.values

    def add(self, layer: DynamicLayer, lengths: Sequence[int]) -> None:
        """Let rows join.

        Args:
            layer: Their keys and values, padded on the left.
            lengths: Columns of each row that are no padding.
        """
        longest = max(lengths)
        if longest > self._end:
            self._move(longest)
        last = self._rows + len(lengths)
        for buffer, states in zip(self._buffers, (layer.keys, layer.values), strict=True):
            for row, (theirs, length) in enumerate(zip(states, lengths, strict=True), self._rows):
                # What is masked is multiplied by 0, and must not be infinite.
                buffer[row, :, : self._end - length] = 0
                buffer[row, :, self._end - length : self._end] = theirs[:, -length:]
        self._start = min(self._start, self._end - longest)
        self._rows = last
        self._show()

    def take_out(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self._rows -= 1
        if row < self._rows:
            for buffer in self._buffers:
                used = buffer[:, :, self._start : self._end]
                used[row] = used[self._rows]
        self._show()

    def trim(self, columns: int) -> None:
        """Leave out the first columns."""
        self._start += columns
        self._show()

    def _move(self, end: int) -> None:
        """Copy what is in use into larger buffers, so that it ends at a column."""
        start = end - (self._end - self._start)
        for number, buffer in enumerate(self._buffers):
            rows, heads, _, size = buffer.shape
            larger = buffer.new_empty(rows, heads, end + _ROOM, size)
            larger[: self._rows, :, :start] = 0
            larger[: self._rows, :, start:end] = buffer[: self._rows, :, self._start : self._end]
            self._buffers[number] = larger
        self._start, self._end = start, end

    def _show(self) -> None:
        self.keys, self.values = (
            buffer[: self._rows, :, self._start : self._end] for buffer in self._buffers
        )
