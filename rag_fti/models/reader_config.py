"""Configuration of the embedded reader: :class:`ReaderConfig`."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ReaderConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes and structural token ids of a :class:`~rag_fti.models.reader.ReaderForCausalLM`.

    Args:
        vocab_size: Rows of the word embedding, added tokens included.
        hidden_size: Width of the encoder.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads; divides ``hidden_size``.
        intermediate_size: Width of the feed-forward layers.
        layer_norm_eps: Epsilon of every layer norm.
        initializer_range: Standard deviation of fresh linear weights.
        window_positions: Rows of the position table: most tokens of the question and *one*
            passage together that are told apart; later ones share the last position.
        max_position_embeddings: Most tokens of prompt and answer together (memory, not a table:
            positions start again in every passage).
        passage_open_id: Token that opens a passage.
        passage_close_id: Token that closes a passage.
        answer_id: Token after which the model answers; the last one in the input counts.
        abstain_id: Token that is the whole abstention sentence; -1 where there is none.
        marker_ids: Tokens that are citation markers, in order from marker 1.
        copy_bias: Initial logit bonus for going on with the span being copied.
        vocabulary_bias: Initial logit offset of the vocabulary against copying.
        rank_exponent: Passages stand in the order of their retrieval, and the n-th of them holds
            the answer with a probability proportional to ``n ** -rank_exponent``. 0: they stand
            in any order.
    """

    model_type = "rag_fti_reader"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 30536,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 1536,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        window_positions: int = 512,
        max_position_embeddings: int = 4096,
        passage_open_id: int = 30522,
        passage_close_id: int = 30523,
        answer_id: int = 30524,
        abstain_id: int = -1,
        marker_ids: tuple[int, ...] | list[int] = (),
        copy_bias: float = 6.0,
        vocabulary_bias: float = -4.0,
        rank_exponent: float = 0.0,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.window_positions = window_positions
        self.max_position_embeddings = max_position_embeddings
        self.passage_open_id = passage_open_id
        self.passage_close_id = passage_close_id
        self.answer_id = answer_id
        self.abstain_id = abstain_id
        self.marker_ids = list(marker_ids)
        self.copy_bias = copy_bias
        self.vocabulary_bias = vocabulary_bias
        self.rank_exponent = rank_exponent
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)
