from __future__ import annotations

from rag_fti.datasets.questions import ChunksBySource
from rag_fti.schemas import Question
from tests.datasets.made import hit

PLACES = ChunksBySource(
    [
        hit("The door is Deep Red.", chunk="a", source="corpus/a.md"),
        hit("The gate is deep\nred, too.", chunk="b", source="corpus/b.md"),
        hit("The deeper door is redder.", chunk="c", source="other/b.md"),
    ]
)


def found(question: Question) -> list[str]:
    return [hit.chunk_id for hit in PLACES.of(question)]


def test_without_spans_the_answer_is_looked_for_everywhere() -> None:
    assert found(Question("q", "What colour?", ("deep red",))) == ["a", "b"]
    assert found(Question("q", "What colour?", ("blue",))) == []


def test_spans_name_their_source_by_any_end_of_its_path() -> None:
    def span(source: str, text: str) -> Question:
        return Question("q", "What?", ("red",), ({"source": source, "text": text},))

    assert found(span("./corpus/b.md", "gate is deep red")) == ["b"]
    assert found(span("data\\other\\b.md", "deeper door is redder")) == ["c"]
    assert found(span("elsewhere/b.md", "gate is deep red")) == []
