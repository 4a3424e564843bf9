from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_fti import ids
from rag_fti.errors import ConfigError
from rag_fti.features.chunking import embedded_text, uncovered_characters
from rag_fti.features.cleaning import clean_text
from rag_fti.features.structure import blocks_of
from rag_fti.schemas import Chunk, Document
from tests.features.made_up import HashEmbedder, make_chunker

TYPES = ("text/markdown", "text/x-rst", "text/plain", "text/x-source-python", "application/pdf")

PIECES = (
    "# Heading\n",
    "## Sub\n",
    "words and more words. ",
    "\n\n",
    "\n",
    "```\ncode()\n```\n",
    "| a | b |\n| --- | --- |\n| 1 | 2 |\n",
    "Title\n=====\n",
    "x" * 300,
    "漢字。",
    "- item\n",
    "def f():\n    pass\n",
    "    indented\n",
    " ",
    "\t",
    "---\n",
    "~~~\n",
    "#\n",
    "A long sentence, with commas; and more! ",
)


def document(text: str, media_type: str = "text/markdown", **changes: object) -> Document:
    values = {
        "document_id": "d",
        "collection": "c",
        "source": "s",
        "title": "Title",
        "text": text,
        "media_type": media_type,
        "raw_digest": "r",
        "version": "v",
    }
    return Document(**{**values, **changes})  # type: ignore[arg-type]


def cut(text: str, media_type: str = "text/markdown", **changes: int) -> list[Chunk]:
    return make_chunker(HashEmbedder(), **changes).chunk(document(text, media_type))


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=40),
    media_type=st.sampled_from(TYPES),
    overlap=st.sampled_from([0, 10]),
)  # fmt: skip
def test_chunks_cover_every_text_and_fit(pieces: list[str], media_type: str, overlap: int) -> None:
    text = clean_text("".join(pieces))
    embedder = HashEmbedder()
    chunker = make_chunker(embedder, overlap_tokens=overlap)
    doc = document(text, media_type)
    chunks = chunker.chunk(doc)
    assert uncovered_characters(text, chunks) == 0
    assert len({chunk.chunk_id for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert embedder.count_tokens([chunk.text])[0] <= 40
        indexed = chunker.indexed_text(doc, chunk)
        assert indexed.endswith(chunk.text)
        assert embedder.count_tokens([indexed])[0] <= embedder.fingerprint.max_tokens
    if not overlap:
        assert "".join(chunk.text for chunk in chunks) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=400), media_type=st.sampled_from(TYPES))
def test_blocks_cover_any_text(text: str, media_type: str) -> None:
    text = clean_text(text)
    blocks = blocks_of(text, media_type)
    assert "".join(text[block.start : block.end] for block in blocks) == text


def test_headings_start_chunks_and_give_the_path() -> None:
    text = (
        "# Guide\n\nIntroduction that is long enough to stand on its own here.\n\n"
        "## Install\n\nRun the installer and then wait until it is done with everything.\n\n"
        "### Linux\n\nUse the package manager of the distribution that you have there.\n\n"
        "## Use\n\nPress the button and then look at what the screen says about it.\n"
    )
    chunks = cut(text)
    assert [chunk.heading for chunk in chunks] == [
        "Guide", "Guide > Install", "Guide > Install > Linux", "Guide > Use",
    ]  # fmt: skip
    assert chunks[2].text.startswith("### Linux")


def test_a_repeated_title_is_left_out_of_the_path() -> None:
    doc = document("# Title\n\n## Part\n\nwords\n")
    assert make_chunker(HashEmbedder()).chunk(doc)[0].heading == "Part"


def test_code_and_tables_stay_whole_where_they_fit() -> None:
    code = "```python\ndef f(x):\n\n    return x\n```\n"
    table = "| a | b |\n| - | - |\n| 1 | 2 |\n"
    filler = "Some words that fill the chunk before it, more and more of them. " * 2
    chunks = cut(f"{filler}\n\n{code}\n{filler}\n\n{table}\n{filler}")
    assert any(code in chunk.text for chunk in chunks)
    assert any(table in chunk.text for chunk in chunks)


