"""Damaged files of every format: none may crash, hang or pass silently."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest

from rag_fti.features.chunking import uncovered_characters
from rag_fti.features.loading import Limits, Loaded, LoaderPool, LoadFailure, LoadTask
from rag_fti.schemas import Document
from tests.features.loading.test_loading import epub, pdf, saved
from tests.features.made_up import HashEmbedder, make_chunker

_WORDS = "The turbine turns when the tide runs, and stops when it does not. "


def originals() -> dict[str, bytes]:
    """A sound file of each format."""
    word = docx.Document()
    word.add_heading("Manual", 1)
    word.add_paragraph(_WORDS * 5)
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = _WORDS
    book = openpyxl.Workbook()
    for number in range(30):
        book.active.append([f"row {number}", number, _WORDS])
    message = f"From: a@b.org\nSubject: Tide\nContent-Type: text/html\n\n<p>{_WORDS * 9}</p>"
    notebook = '{"cells": [{"cell_type": "markdown", "source": "# Tide"}], "metadata": {}}'
    return {
        "a.pdf": pdf(_WORDS, _WORDS),
        "a.docx": saved(word),
        "a.pptx": saved(deck),
        "a.xlsx": saved(book),
        "a.epub": epub(),
        "a.html": f"<html><body><h1>Tide</h1><p>{_WORDS * 20}</p></body></html>".encode(),
        "a.xml": f"<a><b>{_WORDS}</b><c x='1'>{_WORDS}</c></a>".encode(),
        "a.md": f"# Tide\n\n{_WORDS * 9}\n\n```\ncode\n```\n\n| a | b |\n| - | - |\n".encode(),
        "a.rst": f"Tide\n====\n\n{_WORDS * 9}\n".encode(),
        "a.csv": ("a,b\n" + f'1,"{_WORDS}"\n' * 20).encode(),
        "a.json": f'{{"a": ["{_WORDS}", {{"b": null}}]}}'.encode(),
        "a.jsonl": (f'{{"a": "{_WORDS}"}}\n' * 9).encode(),
        "a.eml": message.encode(),
        "a.ipynb": notebook.encode(),
        "a.rtf": rb"{\rtf1\ansi " + _WORDS.encode() + rb"\par}",
        "a.py": b"def tide():\n    return 'out'\n" * 20,
    }


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(max(1, len(data) // 200)):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def nulls(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes(chance.randrange(1, 400)) + data[at:]


def repeat(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at : at + 300] * chance.randrange(2, 60) + data[at:]


def shuffle(data: bytes, chance: random.Random) -> bytes:
    parts = [data[n : n + 64] for n in range(0, len(data), 64)]
    chance.shuffle(parts)
    return b"".join(parts)


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncate,
    flip,
    nulls,
    repeat,
    shuffle,
)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Files that are well formed and too much."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", b"<w>" + b" " * 80_000_000)
    yield "bomb.docx", stream.getvalue()
    depth = 100_000
    yield "deep.json", b"[" * depth + b"]" * depth
    yield "deep.html", b"<div>" * depth + b"text"
    yield "deep.xml", b"<a>" * depth + b"</a>" * depth
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    yield "laughs.xml", f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><a>&e11;</a>'.encode()
    yield "deep.rtf", b"{\\rtf1" + b"{" * depth
    yield "fences.md", b"```\n" * 50_000
    yield "hashes.md", b"#" * 500_000
    anchors = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    yield "anchors.md", f"---\n{anchors}title: *a29\n---\n".encode()
    yield "brackets.md", b"# " + b"[" * 50_000 + b"\n"
    yield "cells.csv", b'"' * 300_001


def mutants(count: int) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(17)
    sound = originals()
    names = list(sound)
    for number in range(count):
        name = names[number % len(names)]
        data = MUTATIONS[number // len(names) % len(MUTATIONS)](sound[name], chance)
        if number % 7 == 0:
            name = f"a.{chance.choice(names).split('.')[1]}"  # a wrong extension
        yield name, data


def survive(tmp_path: Path, files: Iterator[tuple[str, bytes]]) -> dict[str, int]:
    tasks = []
    for number, (name, data) in enumerate(files):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(data)
        tasks.append(LoadTask(path.name, path=path))
    chunker = make_chunker(HashEmbedder())
    counts = {"loaded": 0, "refused": 0}
    with LoaderPool(workers=2, limits=Limits(parse_timeout_seconds=20)) as pool:
        for task, result in pool.load_all(tasks):
            if isinstance(result, LoadFailure):
                assert result.reason.strip(), task.source
                counts["refused"] += 1
                continue
            counts["loaded"] += 1
            assert uncovered_characters(result.text, chunker.chunk(as_document(result))) == 0
            result.text.encode("utf-8")
    assert sum(counts.values()) == len(tasks)
    return counts


def as_document(loaded: Loaded) -> Document:
    return Document(
        document_id="d",
        collection="c",
        source="s",
        title=loaded.title,
        text=loaded.text,
        media_type=loaded.media_type,
        raw_digest="r",
        version="v",
        pages=loaded.pages,
    )


def test_sound_files_are_all_read(tmp_path: Path) -> None:
    assert survive(tmp_path, iter(originals().items())) == {"loaded": 16, "refused": 0}


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    counts = survive(tmp_path, mutants(160))
    assert counts["loaded"] > 0
    assert counts["refused"] > 0


def test_bombs_do_no_harm(tmp_path: Path) -> None:
    survive(tmp_path, bombs())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_damaged_files(tmp_path: Path) -> None:
    survive(tmp_path, mutants(2000))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_line_of_fifty_megabytes(tmp_path: Path) -> None:
    line = (_WORDS.encode() * 1_000_000)[: 50 * 1024 * 1024]
    assert survive(tmp_path, iter([("long.txt", line)]))["refused"] == 1  # over 50 M characters
    assert survive(tmp_path, iter([("long.txt", line[:49_000_000])]))["loaded"] == 1
