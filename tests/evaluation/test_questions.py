from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag_fti.errors import SourceError
from rag_fti.evaluation.asking import items_of_files
from rag_fti.evaluation.questions import (
    read_questions,
    same_source,
    supporting_chunks,
    supports,
)
from rag_fti.progress import Silent
from rag_fti.schemas import Hit


def hit(text: str, source: str = "corpus/a.md", start: int = 0) -> Hit:
    return Hit("c", "d", "v", source, "", "", None, start, start + len(text), text, 1.0)


def test_the_sample_questions_can_be_read(repository: Path) -> None:
    questions = read_questions(repository / "data/sample/questions.jsonl")
    assert len(questions) > 100
    assert any(q.held_out for q in questions) and any(not q.answerable for q in questions)


def test_csv_and_jsonl_give_the_same_questions(tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    table.write_text(
        'id,question,answers,source,span,held_out\nx,"What, now?",one|two,a.md,It is one.,yes\n',
        encoding="utf-8",
    )
    lines = tmp_path / "q.jsonl"
    lines.write_text(
        '{"id": "x", "question": "What, now?", "answers": ["one", "two"], "held_out": true, '
        '"spans": [{"source": "a.md", "text": "It is one."}]}\n\n',
        encoding="utf-8",
    )
    assert read_questions(table) == read_questions(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON"),
        ("[]", "expected an object"),
        ("[" * 100_000, "not JSON"),
        (r'{"question": "q", "answers": ["\ud83d"]}', "not JSON .*surrogates"),
        ('{"question": " "}', "not empty"),
        ('{"question": "q", "answers": "a"}', "list of texts"),
        ('{"question": "q", "spans": [{"source": "a"}]}', "'spans' must be"),
        ('{"question": "q", "spans": [{"source": "a", "start": 3, "end": 3}]}', "'spans' must be"),
        ('{"question": "q", "held_out": "no"}', "true or false"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SourceError, match=f"line 2: .*{message}"):
        read_questions(path)


def test_repeated_ids_and_missing_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Cannot read"):
        read_questions(tmp_path / "none.jsonl")
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "a", "question": "x"}\n{"id": "a", "question": "y"}\n')
    with pytest.raises(SourceError, match="more than once"):
        read_questions(path)


def test_a_question_asked_twice_without_ids_is_two_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "x"}\n{"question": "y"}\n{"question": "x"}\n')
    first, _, again = read_questions(path)
    assert again.id == f"{first.id}-2"


def test_an_answer_may_be_one_text(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "x", "answer": "Ada"}\n')
    assert read_questions(path)[0].answers == ("Ada",)


def test_tables_of_other_separators_and_capital_letters(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("Question;Answer\nHow much, in euros?;2,50\n", encoding="utf-8-sig")
    (question,) = read_questions(path)
    assert (question.question, question.answers) == ("How much, in euros?", ("2,50",))


def test_a_comma_that_makes_a_cell_too_many_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,answer\nWhen?,now\nWhat, then?,this\n")
    with pytest.raises(SourceError, match="line 3: 3 cells under 2 columns"):
        read_questions(path)


def test_sources_match_by_whole_path_components() -> None:
    assert same_source("corpus/a.md", "data/sample/corpus/a.md")
    assert same_source("/x/corpus/a.md", "./corpus/a.md")
    assert not same_source("a.md", "aa.md")
    assert not same_source("b/a.md", "c/a.md")


def test_spans_by_text_and_by_offset() -> None:
    passage = hit("The new member is Yusuf\nBrandreth, a fisherman.", start=100)
    text = {"source": "a.md", "text": "new member is Yusuf Brandreth"}
    assert supports(passage, [text])
    assert not supports(hit("Something else.", start=100), [text])
    assert not supports(hit(passage.text, source="b.md"), [text])
    assert supports(passage, [{"source": "a.md", "start": 110, "end": 130}])
    assert not supports(passage, [{"source": "a.md", "start": 0, "end": 90}])
    assert not supports(passage, [{"source": "a.md", "start": 50, "end": 105}])


def test_without_spans_a_passage_that_says_the_answer_supports_it() -> None:
    says = hit("The door is Deep Red.")
    assert supporting_chunks([says], spans=(), answers=("deep red",)) == {"c"}
    assert supporting_chunks([says], spans=(), answers=("blue",)) == frozenset()
    assert supporting_chunks([says], spans=(), answers=()) == frozenset()
    elsewhere = {"source": "b.md", "text": "The door is deep red."}
    assert supporting_chunks([says], spans=(elsewhere,), answers=("deep red",)) == frozenset()


def test_line_separators_inside_a_question_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes('{"question": "one\u2028two\u0085three"}\r\n{"question": "x"}\r\n'.encode())
    assert [q.question for q in read_questions(path)] == ["one\u2028two\u0085three", "x"]


def test_a_table_that_is_no_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,answer\nwhat,this\nwhy," + "long" * 40_000 + "\n")
    with pytest.raises(SourceError, match="line 3: not CSV"):
        read_questions(path)


@pytest.mark.parametrize(
    "text",
    [
        'question,answer\nWhat?,this\n"Who?,Ada\nWhy?,so\nHow?,thus\n',
        'question,answer\nWhat?,this\n"Who?,Ada\n"Why, then?",so\nHow?,thus\n',
        'question,answer\nWhat?,this\nWho?,"Ada',
    ],
)
def test_a_quote_that_is_never_closed_swallows_no_questions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match="line 3: not CSV"):
        read_questions(path)
    path.write_text('question,"answer\nWho?,Ada\n')
    with pytest.raises(SourceError, match="line 1: not CSV"):
        read_questions(path)


def test_tables_of_careless_quotes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        'question,answer\nWhat is a 3" pipe?,"a" or "b"\n"Who, ""then""\nand why?","""A"""\n\n'
        '"How?","by ""x""'
        '"'
    )
    assert [(q.question, q.answers[0]) for q in read_questions(path)] == [
        ('What is a 3" pipe?', 'a or "b"'),
        ('Who, "then"\nand why?', '"A"'),
        ("How?", 'by "x"'),
    ]


def test_a_short_row_lacks_cells_not_columns(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,answer\nWhat is open?\nWho?,Ada\n")
    assert [q.answers for q in read_questions(path)] == [(), ("Ada",)]


def test_the_words_of_a_span_must_stand_together() -> None:
    span = [{"source": "a.md", "text": "It runs for 35 years, from 1990 to 2025."}]
    assert supports(hit("Before. It runs for 35 years, from 1990 to"), span)
    assert supports(hit("It runs for thirty-five 35 years, from 1990 to 2025."), span)
    scattered = (
        "From 2025 it will cost more. It was 1990 when, for years, the 35 runs to town ended."
    )
    assert not supports(hit(scattered), span)


def test_fewer_questions_come_from_the_whole_file(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": f"q{n}", "question": f"What is {n}?", "answers": [str(n)]})
        for n in range(100)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")

    def asked(seed: int, most: int = 20) -> list[int]:
        items = items_of_files(
            [path], held_out_only=True, most=most, at="1", progress=Silent(), seed=seed
        )
        return [int(item.question[8:-1]) for item in items]

    some = asked(1)
    assert len(some) == 20 and some == sorted(set(some))
    assert max(some) > 50 and some == asked(1) != asked(2)
    assert asked(1, most=0) == list(range(100))