def test_hash_signs_in_code_are_no_headings() -> None:
    chunks = cut("# Real\n\ntext\n\n```sh\n# not a heading\n```\n\nmore text\n")
    assert {chunk.heading for chunk in chunks} == {"Real"}


def test_the_rest_of_a_long_table_keeps_its_column_names() -> None:
    rows = "".join(f"| item {n} | {n} kg | shelf {n} |\n" for n in range(40))
    table = f"| Item | **Weight** | Place |\n|:---|---:|---|\n{rows}"
    first, *rest, last = cut(f"# Stock\n\n{table}\nText after the table.\n")
    assert first.heading == "Stock" and "Weight" in first.text
    assert rest and {chunk.heading for chunk in (*rest, last)} == {"Stock > Item | Weight | Place"}
    assert not any("Weight" in chunk.text for chunk in (*rest, last))


def test_rows_without_a_rule_name_no_columns() -> None:
    rows = "".join(f"| item {n} | {n} kg | shelf {n} |\n" for n in range(40))
    assert {chunk.heading for chunk in cut(f"# Stock\n\n{rows}")} == {"Stock"}


def test_front_matter_and_rules_are_no_headings() -> None:
    blocks = blocks_of("---\ntitle: x\n---\n\ntext\n\n---\n\nmore\n", "text/markdown")
    assert all(block.kind == "text" for block in blocks)


def test_restructured_text_headings_nest_by_order_of_style() -> None:
    text = (
        "=====\nTitle\n=====\n\nOne\n===\n\nwords\n\nTwo\n---\n\nwords\n\nThree\n=====\n\nwords\n"
    )
    paths = [b.headings for b in blocks_of(text, "text/x-rst") if b.kind == "text"]
    assert paths == [("Title", "One"), ("Title", "One", "Two"), ("Title", "Three")]


def test_source_code_is_cut_at_definitions() -> None:
    body = "".join(f"    line_{n} = call_{n}(argument)\n" for n in range(3))
    text = f"import os\n\ndef first():\n{body}\nclass Second:\n{body}"
    assert [chunk.heading for chunk in cut(text, "text/x-source-python")] == ["first", "Second"]


def test_a_chunk_has_the_page_with_most_of_its_text() -> None:
    text = "one.\n\ntwo two two.\n\nthree three three three.\n\n"
    doc = document(text, "application/pdf", pages=(0, 6, 20))
    assert [c.page for c in make_chunker(HashEmbedder()).chunk(doc)] == [3]
    single = make_chunker(HashEmbedder(), max_tokens=16).chunk(
        document("x. " * 40, "application/pdf", pages=(0, 60))
    )
    assert (single[0].page, single[-1].page) == (1, 2)


def test_the_scrap_of_one_sheet_does_not_join_the_next() -> None:
    sheets = ("## Stock\n\nscrews: 4\n\n", "## Prices\n\nscrews: 7 and nails: 9\n\n")
    doc = document("".join(sheets), pages=(0, len(sheets[0])))
    chunks = make_chunker(HashEmbedder(), min_tokens=20).chunk(doc)
    assert [(c.text, c.page, c.heading) for c in chunks] == [
        (sheets[0], 1, "Stock"),
        (sheets[1], 2, "Prices"),
    ]


