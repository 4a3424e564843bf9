"""Question and answer pairs before they are filtered, given a context and split."""

from __future__ import annotations

from dataclasses import dataclass

from rag_fti.schemas import Hit

RULES = "structure"
"""The generator whose questions rules make in the words of the text."""


@dataclass(frozen=True)
class Candidate:
    """A question with its answer and where that stands."""

    question: str
    answer: str
    """Short answer in the words of its chunk; empty where the documents have none."""
    generator: str
    """``structure``, ``model``, ``teacher``, ``pairs`` or ``feedback``."""
    chunks: tuple[Hit, ...] = ()
    """Chunks that hold the answer, best first; empty where the documents have none."""
    rule: str = ""
    """What made it, for the counts."""
    shown: frozenset[str] | None = None
    """Ids of the chunks for which somebody said that they hold no answer; other passages may hold
    one. None where nobody looked at passages."""

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return bool(self.chunks)
