"""The sample corpus and its questions keep the promises of data/sample/README.md."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from docx import Document
from pypdf import PdfReader

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
CORPUS = SAMPLE / "corpus"
DOCUMENTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
TEXT_SUFFIXES = {".md", ".txt", ".html"}


class _VisibleText(HTMLParser):
    """Text outside script and style; block elements separate words, inline ones do not."""

    INLINE = frozenset({"a", "b", "code", "em", "i", "span", "strong"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in {"script", "style"}
        if tag not in self.INLINE:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in {"script", "style"}
        if tag not in self.INLINE:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _fold(text: str) -> str:
    return " ".join(text.split())


def _unmarked(text: str) -> str:
    """Without the bars of table rows and other marks that the cleaned text has, and this not."""
    return re.sub(r" ([.,;)])", r"\1", _fold(re.sub(r"[|`*]", " ", text)))


@cache
def _text(path: Path) -> str:
    """The document's visible text, with runs of white space folded to one space."""
    if path.suffix == ".pdf":
        return _fold("\n".join(page.extract_text() for page in PdfReader(path).pages))
    if path.suffix == ".docx":
        document = Document(str(path))
        cells = [cell.text for table in document.tables for row in table.rows for cell in row.cells]
        return _fold("\n".join([*(paragraph.text for paragraph in document.paragraphs), *cells]))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        parser = _VisibleText()
        parser.feed(text)
        text = "".join(parser.parts)
    return _fold(text)


def _questions() -> list[dict[str, Any]]:
    lines = (SAMPLE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


QUESTIONS = _questions()
ANSWERABLE = [question for question in QUESTIONS if question["answerable"]]


def test_enough_documents_in_enough_formats() -> None:
    counts = {
        suffix: sum(path.suffix == suffix for path in DOCUMENTS)
        for suffix in {p.suffix for p in DOCUMENTS}
    }
    assert len(DOCUMENTS) >= 30
    assert set(counts) == {".md", ".txt", ".html", ".pdf", ".docx"}
    assert counts[".pdf"] >= 3
    assert counts[".docx"] >= 3


def test_enough_words() -> None:
    texts = [_text(path) for path in DOCUMENTS if path.suffix in TEXT_SUFFIXES]
    texts += [
        path.read_text(encoding="utf-8") for path in sorted((SAMPLE / "sources").rglob("*.md"))
    ]
    assert sum(len(text.split()) for text in texts) >= 30_000


def test_every_binary_has_a_source_and_the_reverse() -> None:
    sources = {
        path.relative_to(SAMPLE / "sources").with_suffix("")
        for path in (SAMPLE / "sources").rglob("*.md")
    }
    binaries = {path.relative_to(CORPUS) for path in DOCUMENTS if path.suffix in {".pdf", ".docx"}}
    assert sources == binaries


def test_readme_names_every_document() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in DOCUMENTS if f"`{path.name}`" not in readme] == []


def test_questions_are_many_and_distinct() -> None:
    assert len(QUESTIONS) >= 150
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question["question"] for question in QUESTIONS}) == len(QUESTIONS)


def test_shares_of_unanswerable_and_held_out() -> None:
    held_out = [question for question in QUESTIONS if question["held_out"]]
    assert len(held_out) >= 350
    assert len(QUESTIONS) - len(held_out) >= 1000
    for part in (QUESTIONS, held_out):
        unanswerable = sum(not question["answerable"] for question in part)
        assert 0.20 <= unanswerable / len(part) <= 0.30


def test_questions_cover_every_document_in_both_parts() -> None:
    everything = {str(path.relative_to(SAMPLE).as_posix()) for path in DOCUMENTS}
    for held_out in (True, False):
        covered = {s["source"] for q in ANSWERABLE if q["held_out"] is held_out for s in q["spans"]}
        assert everything - covered == set()


def test_no_question_to_train_on_asks_for_a_held_out_fact() -> None:
    held_out = {
        (span["source"], _fold(span["text"]), answer.lower())
        for question in ANSWERABLE
        if question["held_out"]
        for span in question["spans"]
        for answer in question["answers"]
    }
    shared = [
        question["id"]
        for question in ANSWERABLE
        if not question["held_out"]
        for span in question["spans"]
        if (span["source"], _fold(span["text"]), question["answers"][0].lower()) in held_out
    ]
    assert shared == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_answers_stand_in_their_documents(document: Path) -> None:
    source = document.relative_to(SAMPLE).as_posix()
    text = _unmarked(_text(document))
    absent = [
        (question["id"], span["text"])
        for question in ANSWERABLE
        for span in question["spans"]
        if span["source"] == source and _unmarked(span["text"]) not in text
    ]
    assert absent == []


def test_questions_have_their_form() -> None:
    names = {path.relative_to(SAMPLE).as_posix() for path in DOCUMENTS}
    for question in QUESTIONS:
        assert set(question) == {"id", "question", "answers", "spans", "held_out", "answerable"}
        assert question["question"].endswith("?"), question["id"]
        if not question["answerable"]:
            assert question["answers"] == question["spans"] == [], question["id"]
            continue
        assert question["answers"][0] in question["spans"][0]["text"], question["id"]
        for span in question["spans"]:
            assert span["source"] in names, question["id"]
            assert "\n" not in span["text"], question["id"]
