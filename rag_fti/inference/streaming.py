"""Showing an answer while it is written, so that the pieces add up to the finished text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag_fti import prompts
from rag_fti.errors import InferenceError
from rag_fti.inference.citations import (
    drop_empty_markers,
    first_words,
    is_abstention_start,
    without_thought,
)

# A space may belong to a marker that will be dropped, a bracket may open one, also where a marker
# inside it is dropped first.
_UNDECIDED = re.compile(r"(?:\s*\[\d{0,3})*\s*$")
_ABSTENTION = prompts.ABSTENTION.casefold()


class AnswerStream:
    """Lets text through as soon as nothing that follows can change it.

    Args:
        known: Number of passages in the prompt.
    """

    def __init__(self, *, known: int) -> None:
        self._known = known
        self._raw = ""
        self._shown = ""
        self._held = True
        # The wording of an abstention is fixed; nothing is shown while it may become one.

    def push(self, piece: str) -> str:
        """Take a piece of the reply; return what can be shown now (may be empty)."""
        self._raw += piece
        raw = without_thought(self._raw)
        text = drop_empty_markers(raw, known=self._known).lstrip()
        text = _UNDECIDED.sub("", text)
        if self._held:
            may_abstain = _ABSTENTION.startswith(first_words(text)) or (
                is_abstention_start(text) and prompts.is_abstention(text)
            )
            if may_abstain or not prompts.says_something(text):
                return ""
            self._held = False
        return self._release(text)

    def finish(self, text: str) -> Sequence[str]:
        """The rest of the answer whose finished text is ``text``."""
        if not text.startswith(self._shown):
            raise InferenceError(f"Shown was {self._shown!r}, but the answer is {text!r}.")
        rest = self._release(text)
        return [rest] if rest else []

    def _release(self, text: str) -> str:
        piece = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown += piece
        return piece
