"""The user's own question files as candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rag_fti.alignment import align, folded, may_say
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.filters import EvaluationQuestion
from rag_fti.evaluation.questions import last_component, read_questions, same_source, supports
from rag_fti.schemas import Hit, Question

GENERATOR = "pairs"
Lines = Literal["held out", "held out or all", "all"]


class ChunksBySource:
    """Finds the chunks that a question's spans lie in.

    Args:
        chunks: All chunks.
    """

    def __init__(self, chunks: Sequence[Hit]) -> None:
        self._by_source: dict[str, list[Hit]] = {}
        for chunk in chunks:
            self._by_source.setdefault(chunk.source, []).append(chunk)
        # Sources that can be the same have the same last component.
        self._by_name: dict[str, list[str]] = {}
        for source in self._by_source:
            self._by_name.setdefault(last_component(source), []).append(source)
        self._folded: dict[str, str] = {}

    def of(self, question: Question) -> list[Hit]:
        """Chunks that hold a span of the question; where it has none, those with its answer.

        Chunks that say an accepted answer come first.
        """
        if not question.spans:
            return [
                chunk
                for chunks in self._by_source.values()
                for chunk in chunks
                if any(self._says(chunk, answer) for answer in question.answers)
            ]
        wanted = {str(span["source"]) for span in question.spans}
        sources = dict.fromkeys(
            source
            for name in wanted
            for source in self._by_name.get(last_component(name), ())
            if same_source(name, source)
        )
        near = [
            chunk
            for source in sorted(sources)
            for chunk in self._by_source[source]
            if supports(chunk, question.spans)
        ]
        said = [c for c in near if any(align(answer, c.text) for answer in question.answers)]
        return [*said, *(c for c in near if c not in said)]

    def _says(self, chunk: Hit, answer: str) -> bool:
        """Whether a chunk says an answer; most chunks are ruled out without aligning."""
        if chunk.chunk_id not in self._folded:
            self._folded[chunk.chunk_id] = folded(chunk.text)
        return may_say(answer, self._folded[chunk.chunk_id]) and bool(align(answer, chunk.text))


def candidates_from(
    questions: Sequence[Question], chunks: ChunksBySource, *, ambiguous_above: int = 3
) -> tuple[list[Candidate], dict[str, int]]:
    """Candidates of question lines that may be trained on.

    Args:
        questions: Lines of a file.
        chunks: Where answers are looked for.
        ambiguous_above: A question without spans is left out when its answer stands in more
            chunks than this: nobody could say which one it means.

    Returns:
        Candidates, and why other lines gave none.
    """
    found: list[Candidate] = []
    dropped: Counter[str] = Counter()
    for question in questions:
        if question.held_out:
            dropped["held out"] += 1
            continue
        if not question.answerable:
            found.append(Candidate(question.question, "", GENERATOR, (), "unanswerable"))
            continue
        if not question.answers:
            dropped["no answer given"] += 1
            continue
        places = chunks.of(question)
        if not places:
            dropped["span not in the store"] += 1
        elif not question.spans and len(places) > ambiguous_above:
            dropped["answer in many places"] += 1
        else:
            answer = next(
                (a for a in question.answers if align(a, places[0].text)), question.answers[0]
            )
            found.append(Candidate(question.question, answer, GENERATOR, tuple(places), "pair"))
    return found, dict(sorted(dropped.items()))


def read_pairs(
    files: Iterable[Path], chunks: ChunksBySource
) -> tuple[list[Candidate], dict[str, int]]:
    """Candidates of question files, and why other lines gave none.

    Raises:
        SourceError: If a file is wrong.
    """
    candidates: list[Candidate] = []
    dropped: Counter[str] = Counter()
    for path in files:
        found, left_out = candidates_from(read_questions(path), chunks)
        candidates += found
        dropped.update(left_out)
    return candidates, dict(dropped)


def read_evaluation(
    files: Mapping[Path, Lines], chunks: ChunksBySource
) -> list[EvaluationQuestion]:
    """Questions of files that must not leak.

    Args:
        files: Question files, and which of their lines: those marked ``held_out``, these or all
            where none is marked, or all.
        chunks: Where spans are looked for.

    Raises:
        SourceError: If a file is wrong.
    """
    found = []
    for path, lines in files.items():
        questions = read_questions(path)
        held = [question for question in questions if question.held_out]
        if lines == "all" or (lines == "held out or all" and not held):
            held = questions
        found += [
            EvaluationQuestion(
                question.question,
                question.answers,
                frozenset(c.chunk_id for c in chunks.of(question))
                if question.spans
                else frozenset(),
            )
            for question in held
        ]
    return found
