"""A tiny random Llama with a word tokenizer, and a small dataset for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rag_fti import ids, prompts, schemas
from rag_fti.datasets import DatasetVersion, write_dataset

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LIBRARY_WARNINGS = pytest.mark.filterwarnings(
    # peft 0.21 asks transformers 5.24 for a property by its old name.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown", "grey")
RETRIEVAL = {"mode": "hybrid", "k": 2}


def build_llama(
    directory: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    family: str = "llama",
    window: int = 2048,
) -> Path:
    """Save a random model (llama, qwen3, gpt2) and its tokenizer; returns the directory."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unk|>"]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=special, vocab_size=600)
    texts = [message["content"] for row in make_rows(40) for message in row["messages"]]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unk|>",
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        # As the small ones of these families have it: SmolLM2 and Llama 3.2 tie, Qwen3 too.
        tie_word_embeddings=family != "llama",
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(str(directory))
    fast.save_pretrained(str(directory))
    return directory


def make_row(number: int) -> dict[str, Any]:
    """One row of an instruction dataset; every fifth has no answer."""
    colour = COLOURS[number % len(COLOURS)]
    answerable = number % 5 != 4
    question = f"What colour is item {number}?"
    filler = "It is kept in the long hall. " * (number % 4)
    passages = [
        prompts.Passage(
            f"Item {number if answerable else number + 1} is {colour}. {filler}", "List"
        ),
        prompts.Passage(f"Item {number + 50} is heavy.", "List"),
    ]
    answer = prompts.answer_target(colour, [1]) if answerable else prompts.ABSTENTION
    messages = [
        *prompts.answer_messages(question, passages),
        {"role": "assistant", "content": answer},
    ]
    return {
        "example_id": ids.content_id("example", str(number)),
        "task": "answer",
        "question": question,
        "answer": colour if answerable else "",
        "answerable": answerable,
        "messages": messages,
        "context_chunk_ids": [f"c{number}", f"c{number + 50}"],
        "supporting_chunk_ids": [f"c{number}"] if answerable else [],
        "document_ids": [f"d{number}"],
        "document_versions": [f"v{number}"],
        "group": f"g{number}",
        "generator": "structure",
    }


def make_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with consecutive numbers."""
    return [make_row(number) for number in range(start, start + count)]


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as a table of the instruction schema."""
    return pa.Table.from_pylist(list(rows), schema=schemas.instructions_schema())


def build_dataset(
    root: Path,
    *,
    name: str = "colours",
    train: int = 32,
    held: int = 8,
    template: str = CHAT_TEMPLATE,
) -> DatasetVersion:
    """Write a small dataset version."""
    splits = {
        "train": table(make_rows(train)),
        "validation": table(make_rows(held, 1000)),
        "test": table(make_rows(held, 2000)),
    }
    origin = {
        "snapshot": "d1c1",
        "embedder": {"model": "none", "weights_digest": "0" * 64},
        "chunker_digest": "c" * 64,
        "prompt_digest": prompts.prompt_digest(template, RETRIEVAL),
        "retrieval": RETRIEVAL,
    }
    return write_dataset(
        root,
        name,
        splits,
        origin=origin,
        details={"generators": {"structure": train}},
        card="# {version}\n",
    )
