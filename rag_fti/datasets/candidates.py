"""Question and answer pairs before they are filtered, given a context and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rag_fti.schemas import Hit


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
    source_id: str = ""
    """Id of the line or response it came from."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answerable(self) -> bool:
        """Whether the documents hold the answer."""
        return bool(self.chunks)
