"""The reader's output layer: write a word of the vocabulary, or copy one from the prompt.

The next token is drawn from one softmax over all vocabulary words *and* all prompt positions
(joint normalisation as in CopyNet, Gu et al. 2016; mixture as in the pointer-generator, See et
al. 2017). What makes it learn from little data is that the copy state is explicit: after each
answer token the head knows the distribution ``alpha`` over prompt positions that token was copied
from (``alpha`` is the previous step's pointer restricted to positions that hold the token). Then

- going on with the span is one learned bonus on the position after ``alpha``,
- citing is one learned bonus on the marker of the passage ``alpha`` lies in,
- where to stop is read from the prompt states at ``alpha`` and after it, as an extractive
  reader's end score is,
- where to start is read from the prompt states, as an extractive reader's start score is, and
  from the rank of the passage (:func:`~rag_fti.models.reader_structure.rank_log_odds`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import CacheLayerMixin

from rag_fti.models.reader_config import ReaderConfig
from rag_fti.models.reader_structure import PromptStructure, rank_log_odds

_NEVER = -1e4


@dataclass
class CopyState:
    """What the head remembers of the prompt and of the copying so far; ``P`` prompt columns."""

    keys: Tensor
    """float32 ``(batch, P, hidden)``: pointer keys."""
    hidden: Tensor
    """``(batch, P, hidden)``: final encoder states."""
    ids: Tensor
    """int64 ``(batch, P)``."""
    block: Tensor
    """int64 ``(batch, P)``: passage of each position."""
    copyable: Tensor
    """bool ``(batch, P)``."""
    marker: Tensor
    """bool ``(batch, P)``."""
    pointer: Tensor
    """float32 ``(batch, P)``: pointer logits of the last step."""
    touched: Tensor
    """float32 ``(batch, P)``: probability that the last copy came from this position's passage."""
    start: Tensor
    """float32 ``(batch, P)``: bonus for starting the answer here, 0 once it has started."""
    question_length: Tensor
    """int64 ``(batch,)``."""
    answered: Tensor
    """int64 ``(batch,)``: answer tokens seen, the answer cue included."""

    def select(self, change: Callable[[Tensor], Tensor]) -> CopyState:
        """The state with ``change`` (an operation on the batch dimension) applied throughout."""
        return CopyState(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class HeadOutput:
    """One result per answer position, ``T`` of them."""

    words: Tensor
    """``(batch, T, hidden)``: states that score the vocabulary against the word embedding."""
    pointers: Tensor
    """float32 ``(batch, T, P)``: logits of the prompt positions."""
    state: CopyState


class CopyHead(nn.Module):
    """Scores vocabulary words and prompt positions for the next token."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.mix = nn.Linear(3 * width, 2 * width)
        self.mix_out = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.rank_exponent = config.rank_exponent
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.bonus = nn.Linear(width, 2)
        self.word = nn.Linear(width, width)
        self.word_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.vocabulary_bias = nn.Parameter(torch.full((1,), config.vocabulary_bias))
        self.copy_bias = nn.Parameter(torch.full((1,), config.copy_bias))

    def begin(self, hidden: Tensor, ids: Tensor, structure: PromptStructure) -> CopyState:
        """The state before the first answer token."""
        zeros = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        return CopyState(
            keys=self.key(hidden).float(),
            hidden=hidden,
            ids=ids,
            block=structure.block,
            copyable=structure.copyable,
            marker=structure.marker,
            pointer=zeros,
            touched=zeros,
            start=rank_log_odds(structure.block, self.rank_exponent),
            question_length=structure.question_length,
            answered=torch.zeros_like(structure.question_length),
        )

    def forward(
        self, states: Tensor, ids: Tensor, state: CopyState, source: Tensor | None = None
    ) -> HeadOutput:
        """Score what follows each answer token.

        Args:
            states: ``(batch, T, hidden)``, final states of the answer tokens.
            ids: int64 ``(batch, T)``, these tokens.
            state: Where copying stood before them.
            source: int64 ``(batch, T)``, prompt column each token is known to be copied from,
                -1 where that is not known (training only).
        """
        words, pointers = [], []
        zeros = torch.zeros_like(state.start)
        for step in range(ids.shape[1]):
            known = None if source is None else source[:, step]
            alpha = self._copied_from(ids[:, step], state, known)
            following = functional.pad(alpha, (1, -1))
            state.touched = self._touched(alpha, state)
            mixed = self._mix(states[:, step], alpha, following, state)
            state.pointer = self._point(mixed, following, state)
            state.start = zeros
            words.append(mixed)
            pointers.append(state.pointer)
        state.answered = state.answered + ids.shape[1]
        word = torch.stack(words, dim=1)
        word = self.word_norm(functional.gelu(self.word(word)))
        return HeadOutput(word, torch.stack(pointers, dim=1), state)

    @staticmethod
    def _copied_from(token: Tensor, state: CopyState, known: Tensor | None) -> Tensor:
        """``alpha``: float32 ``(batch, P)``, all zero where the prompt lacks the token."""
        match = (state.ids == token[:, None]) & state.copyable
        scores = state.pointer.detach().masked_fill(~match, _NEVER)
        alpha = scores.softmax(dim=-1) * match
        if known is not None:
            column = functional.one_hot(known.clamp(min=0), alpha.shape[1]).to(alpha.dtype)
            alpha = torch.where((known >= 0)[:, None], column, alpha)
        return alpha

    @staticmethod
    def _touched(alpha: Tensor, state: CopyState) -> Tensor:
        passages = torch.zeros_like(alpha).scatter_add(1, state.block, alpha)
        passages[:, 0] = 0.0
        found = passages.sum(dim=1, keepdim=True) > 0
        return torch.where(found, passages.gather(1, state.block), state.touched)

    def _mix(self, now: Tensor, alpha: Tensor, following: Tensor, state: CopyState) -> Tensor:
        weights = torch.stack([alpha, following], dim=1).to(state.hidden.dtype)
        here, after = (weights @ state.hidden).to(now.dtype).unbind(dim=1)
        mixed = self.mix_out(functional.gelu(self.mix(torch.cat([now, here, after], dim=-1))))
        result: Tensor = self.norm(now + mixed)
        return result

    def _point(self, mixed: Tensor, following: Tensor, state: CopyState) -> Tensor:
        query = self.query(mixed).float()
        with torch.autocast(query.device.type, enabled=False):
            scores = (state.keys @ query[..., None])[..., 0] / query.shape[-1] ** 0.5
        go_on, cite = self.bonus(mixed).float().unbind(dim=-1)
        scores = scores + (self.copy_bias.float() + go_on)[:, None] * following
        scores = scores + cite[:, None] * state.touched * state.marker + state.start
        result: Tensor = scores.masked_fill(~state.copyable, _NEVER)
        return result


def next_token_logits(words: Tensor, pointers: Tensor, ids: Tensor) -> Tensor:
    """Logits over the vocabulary once copying is added in; their softmax is the mixture.

    Args:
        words: float32 ``(batch, T, vocabulary)``.
        pointers: float32 ``(batch, T, P)``.
        ids: int64 ``(batch, P)``, the prompt.
    """
    top = torch.maximum(words.amax(dim=-1), pointers.amax(dim=-1))[..., None]
    total = (words - top).exp()
    index = ids[:, None, :].expand_as(pointers)
    total = total.scatter_add(-1, index, (pointers - top).exp())
    return top + total.clamp(min=torch.finfo(total.dtype).tiny).log()


def target_losses(
    words: Tensor, pointers: Tensor, ids: Tensor, targets: Tensor, source: Tensor
) -> Tensor:
    """Negative log-likelihood of each target.

    Where the column that the target is copied from is known, the likelihood is that of the
    column, as in an extractive reader; else that of the token, however it comes about.

    Args:
        words: float32 ``(N, vocabulary)``.
        pointers: float32 ``(N, P)``.
        ids: int64 ``(N, P)``, prompt of each target.
        targets: int64 ``(N,)``.
        source: int64 ``(N,)``, prompt column or -1.

    Returns:
        float32 ``(N,)``.
    """
    total = torch.logaddexp(words.logsumexp(dim=-1), pointers.logsumexp(dim=-1))
    written = words.gather(1, targets[:, None])[:, 0]
    matching = pointers.masked_fill(ids != targets[:, None], _NEVER).logsumexp(dim=-1)
    token = torch.logaddexp(written, matching)
    column = pointers.gather(1, source.clamp(min=0)[:, None])[:, 0]
    return total - torch.where(source >= 0, column, token)


class CopyCacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """The :class:`CopyState` of a generation, kept as one more layer of the KV cache."""

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: CopyState | None = None

    def store(self, state: CopyState) -> None:
        """Replace the state."""
        self.state = state
        self.keys, self.values = state.keys[:, None], state.hidden[:, None]
        self.is_initialized = True

    def _select(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.store(self.state.select(change))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the state comes from the model."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Not a layer of attention."""
        raise NotImplementedError("a copy layer is written with store(), not update()")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the prompt, which do not grow."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns of the prompt."""
        return 0 if self.state is None else int(self.state.ids.shape[1])

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget the prompt."""
        self.state = None
        self.keys = self.values = torch.empty(0)
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        self._select(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._select(lambda value: value.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._select(lambda value: value[indices])
