"""The reader's transformer: BERT's embeddings and layers, with a KV cache and any mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache

from rag_fti.models.reader_config import ReaderConfig


class ReaderEmbeddings(nn.Module):
    """Word, position and kind (question or answer, passage) of each token."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.window_positions, config.hidden_size)
        self.kind = nn.Embedding(2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, positions: Tensor, in_passage: Tensor) -> Tensor:
        """States of shape ``(batch, length, hidden)`` from int64 ``(batch, length)`` each."""
        total = self.word(ids) + self.position(positions) + self.kind(in_passage)
        result: Tensor = self.norm(total)
        return result


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, written_out: bool) -> Tensor:
    """Masked attention over ``(batch, heads, length, head width)``.

    Training in bfloat16 on a CPU writes the attention out: the backward pass of torch's fused
    kernel takes two to three times as long there (torch 2.13).
    """
    if not (written_out and query.device.type == "cpu" and query.dtype is torch.bfloat16):
        return functional.scaled_dot_product_attention(
            query.contiguous(), key.contiguous(), value.contiguous(), attn_mask=mask
        )
    bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, -1e4)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
    result: Tensor = scores.softmax(dim=-1) @ value
    return result


class ReaderBlock(nn.Module):
    """One transformer layer, layer norm after the residual as in BERT."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.up_proj = nn.Linear(width, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """Attend where ``mask`` (bool, query before key) allows, then transform each token."""
        batch, length, width = hidden.shape
        shape = (batch, length, self.heads, width // self.heads)
        query = self.q_proj(hidden).view(shape).transpose(1, 2)
        key = self.k_proj(hidden).view(shape).transpose(1, 2)
        value = self.v_proj(hidden).view(shape).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, layer)
        seen = _attend(query, key, value, mask, written_out=self.training)
        seen = seen.transpose(1, 2).reshape(batch, length, width)
        hidden = self.attention_norm(hidden + self.o_proj(seen))
        inner = functional.gelu(self.up_proj(hidden))
        result: Tensor = self.output_norm(hidden + self.down_proj(inner))
        return result
