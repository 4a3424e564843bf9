"""Tables and records: CSV, JSON, spreadsheets.

A row is written as ``column: value; column: value``, so that every chunk of a long table says
what its numbers mean.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.parsed import Limits, Parsed

_FIELD_BYTES = 16 * 1024 * 1024
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\r?\n', re.IGNORECASE)
"""What Excel writes and reads as first line of a file; it is no data."""


def parse_csv(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """Comma-, semicolon- or tab-separated values; ``sep=;`` or a look tells by what."""
    text = decode(data)
    named = _SEPARATOR_LINE.match(text)
    if named:
        text = text[named.end() :]
    csv.field_size_limit(_FIELD_BYTES)
    default = "\t" if media_type == "text/tab-separated-values" else ","
    delimiter = named[1] if named else _delimiter(text, default)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return Parsed("\n".join(row_lines(rows)), media_type=media_type)


def _delimiter(text: str, default: str) -> str:
    lines = re.sub(r'"[^"]*"', "", text[:20_000]).split("\n")[:20]  # titles may come first
    counts = {mark: sum(mark in line for line in lines) for mark in (default, ";", "\t", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else default


def row_lines(rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Rows with a head as one line each; a single column is written without its name.

    Lines of one cell above the head are titles: the head is the first row of several cells.
    """
    names: list[str] = []
    titles_only = True
    for row in rows:
        cells = [_words(cell) for cell in row]
        filled = sum(map(bool, cells))
        if not filled:
            continue
        if titles_only:
            names, titles_only = cells, filled == 1 and bool(cells[0])
            yield "; ".join(cell for cell in cells if cell)
        else:
            padded = [*names, *[""] * (len(cells) - len(names))]
            pairs = zip(padded, cells, strict=False)
            yield "; ".join(f"{n}: {c}" if n else c for n, c in pairs if c)


def parse_json(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A JSON value as lines of ``path: value``; list entries are kept apart."""
    try:
        value = json.loads(decode(data))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return Parsed(_written(value), media_type=media_type)


def parse_jsonl(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """One JSON value per line; each becomes a paragraph."""
    # Not splitlines: JSON strings may hold other line ends, such as U+2028.
    lines = [line for line in re.split(r"[\r\n]+", decode(data)) if line.strip()]
    try:
        return Parsed(
            "\n\n".join(_written(json.loads(line)) for line in lines), media_type=media_type
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "\n\n".join(_written(item) for item in value)
    return "\n".join(_leaves(value, ""))


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if all(not isinstance(item, dict | list) for item in value):
            yield from _leaf(", ".join(_scalar(item) for item in value), path)
        else:
            for number, item in enumerate(value):
                yield from _leaves(item, f"{path}[{number}]")
    else:
        yield from _leaf(_scalar(value), path)


def _leaf(text: str, path: str) -> Iterator[str]:
    if text:
        yield f"{path}: {text}" if path else text


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(cell: Any) -> str:
    return "" if cell is None else " ".join(str(cell).split())


def parse_notebook(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A Jupyter notebook: Markdown cells, code cells in fences, text outputs."""
    book = json.loads(decode(data))
    if not isinstance(book, dict) or not isinstance(book.get("cells"), list):
        raise ValueError("no notebook cells in it (format 4 is read)")
    language = str(book.get("metadata", {}).get("kernelspec", {}).get("language", ""))
    parts = []
    for cell in book["cells"]:
        source = _joined(cell.get("source", ""))
        if cell.get("cell_type") == "code":
            if source.strip():
                parts.append(f"```{language}\n{source}\n```")
            parts += [f"```\n{text}\n```" for text in _outputs(cell) if text.strip()]
        elif source.strip():
            parts.append(source)
    return Parsed("\n\n".join(parts), media_type=media_type)


def _outputs(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        if "text" in output:
            yield _joined(output["text"])
        elif text := output.get("data", {}).get("text/plain"):
            yield _joined(text)


def _joined(source: Any) -> str:
    return "".join(source) if isinstance(source, list) else str(source)
