"""The embedded base model: a prefix language model that reads passages and copies answers.

A BERT-shaped encoder (MiniLM's weights) reads the prompt in both directions, each passage in its
own window (:mod:`~rag_fti.models.reader_structure`); answer tokens see everything before them and
nothing after. :mod:`~rag_fti.models.reader_head` turns an answer token's state into the next
token. It is an ordinary causal LM to ``generate()``, ``Trainer`` and peft once :func:`register`
has been called; no remote code is involved.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from rag_fti.models.reader_config import ReaderConfig
from rag_fti.models.reader_head import (
    CopyCacheLayer,
    CopyHead,
    CopyState,
    next_token_logits,
    target_losses,
)
from rag_fti.models.reader_layers import ReaderBlock, ReaderEmbeddings
from rag_fti.models.reader_structure import (
    PromptStructure,
    continuation_mask,
    prompt_mask,
    read_structure,
)

_IGNORED = -100
# transformers renamed `past_key_values` to `cache` in 5.24; both ends of the rename are spoken.
_FIELDS = {field.name for field in fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


def register() -> None:
    """Teach ``AutoConfig`` and ``AutoModelForCausalLM`` this model type; may be called twice."""
    AutoConfig.register(ReaderConfig.model_type, ReaderConfig, exist_ok=True)
    AutoModelForCausalLM.register(ReaderConfig, ReaderForCausalLM, exist_ok=True)


class ReaderForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Reads passages, answers by copying or writing, cites, abstains."""

    config_class = ReaderConfig
    main_input_name = "input_ids"
    _no_split_modules = ("ReaderBlock",)
    _supports_sdpa = True
    _can_compile_fullgraph = False
    prompt_tokens_at_once = 2048
    """On a CPU, padding included. Answers are a few words, so prompts are nearly all of the work,
    and padding them to the longest of sixteen costs more than computing them in parts."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        self.embeddings = ReaderEmbeddings(config)
        self.layers = nn.ModuleList(ReaderBlock(config) for _ in range(config.num_hidden_layers))
        self.head = CopyHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding, which also scores the vocabulary."""
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.embeddings.word = value

    def get_output_embeddings(self) -> None:
        """None: the word embedding is applied directly, there is no output layer to tie."""
        return None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CopyHead):
            nn.init.constant_(module.vocabulary_bias, self.config.vocabulary_bias)
            nn.init.constant_(module.copy_bias, self.config.copy_bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        copy_positions: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Score the next token of every answer position.

        Args:
            input_ids: int64 ``(batch, length)``: prompts up to and including the answer token,
                then the answer so far. After a cached prefix, the new answer tokens alone.
            attention_mask: ``(batch, past + length)``, 0 at padding, which may stand left or
                right.
            cache: Cache of the prefix.
            labels: int64 ``(batch, length)``, ``input_ids`` where the loss counts and -100
                elsewhere. Only tokens after the answer token can be predicted.
            copy_positions: int64 ``(batch, length)``: column from which the token at this
                place is copied, -1 where it is not or that is not known. Sharpens the loss.
            use_cache: Return a cache; the configuration's choice by default, never when
                training.
            logits_to_keep: Number of last columns to return logits for; 0 for all.
            past_key_values: What transformers before 5.24 call ``cache``.
            **kwargs: ``num_items_in_batch`` (what the loss is divided by, the number of labels
                by default); others are ignored.

        Returns:
            ``loss`` where labels are given; ``logits`` float32 ``(batch, kept, vocabulary)``
            else, zero at prompt positions, where the model predicts nothing.
        """
        if labels is not None:
            use_cache = False
        elif use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values if cache is None else cache
        past = 0 if cache is None else cache.get_seq_length()
        length = input_ids.shape[1]
        if attention_mask is None:
            valid = torch.ones(
                input_ids.shape[0], past + length, dtype=torch.bool, device=input_ids.device
            )
        else:
            valid = attention_mask.bool()
        if past:
            assert cache is not None
            logits = self._continue(input_ids, valid, cache, logits_to_keep)
            return CausalLMOutputWithPast(logits=logits, **{_CACHE: cache})
        if not use_cache:
            cache = None
        elif cache is None:
            cache = DynamicCache(config=self.config)
        structure = read_structure(input_ids, valid, self.config)
        hidden = self._encode(
            input_ids,
            structure.positions,
            (structure.block > 0).long(),
            prompt_mask(structure),
            cache,
        )
        if labels is not None:
            loss = self._loss(hidden, input_ids, structure, labels, copy_positions, **kwargs)
            return CausalLMOutputWithPast(loss=loss)
        logits, state = self._prefill_logits(hidden, input_ids, structure, logits_to_keep)
        if cache is not None:
            layer = CopyCacheLayer()
            layer.store(state)
            cache.layers = [*cache.layers[: len(self.layers)], layer]
        return CausalLMOutputWithPast(logits=logits, **{_CACHE: cache})

    def _encode(
        self,
        ids: Tensor,
        positions: Tensor,
        in_passage: Tensor,
        mask: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        hidden: Tensor = self.embeddings(ids, positions, in_passage)
        for index, block in enumerate(self.layers):
            hidden = block(hidden, mask, cache, index)
        return hidden

    def _words(self, words: Tensor) -> Tensor:
        """Vocabulary logits, float32."""
        logits = functional.linear(words, self.embeddings.word.weight.to(words.dtype))
        return logits.float() + self.head.vocabulary_bias.float()

    def _continue(self, ids: Tensor, valid: Tensor, cache: Cache, keep: int) -> Tensor:
        """Logits of answer tokens after a cached prefix."""
        layer = cache.layers[-1]
        if not isinstance(layer, CopyCacheLayer) or layer.state is None:
            raise ValueError("the cache was not filled by this model: it has no copy layer")
        state, new = layer.state, ids.shape[1]
        offsets = torch.arange(new, device=ids.device)
        positions = (state.question_length + state.answered)[:, None] + offsets
        positions = positions.clamp(max=self.config.window_positions - 1)
        mask = continuation_mask(valid, new)
        hidden = self._encode(ids, positions, torch.zeros_like(ids), mask, cache)
        output = self.head(hidden, ids, state)
        layer.store(output.state)
        keep = keep or new
        return next_token_logits(
            self._words(output.words[:, -keep:]), output.pointers[:, -keep:], state.ids
        )

    def _prefill_logits(
        self, hidden: Tensor, ids: Tensor, structure: PromptStructure, keep: int
    ) -> tuple[Tensor, CopyState]:
        """Logits of the last ``keep`` columns and the state after the last column."""
        length = ids.shape[1]
        keep = keep or length
        steps = int((length - structure.answer_start).max())
        state = self.head.begin(hidden, ids, structure)
        columns = torch.arange(length - steps, length, device=ids.device)
        # Rows whose answer starts later than others take part in every step, but on tokens
        # that cannot be copied and with what they remembered put back until they begin.
        outputs = []
        for column in columns.tolist():
            fresh = state.pointer, state.touched, state.start
            output = self.head(hidden[:, column, None], ids[:, column, None], state)
            begun = (column >= structure.answer_start)[:, None]
            state = output.state
            state.pointer = torch.where(begun, state.pointer, fresh[0])
            state.touched = torch.where(begun, state.touched, fresh[1])
            state.start = torch.where(begun, state.start, fresh[2])
            if column >= length - keep:
                mixture = next_token_logits(self._words(output.words), output.pointers, state.ids)
                outputs.append(mixture * begun[..., None])
        state.answered = structure.answer.long().sum(dim=1)
        logits = torch.cat(outputs, dim=1)
        if keep > logits.shape[1]:
            logits = functional.pad(logits, (0, 0, keep - logits.shape[1], 0))
        return logits, state

    def _loss(
        self,
        hidden: Tensor,
        ids: Tensor,
        structure: PromptStructure,
        labels: Tensor,
        copy_positions: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> Tensor:
        """Mean negative log-likelihood of the labelled answer tokens."""
        length = ids.shape[1]
        wanted = (labels != _IGNORED) & structure.answer
        reach = torch.where(wanted, torch.arange(length, device=ids.device), 0).amax(dim=1)
        steps = max(1, int((reach - structure.answer_start).max()))
        columns = structure.answer_start[:, None] + torch.arange(steps, device=ids.device)
        inside = columns < length
        columns = columns.clamp(max=length - 1)
        targets_at = (columns + 1).clamp(max=length - 1)
        targets = labels.gather(1, targets_at)
        source = torch.full_like(ids, -1) if copy_positions is None else copy_positions
        width = hidden.shape[-1]
        output = self.head(
            hidden.gather(1, columns[..., None].expand(-1, -1, width)),
            ids.gather(1, columns),
            self.head.begin(hidden, ids, structure),
            None if copy_positions is None else source.gather(1, columns),
        )
        counted = inside & (columns + 1 < length) & (targets != _IGNORED)
        rows = counted.nonzero()[:, 0]
        losses = target_losses(
            self._words(output.words[counted]),
            output.pointers[counted],
            ids[rows],
            targets[counted],
            source.gather(1, targets_at)[counted],
        )
        count: Any = max(1, losses.numel()) if num_items_in_batch is None else num_items_in_batch
        loss: Tensor = losses.sum() / count
        return loss
