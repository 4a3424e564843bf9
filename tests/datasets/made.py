"""Small candidates."""

from __future__ import annotations

from rag_fti.datasets.candidates import Candidate
from rag_fti.schemas import Hit


def hit(text: str, *, chunk: str = "c", document: str = "d", source: str = "corpus/a.md") -> Hit:
    return Hit(chunk, document, "v", source, "Title", "Head", None, 0, len(text), text, 1.0)


def candidate(question: str, answer: str, text: str = "", **where: str) -> Candidate:
    chunks = (hit(text, **where),) if text else ()
    return Candidate(question, answer, "structure", chunks)
