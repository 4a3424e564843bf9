"""Continuous batching: requests join and leave a running batch between any two tokens.

All rows share one key-value cache, padded on the left to a common length. A new request is
computed on its own up to its first token and its cache is then put below the others; a finished
row is taken out. Works for every model whose cache is transformers' plain dynamic one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from rag_fti.models.batching import Job, new_random, record, sample
from rag_fti.models.row_cache import RowLayer


class ContinuousBatch:
    """The rows that are being computed. Used by one thread.

    Args:
        model: A causal LM that :func:`supports_joining`.
        rows: Most rows.
        pad_id: Token id of padding.
        abstain_id: Token whose first-step probability lowers the confidence, or None.
        abstain_bias: Added to that token's first logit for the choice, and to nothing else.
        device: Torch device name.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: int,
        pad_id: int,
        abstain_id: int | None,
        device: str,
        abstain_bias: float = 0.0,
    ) -> None:
        self._model = model
        self._rows = rows
        self._pad_id = pad_id
        self._abstain_id = abstain_id
        self._abstain_bias = abstain_bias
        self._device = device
        self._keyword = cache_keyword(model)
        self.jobs: list[Job] = []
        self._random: dict[int, torch.Generator] = {}
        self._cache: Cache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._last: list[int] = []

    def clear(self) -> None:
        """Forget every row."""
        self.jobs, self._last, self._cache = [], [], None
        self._random.clear()

    @torch.inference_mode()
    def admit(self, jobs: Sequence[Job]) -> None:
        """Compute the first token of new requests and let them join."""
        ids, mask = left_padded([job.prompt for job in jobs], pad_id=self._pad_id)
        ids, mask = ids.to(self._device), mask.to(self._device)
        cache = DynamicCache()
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = self._forward(ids, mask, positions, cache)
        if self._abstain_id is not None:
            shares = torch.softmax(logits, dim=-1)[:, self._abstain_id].tolist()
            for job, share in zip(jobs, shares, strict=True):
                job.abstain_probability = float(share)
        for job in jobs:
            if job.request.temperature > 0:
                self._random[id(job)] = new_random(job.request, self._device)
        allowed = logits
        if self._abstain_id is not None and self._abstain_bias:
            allowed = logits.clone()
            allowed[:, self._abstain_id] += self._abstain_bias
        tokens = self._deliver(jobs, logits, allowed)
        stay = [row for row, job in enumerate(jobs) if not job.done]
        if stay:
            if len(stay) < len(jobs):
                cache.batch_select_indices(torch.tensor(stay, device=self._device))
            self._join(
                [jobs[row] for row in stay], [tokens[row] for row in stay], cache, mask[stay]
            )

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one token of every row and take out what is done."""
        assert self._cache is not None
        rows = len(self.jobs)
        grown = self._mask.new_ones(rows, 1)
        self._mask = torch.cat([self._mask, grown], dim=1)
        ids = torch.tensor(self._last, device=self._device)[:, None]
        positions = (self._mask.sum(dim=1) - 1)[:, None]
        logits = self._forward(ids, self._mask, positions, self._cache)
        self._last = self._deliver(self.jobs, logits, logits)
        gone = [row for row, job in enumerate(self.jobs) if job.done]
        if gone:
            self._take_out(gone)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits after the last column, float32 ``(rows, vocabulary)``; fills the cache."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._keyword: cache},
        )
        result: Tensor = output.logits[:, -1].float()
        return result

    def _deliver(self, jobs: Sequence[Job], logits: Tensor, allowed: Tensor) -> list[int]:
        """Choose each row's token by ``allowed`` and pass it on."""
        choices = allowed.argmax(dim=-1)
        for row, job in enumerate(jobs):
            random = self._random.get(id(job))
            if random is not None:
                choices[row] = sample(allowed[row], job.request, random)
        record(jobs, logits, choices)
        tokens: list[int] = choices.tolist()
        for row, job in enumerate(jobs):
            job.take(tokens[row])
            if job.done:
                self._random.pop(id(job), None)
        return tokens

    def _join(self, jobs: list[Job], tokens: list[int], cache: DynamicCache, mask: Tensor) -> None:
        if self._cache is None:
            self._cache = Cache(layers=[RowLayer(layer, rows=self._rows) for layer in cache.layers])
            self._mask = mask[:0, :0]
        lengths = mask.sum(dim=1).tolist()
        for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
            mine.add(theirs, lengths)
        mask = mask[:, mask.shape[1] - max(lengths) :]
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_widened(self._mask, width), _widened(mask, width)])
        self.jobs = [*self.jobs, *jobs]
        self._last = [*self._last, *tokens]

    def _take_out(self, gone: Sequence[int]) -> None:
        """Remove rows, and columns on the left that are padding in every row left."""
        assert self._cache is not None
        rows = list(range(len(self.jobs)))
        for row in sorted(gone, reverse=True):
            rows[row] = rows[-1]
            rows.pop()
        self.jobs = [self.jobs[row] for row in rows]
        self._last = [self._last[row] for row in rows]
        if not rows:
            self._cache = None
            return
        self._mask = self._mask[rows]
        unused = int(self._mask.any(dim=0).int().argmax())
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            for row in sorted(gone, reverse=True):
                layer.take_out(row)
            layer.trim(unused)


def left_padded(prompts: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 ``(rows, longest)``, padding on the left."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def cache_keyword(model: Any) -> str:
    """What the model's ``forward`` calls its cache; empty where it takes none."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), "")


@torch.inference_mode()
def supports_joining(model: Any, *, device: str) -> bool:
    """Whether caches of this model can be laid side by side; found out with two tokens."""
    names = inspect.signature(model.forward).parameters if hasattr(model, "forward") else {}
    keyword = cache_keyword(model) if names else ""
    if not keyword or not {"position_ids", "logits_to_keep"} <= set(names):
        return False
    cache = DynamicCache(config=model.config)
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **{keyword: cache})
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _widened(mask: Tensor, width: int) -> Tensor:
    """A mask ``(rows, length)`` with padding put in on the left."""
    return functional.pad(mask, (width - mask.shape[1], 0))
