"""Several turns of talk, and the one question to search with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rag_fti import prompts
from rag_fti.protocols import GenerationRequest, Generator, Message

CONDENSED_TOKENS = 64
_PREVIOUS_CHARS = 400
"""Most of an earlier turn before a question: embedders cut what is too long at its end."""
_REASONING = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Condensed:
    """What to search with and what to ask."""

    query: str
    """Text for retrieval."""
    question: str
    """Text for the prompt."""
    history: tuple[Message, ...]
    """Earlier turns that stay in the prompt."""
    turns: tuple[Message, ...] = ()
    """Earlier turns that were taken into account."""


def condense(
    question: str,
    history: Sequence[Message],
    *,
    mode: str,
    generator: Generator,
) -> Condensed:
    """Make a follow-up question findable.

    Args:
        question: The user's last message.
        history: Earlier user and assistant turns, oldest first.
        mode: ``off`` searches with the question alone; ``previous`` puts the user's previous
            turn before it; ``model`` lets the generator rewrite it to stand alone, and does as
            ``previous`` where the rewriting comes to no end of its own.
        generator: Used with mode ``model``.
    """
    turns = tuple(history)
    earlier = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not earlier or mode == "off":
        return Condensed(question, question, turns, turns)
    if mode == "model":
        request = GenerationRequest(
            messages=tuple(prompts.condense_messages(question, turns)), max_tokens=CONDENSED_TOKENS
        )
        (made,) = generator.generate([request])
        if made.finish_reason == "stop" and (rewritten := made.text.strip()):
            return Condensed(rewritten, rewritten, (), turns)
    previous = earlier[-1].strip()[-_PREVIOUS_CHARS:]
    return Condensed(f"{previous}\n{question}", question, turns, turns)


def recent(
    history: Sequence[Message],
    *,
    turns: int,
    fits: Callable[[Sequence[Message]], bool],
) -> tuple[Message, ...]:
    """The last turns that fit, oldest first, beginning with a user's turn.

    Answers come without their citation markers, which number passages that are not there any more,
    and without what the model thought before them.

    Args:
        history: All earlier turns.
        turns: Most question and answer pairs.
        fits: Whether a history leaves enough room in the prompt.
    """
    kept = [_unmarked(turn) for turn in list(history)[-2 * turns :]] if turns else []
    while kept and (kept[0]["role"] != "user" or not fits(kept)):
        kept.pop(0)
    return tuple(kept)


def _unmarked(turn: Message) -> Message:
    if turn["role"] != "assistant":
        return turn
    thinking = _REASONING.match(turn["content"])
    answer = turn["content"][thinking.end() :] if thinking else turn["content"]
    return {**turn, "content": prompts.without_markers(answer)}
