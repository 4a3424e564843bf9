"""Question files: JSONL or CSV of questions with accepted answers and where they are found.

A JSONL line is ``{"id", "question", "answers": [..], "spans": [{"source", "start", "end"} or
{"source", "text"}], "held_out", "answerable"}``; all but ``question`` may be left out, and a
single accepted answer may stand as a text under ``answer``. A CSV file has the columns
``question`` and ``answer`` (or ``answers``, separated by ``|``), and may have ``id``, ``source``,
``span`` (verbatim text), ``held_out`` and ``answerable``; commas, semicolons or tabs separate.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from rag_fti import ids
from rag_fti.alignment import align
from rag_fti.errors import SourceError
from rag_fti.schemas import Hit, Question

_SPAN_COVERAGE = 0.8
"""Share of a span's words a passage must hold to count as its source, where the span text is
broken by a line end or a chunk boundary."""

_SPARE_WORDS = 2
"""Other words that may stand among them."""

_TRUE = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}


def read_questions(path: Path) -> list[Question]:
    """All questions of a file, in order.

    Raises:
        SourceError: If the file cannot be read or a line is wrong; says which.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        questions = _from_csv(path)
    else:
        questions = [
            _parse(path, number, line)
            # Not splitlines: JSON strings may hold other line ends, such as U+2028.
            for number, line in enumerate(_read(path).split("\n"), start=1)
            if line.strip()
        ]
    names = question_ids([(q.id, q.question) for q in questions])
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        text = next(q.question for q in questions if q.id == repeated[0])
        raise SourceError(
            f"{path} uses the id {repeated[0]!r} more than once, first for {text!r}.",
            next_step="Give each question its own id, or none.",
        )
    return [replace(q, id=name) for q, name in zip(questions, names, strict=True)]


def question_ids(given: Sequence[tuple[str, str]]) -> list[str]:
    """Ids of questions: their own, else one made from the text, numbered where it is repeated.

    Args:
        given: Own id, empty for none, and text of each question.
    """
    made: Counter[str] = Counter()
    names = []
    for own, text in given:
        name = own
        if not own:
            name = ids.content_id("question", text)[:12]
            made[name] += 1
            name += f"-{made[name]}" if made[name] > 1 else ""
        names.append(name)
    return names


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV or TSV file with a column ``question``, with the numbers of their lines.

    Column names are in lower case; cells that a row lacks are empty. The separator is the one
    that gives such a column.

    Raises:
        SourceError: If the file cannot be read, is no CSV or has no such column.
    """
    # One line more: a quote that is open at the end spans it.
    lines = [*io.StringIO(_read(path)), "\n"]
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    for separator in separators:
        rows = []
        begun = 1
        try:
            header = [name.strip().lower() for name in next(csv.reader(lines, delimiter=separator))]
            if "question" not in header:
                continue
            reader = csv.reader(lines, delimiter=separator)
            for row in reader:
                if reader.line_num > begun:
                    # Quotes are read leniently, but not where one may swallow other rows.
                    among = lines[begun - 1 : reader.line_num]
                    list(csv.reader(among, delimiter=separator, strict=True))
                begun = reader.line_num + 1
                rows.append((reader.line_num, row))
        except csv.Error as error:
            raise SourceError(
                f"{path}, line {begun}: not CSV ({error}).",
                next_step="Repair what begins there (a text in double quotes ends with one, and "
                "has those within it doubled), or give the questions as JSON lines.",
            ) from error
        rows = [(line, row) for line, row in rows[1:] if row]
        for line, row in rows:
            if any(cell.strip() for cell in row[len(header) :]):
                raise SourceError(
                    f"{path}, line {line}: {len(row)} cells under {len(header)} columns.",
                    next_step=f"Put texts that hold {separator!r} into double quotes.",
                )
        return [
            (line, dict(zip_longest(header, row[: len(header)], fillvalue="")))
            for line, row in rows
        ]
    columns = lines[0].strip()[:200] or "(none)"
    raise SourceError(
        f"{path} has the columns {columns}, but none is called question.",
        next_step="Name the columns in the first line.",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"Cannot read the question file {path}: {error}.",
            next_step="Give a UTF-8 file of JSON lines or CSV.",
        ) from error


def same_source(one: str, other: str) -> bool:
    """Whether one path is the end of the other, whole components only."""
    first, second = _components(one), _components(other)
    length = min(len(first), len(second))
    return length > 0 and first[-length:] == second[-length:]


def last_component(path: str) -> str:
    """Last component of a path; two paths that are the same source have the same."""
    return (_components(path) or [""])[-1]


def _components(path: str) -> list[str]:
    return [part for part in PurePosixPath(path.replace("\\", "/")).parts if part != "."]


def supports(hit: Hit, spans: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a passage is where one of the spans is found.

    A span with offsets is found where both overlap by half of the span or of the passage; a span
    with text where the passage holds it (spaces aside) or at least 80 % of its words close
    together.
    """
    return any(_holds(hit, span) for span in spans if same_source(str(span["source"]), hit.source))