@pytest.mark.parametrize(
    ("source", "title", "heading", "embedded"),
    [
        ("docs/scan-17.txt", "scan 17", "", "Text."),
        ("a/chunking.py", "chunking", "Chunker", "Chunker\nText."),
        ("docs/start_up-guide.txt", "start up guide", "", "start up guide\nText."),
        ("docs/scan-17.txt", "Scanned", "", "Scanned\nText."),
    ],
)
def test_a_file_name_of_one_word_is_searched_but_not_embedded(
    source: str, title: str, heading: str, embedded: str
) -> None:
    doc = document("Text.", source=source, title=title)
    chunk = replace(cut("Text.")[0], heading=heading)
    indexed = make_chunker(HashEmbedder()).indexed_text(doc, chunk)
    assert indexed.startswith(title)
    assert embedded_text(indexed, title=title, source=source) == embedded


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = " ".join(f"Sentence number {n} has several words." for n in range(20))
    chunks = cut(text, overlap_tokens=12)
    assert all(b.start < a.end for a, b in itertools.pairwise(chunks))
    assert uncovered_characters(text, chunks) == 0


def test_ids_survive_edits_elsewhere() -> None:
    text = "# A\n\nfirst words here and there.\n\n# B\n\nlast words here and there.\n"
    before = {c.text: c.chunk_id for c in cut(text)}
    after = {c.text: c.chunk_id for c in cut(text.replace("first", "changed"))}
    assert (
        before["# B\n\nlast words here and there.\n"]
        == after["# B\n\nlast words here and there.\n"]
    )
    same = cut("# A\n\nwords\n\n" * 3, min_tokens=0)
    assert len({chunk.chunk_id for chunk in same}) == len(same)


def test_sizes_that_do_not_fit_the_embedder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"chunking\.max_tokens"):
        make_chunker(HashEmbedder(max_tokens=32), max_tokens=31)
    with pytest.raises(ConfigError, match="overlap"):
        make_chunker(HashEmbedder(), overlap_tokens=30)


def test_the_digest_follows_the_settings() -> None:
    digests = {
        make_chunker(HashEmbedder(), **changes).digest
        for changes in ({}, {"max_tokens": 41}, {"overlap_tokens": 1}, {"min_tokens": 9})
    }
    assert len(digests) == 4
    assert make_chunker(HashEmbedder()).digest in digests


def test_uncovered_characters_counts_gaps_and_wrong_texts() -> None:
    def chunk(start: int, end: int, text: str) -> Chunk:
        return Chunk("i", "d", "v", 0, start, end, text, "", None, 1)

    assert uncovered_characters("abcdef", [chunk(0, 2, "ab"), chunk(3, 6, "def")]) == 1
    assert uncovered_characters("abcdef", [chunk(0, 6, "abcdeX")]) == 6
    assert uncovered_characters("abc", []) == 3
    assert uncovered_characters("", []) == 0


def test_a_huge_line_without_spaces_is_cut_in_reasonable_time() -> None:
    text = "x" * 1_000_000
    chunks = cut(text, "text/plain")
    assert uncovered_characters(text, chunks) == 0


def test_real_documents_are_covered(repository: Path) -> None:
    embedder = HashEmbedder()
    chunker = make_chunker(embedder)
    files = sorted((repository / "data" / "sample" / "corpus").rglob("*.md"))
    assert files
    for file in files:
        text = clean_text(file.read_text(encoding="utf-8"))
        assert text == file.read_text(encoding="utf-8")  # spans of files hold as they are
        chunks = chunker.chunk(document(text, document_id=ids.document_id("c", str(file))))
        assert uncovered_characters(text, chunks) == 0


def test_cleaning_twice_changes_nothing() -> None:
    text = "a\r\nb\rc\x00d\u200be\ufeff\x0c\u202egh\ud800"
    assert clean_text(text) == "a\nb\ncde\ngh"
    assert clean_text(clean_text(text)) == clean_text(text)


def test_closing_signs_are_no_part_of_a_heading() -> None:
    titles = {"# a ##": "a", "## b#": "b#", "# ##": "", "#": "", "# c # d #\t": "c # d"}
    for line, title in titles.items():
        (block,) = blocks_of(line, "text/markdown")
        assert block.kind == "heading" and block.headings == ((title,) if title else ())
    (block,) = blocks_of("# a" + " " * 200_000 + "x", "text/markdown")  # in no time
    assert block.kind == "heading"
