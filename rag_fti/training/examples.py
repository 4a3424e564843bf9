"""Dataset rows as token ids, rendered by the code that serving uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_fti import prompts
from rag_fti.errors import TrainingError
from rag_fti.models.control_tokens import control_pattern, defuse
from rag_fti.protocols import Message, Tokenizer


@dataclass(frozen=True)
class Example:
    """One prompt and its completion."""

    input_ids: tuple[int, ...]
    """Prompt, then completion, then the end token."""
    prompt_length: int
    """Tokens of the prompt; the loss counts only what comes after."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def completion_length(self) -> int:
        """Tokens the loss counts."""
        return len(self.input_ids) - self.prompt_length


@dataclass(frozen=True)
class EncodedRows:
    """Examples that fit, and what did not."""

    examples: tuple[Example, ...]
    too_long: int
    """Rows left out because they exceed the token limit. Cutting them would train on prompts
    that serving never sends."""

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example) for example in self.examples)

    @property
    def completion_tokens(self) -> int:
        """Tokens the loss counts."""
        return sum(example.completion_length for example in self.examples)


def encode_rows(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, *, end_token_id: int, max_tokens: int
) -> EncodedRows:
    """Encode rows of an instruction dataset.

    Args:
        rows: Rows with ``messages``, the last one the assistant's.
        tokenizer: The base model's tokenizer.
        end_token_id: Token that ends the model's turn.
        max_tokens: Longest example in tokens.

    Raises:
        TrainingError: If a row's last message is not the assistant's.
    """
    examples, too_long = [], 0
    control = control_pattern(tokenizer)
    for row in rows:
        *prompt, reply = row["messages"]
        if reply["role"] != "assistant":
            raise TrainingError(
                f"Row {row.get('example_id', '?')} ends with a {reply['role']!r} message, "
                "expected the assistant's."
            )
        example = encode(prompt, reply, tokenizer, control=control, end_token_id=end_token_id)
        if len(example) > max_tokens:
            too_long += 1
        else:
            examples.append(example)
    return EncodedRows(tuple(examples), too_long)


def encode(
    prompt: Sequence[Message],
    reply: Message,
    tokenizer: Tokenizer,
    *,
    control: re.Pattern[str] | None,
    end_token_id: int,
) -> Example:
    """A prompt and its reply as serving tokenizes them.

    Args:
        prompt: Messages of the prompt.
        reply: The assistant's message.
        tokenizer: The base model's tokenizer.
        control: Its control tokens, which are text where they stand in a message.
        end_token_id: Token that ends the model's turn.
    """
    *shown, said = defuse([*prompt, reply], control)
    head = prompts.prompt_token_ids(tokenizer, shown)
    tail = prompts.completion_token_ids(tokenizer, said["content"], end_token_id=end_token_id)
    return Example((*head, *tail), len(head))


def prompt_ids(
    row: Mapping[str, Any], tokenizer: Tokenizer, *, control: re.Pattern[str] | None
) -> list[int]:
    """The prompt of a row as serving tokenizes it; arguments as of :func:`encode`."""
    return prompts.prompt_token_ids(tokenizer, defuse(row["messages"][:-1], control))


def rows_with_room(
    rows: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, *, window: int
) -> list[Mapping[str, Any]]:
    """Rows whose prompt leaves room for a reply.

    Args:
        rows: Rows of an instruction dataset.
        tokenizer: The base model's tokenizer.
        window: Most tokens of prompt and reply together.
    """
    control = control_pattern(tokenizer)
    return [row for row in rows if len(prompt_ids(row, tokenizer, control=control)) < window]


def end_token(tokenizer: Any) -> int:
    """The token that ends a turn in the tokenizer's chat format.

    Raises:
        TrainingError: If the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            "The base model's tokenizer has no end-of-sequence token.",
            next_step="Set eos_token in its tokenizer_config.json.",
        )
    return int(tokenizer.eos_token_id)