def supporting_chunks(
    hits: Sequence[Hit], *, spans: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> frozenset[str]:
    """Ids of the passages that hold a question's answer.

    Args:
        hits: Retrieved passages.
        spans: Where the answer stands; where nobody said, passages that say an accepted answer
            hold it.
        answers: Accepted answers.
    """
    return frozenset(
        hit.chunk_id
        for hit in hits
        if (
            supports(hit, spans)
            if spans
            else any(align(answer, hit.text) is not None for answer in answers)
        )
    )


def _holds(hit: Hit, span: Mapping[str, Any]) -> bool:
    if "text" in span:
        wanted, there = _words(str(span["text"])), _words(hit.text)
        if f" {' '.join(wanted)} " in f" {' '.join(there)} ":
            return True
        return bool(wanted) and _nearly_holds(there, wanted)
    start, end = int(span["start"]), int(span["end"])
    shared = min(end, hit.end) - max(start, hit.start)
    return shared > 0 and 2 * shared >= min(end - start, hit.end - hit.start)


def _nearly_holds(there: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether enough of the words stand together, not just somewhere in the passage."""
    needed, words = _SPAN_COVERAGE * len(wanted), Counter(wanted)
    if (words & Counter(there)).total() < needed:
        return False
    width = len(wanted) + _SPARE_WORDS
    return any(
        (words & Counter(there[start : start + width])).total() >= needed
        for start in range(max(1, len(there) - width + 1))
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _parse(path: Path, number: int, line: str) -> Question:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # an escape may be half a character
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}, line {number}: not JSON ({error}).",
            next_step="One JSON object with a question per line.",
        ) from error
    return _question(path, number, value)


def _question(path: Path, number: int, value: Any) -> Question:
    def wrong(what: str) -> SourceError:
        return SourceError(f"{path}, line {number}: {what}.")

    if not isinstance(value, dict):
        raise wrong("expected an object")
    text = value.get("question")
    if not isinstance(text, str) or not text.strip():
        raise wrong("'question' must be a text that is not empty")
    answers = value.get("answers", [value["answer"]] if value.get("answer") else [])
    if not isinstance(answers, list) or not all(isinstance(a, str) and a for a in answers):
        raise wrong("'answers' must be a list of texts")
    spans = value.get("spans", [])
    if not isinstance(spans, list) or not all(_valid_span(span) for span in spans):
        raise wrong("'spans' must be objects with 'source' and either 'text' or 'start' and 'end'")
    for flag in ("held_out", "answerable"):
        if not isinstance(value.get(flag, False), bool):
            raise wrong(f"{flag!r} must be true or false")
    return Question(
        id=str(value.get("id") or ""),
        question=text.strip(),
        answers=tuple(answers),
        spans=tuple(spans),
        held_out=value.get("held_out", False),
        answerable=value.get("answerable", True),
    )


def _valid_span(span: Any) -> bool:
    if not isinstance(span, dict) or not isinstance(span.get("source"), str):
        return False
    if isinstance(span.get("text"), str):
        return bool(span["text"].strip())
    start, end = span.get("start"), span.get("end")
    return isinstance(start, int) and isinstance(end, int) and 0 <= start < end


def _from_csv(path: Path) -> list[Question]:
    rows = read_rows(path)
    if rows and not {"answer", "answers"} & set(rows[0][1]):
        raise SourceError(
            f"{path} has the columns {', '.join(rows[0][1])}.",
            next_step="The first line must name at least question and answer.",
        )
    questions = []
    for line, row in rows:
        accepted = row.get("answers") or row.get("answer") or ""
        parts = accepted.split("|") if row.get("answers") else [accepted]
        value: dict[str, Any] = {
            "id": row.get("id") or "",
            "question": row.get("question") or "",
            "answers": [part.strip() for part in parts if part.strip()],
            "held_out": _flag(path, line, row.get("held_out") or ""),
            "answerable": _flag(path, line, row.get("answerable") or "true"),
        }
        if row.get("source") and row.get("span"):
            value["spans"] = [{"source": row["source"], "text": row["span"]}]
        questions.append(_question(path, line, value))
    return questions


def _flag(path: Path, number: int, text: str) -> bool:
    try:
        return _TRUE[text.strip().lower()]
    except KeyError as error:
        raise SourceError(f"{path}, line {number}: {text!r} is not true or false.") from error
