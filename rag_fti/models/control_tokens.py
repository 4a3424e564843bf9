"""Keeping text from speaking the model's control language.

A tokenizer reads ``<|im_start|>`` as a control token wherever it stands, also inside a quoted
document. Before tokenizing, such strings are changed in one character, to a look-alike, so that
they are read as text. So are ``<think>`` and ``<tool_call>``, which tokenizers add without calling
them special: a token in brackets controls where the usual models or the chat template use it as
such. Other added tokens (words, runs of spaces, tags of HTML) are text. The tokens that
:mod:`rag_fti.prompts` itself writes (passage tags, citation markers, the abstention) are left: it
defuses those inside documents and questions on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rag_fti import prompts
from rag_fti.protocols import Message

COMMON = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|<\uff5c[^\uff5c<>]{1,60}\uff5c>|</?(?:think|tool_call|tool_response)>",
    re.IGNORECASE,
)
"""Control tokens of the usual model families, for servers whose tokenizer is not known."""

_LOOK_ALIKES = {"<": "\u2039", "[": "(", "|": "\u00a6", "{": "(", "_": "\u2017", "\u2581": "_"}
_BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_OWN = frozenset({"<passage>", "</passage>", prompts.ABSTENTION})


def control_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """What to look for in texts for this tokenizer; None where it has no control tokens."""
    template = str(getattr(tokenizer, "chat_template", None) or "")

    def controls(text: str) -> bool:
        used = _BRACKETED.fullmatch(text) and text in template
        return bool(used or COMMON.fullmatch(text))

    tokens = {str(token) for token in tokenizer.all_special_tokens}
    tokens |= {
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.special or controls(token.content)
    }
    foreign = _foreign(tokens)
    return re.compile("|".join(map(re.escape, foreign))) if foreign else None


def defuse(
    messages: Sequence[Message], pattern: re.Pattern[str] | None
) -> tuple[dict[str, str], ...]:
    """Messages with every control token in their contents changed in its first character."""
    return tuple(
        {
            "role": message["role"],
            "content": pattern.sub(_changed, message["content"]) if pattern else message["content"],
        }
        for message in messages
    )


def _foreign(tokens: Iterable[str]) -> list[str]:
    """Tokens that a prompt's own rendering does not write, longest first."""
    return sorted(
        (t for t in tokens if t.strip() and t not in _OWN and not prompts.MARKER.fullmatch(t)),
        key=len,
        reverse=True,
    )


def _changed(match: re.Match[str]) -> str:
    token = match.group()
    return _LOOK_ALIKES.get(token[0], "·") + token[1:]
