from __future__ import annotations

import datetime
import email.message
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from reportlab.pdfgen.canvas import Canvas

from rag_fti.errors import SourceError
from rag_fti.features.loading import (
    Limits,
    Loaded,
    LoaderPool,
    LoadFailure,
    LoadTask,
    find_sources,
    load,
    source_name,
)
from rag_fti.features.loading.parsing import title_of
from rag_fti.features.loading.sources import is_below, members

LIMITS = Limits(parse_timeout_seconds=20)


def loaded(name: str, data: bytes, limits: Limits = LIMITS) -> Loaded:
    return load(LoadTask(name, data=data), limits)


def refused(name: str, data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(SourceError) as caught:
        load(LoadTask(name, data=data), limits)
    return str(caught.value)


def pdf(*pages: str) -> bytes:
    stream = io.BytesIO()
    canvas = Canvas(stream)
    canvas.setTitle("Manual")
    for page in pages:
        canvas.drawString(72, 700, page)
        canvas.showPage()
    canvas.save()
    return stream.getvalue()


def saved(document: object) -> bytes:
    stream = io.BytesIO()
    document.save(stream)  # type: ignore[attr-defined]
    return stream.getvalue()


def test_pdf_pages_are_kept() -> None:
    found = loaded("a.pdf", pdf("First page.", "Second page.", "Third page."))
    assert found.title == "Manual"
    assert [found.text[start : start + 5] for start in found.pages] == ["First", "Secon", "Third"]


def test_a_pdf_without_text_or_with_a_password_is_refused() -> None:
    assert "no text layer" in refused("a.pdf", pdf(""))
    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=io.BytesIO(pdf("secret")))
    writer.encrypt("password")
    stream = io.BytesIO()
    writer.write(stream)
    assert "password" in refused("a.pdf", stream.getvalue())


def test_too_many_pages_are_refused() -> None:
    assert "3 pages" in refused("a.pdf", pdf("a", "b", "c"), Limits(max_pages=2))


def test_word_keeps_headings_lists_and_tables_in_order() -> None:
    document = docx.Document()
    document.add_heading("Manual", 0)
    document.add_heading("Parts", 1)
    document.add_paragraph("A list:")
    document.add_paragraph("one", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ["name", "size", "bolt", "8 mm"], strict=True):
        cell.text = text
    document.add_paragraph("The end.")
    text = loaded("a.docx", saved(document)).text
    assert text == (
        "# Manual\n\n# Parts\n\nA list:\n\n- one\n\n"
        "| name | size |\n| --- | --- |\n| bolt | 8 mm |\n\nThe end."
    )


def test_slides_are_pages_with_titles_and_notes() -> None:
    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide title {number}"
        slide.placeholders[1].text = f"Point {number}"
        slide.notes_slide.notes_text_frame.text = f"Note {number}"
    found = loaded("a.pptx", saved(deck))
    assert len(found.pages) == 2
    assert found.text[found.pages[1] :].startswith("## Slide title 2\n\nPoint 2\n\nNote 2")


def test_spreadsheet_rows_carry_their_column_names() -> None:
    book = openpyxl.Workbook()
    book.active.title = "Stock"
    for row in (["item", "count"], ["bolt", 12], ["nut", None]):
        book.active.append(row)
    assert loaded("a.xlsx", saved(book)).text == (
        "## Stock\n\nitem; count\nitem: bolt; count: 12\nitem: nut\n\n"
    )


def test_spreadsheet_values_are_written_as_they_are_shown() -> None:
    book = openpyxl.Workbook()
    book.active.title = "Tax"
    moment = datetime.datetime(2024, 3, 1, 10, 30)
    book.active.append(["day", "time", "rate", "total", "sum", "paid", "number"])
    day = datetime.datetime(2024, 3, 1)
    book.active.append([day, moment, 0.19, 13.0, 0.1 + 0.2, True, 123456789012])
    book.active["C2"].number_format = "0%"
    assert loaded("a.xlsx", saved(book)).text.splitlines()[-2] == (
        "day: 2024-03-01; time: 2024-03-01 10:30:00; rate: 19%; total: 13; sum: 0.3; "
        "paid: True; number: 123456789012"
    )


def test_titles_above_a_spreadsheet_are_not_its_column_names() -> None:
    book = openpyxl.Workbook()
    book.active.title = "Stock"
    for row in (["Stock 2024"], ["in pieces"], [], ["item", "count"], ["bolt", 12], ["note"]):
        book.active.append(row)
    assert loaded("a.xlsx", saved(book)).text == (
        "## Stock\n\nStock 2024\nin pieces\nitem; count\nitem: bolt; count: 12\nitem: note\n\n"
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b"item,count\nbolt,12\n"),
        ("a.csv", b"item;count\r\nbolt;12\r\n"),
        ("a.csv", b"\xef\xbb\xbfitem;count\nbolt;12\n"),
        ("a.csv", b"sep=|\r\nitem|count\r\nbolt|12\r\n"),
        ("a.tsv", b"item\tcount\nbolt\t12\n"),
        ("a.csv", "item,count\nbolt,12\n".encode("utf-16")),
    ],
)
def test_separated_values(name: str, data: bytes) -> None:
    assert loaded(name, data).text == "item; count\nitem: bolt; count: 12"


def test_json_and_json_lines() -> None:
    value = {"name": "bolt", "sizes": [8, 10], "maker": {"city": "Ulm"}, "none": None}
    text = "name: bolt\nsizes: 8, 10\nmaker.city: Ulm\nnone: null"
    assert loaded("a.json", json.dumps(value).encode()).text == text
    lines = "\n".join([json.dumps(value), json.dumps({"name": "nut"})]).encode()
    assert loaded("a.jsonl", lines).text == f"{text}\n\nname: nut"
    odd = '{"name": "a\u2028b"}\r\n{"name": "c\u0085d"}\n'
    assert loaded("a.jsonl", odd.encode()).text == "name: a\nb\n\nname: c\nd"
    assert refused("a.json", b'{"open": ')
    assert "deep" in refused("a.json", b"[" * 200_000)


def test_html_main_content_without_navigation() -> None:
    article = " ".join(f"Sentence {n} of the article is about turbines." for n in range(40))
    page = (
        "<html lang='de'><head><title>Turbines</title><style>p{}</style></head><body>"
        "<nav><a href='/'>Home</a><a href='/x'>Pricing</a></nav>"
        f"<article><h1>Turbines</h1><p>{article}</p><h2>Care</h2><p>Oil them.</p></article>"
        "<script>var tracking = 1;</script></body></html>"
    )
    found = loaded("a.html", page.encode())
    assert found.title == "Turbines"
    assert found.metadata == {"language": "de"}
    assert "Sentence 39" in found.text
    assert "# Turbines" in found.text
    assert "Pricing" not in found.text
    assert "tracking" not in found.text


def test_small_html_keeps_all_visible_text() -> None:
    page = "<p>One</p><ul><li>two</li></ul><table><tr><td>a<td>b</table><pre>x  =  1</pre>"
    text = loaded("a.html", page.encode()).text
    assert text == "One\n\n- two\n\n| a | b |\n| --- | --- |\n\n```\nx  =  1\n```"


def test_declared_encodings_are_followed() -> None:
    page = "<meta charset='iso-8859-2'><p>Dvořák žije</p>"
    assert loaded("a.html", page.encode("iso-8859-2")).text == "Dvořák žije"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252"]
)
def test_text_encodings_are_found(encoding: str) -> None:
    text = "Die Straße führt über den Fluß nach Süden, sagt der Müller. " * 5
    assert loaded("a.txt", text.encode(encoding)).text == text


def test_white_space_alone_is_an_empty_text() -> None:
    assert loaded("a.txt", b" \n\n\t\r\n").text == loaded("b.txt", b"").text == ""


def test_binary_content_is_refused_with_a_reason() -> None:
    assert "binary" in refused("a.txt", os.urandom(4000))
    assert "PNG" in refused("a.md", b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "docx" in refused("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert refused("a.docx", b"just text")


def test_wrong_extensions_are_seen_through() -> None:
    assert loaded("a.txt", pdf("Hello page.")).media_type == "application/pdf"
    document = docx.Document()
    document.add_paragraph("Hello word.")
    assert loaded("a.doc", saved(document)).text == "Hello word."


def test_mail_headers_body_and_attachments() -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"] = "a@example.org", "b@example.org"
    message["Subject"] = "Käse order"
    message.set_content("Please send cheese.")
    message.add_alternative("<p>Please send <b>cheese</b>.</p>", subtype="html")
    message.add_attachment(b"x", maintype="application", subtype="zip", filename="list.zip")
    found = loaded("a.eml", message.as_bytes())
    assert found.title == "Käse order"
    assert "Please send cheese." in found.text
    assert "Attachments: list.zip" in found.text
    assert found.text.count("cheese") == 1


def test_attachments_of_a_mail_are_read() -> None:
    forwarded = email.message.EmailMessage()
    forwarded["Subject"] = "The old rule"
    forwarded.set_content("Dogs stay outside.")
    message = email.message.EmailMessage()
    message["Subject"] = "Rules"
    message.set_content("See below.")
    message.add_attachment(
        b"keeper;key\nAda;4", maintype="text", subtype="csv", filename="keys.csv"
    )
    message.add_attachment(b"broken", maintype="application", subtype="pdf", filename="scan.pdf")
    message.add_attachment(b"x", maintype="image", subtype="png", filename="dog.png")
    message.add_attachment(forwarded)
    text = loaded("a.eml", message.as_bytes()).text
    assert "Attachments: keys.csv, scan.pdf, dog.png, The old rule.eml" in text
    assert "# Attachment: keys.csv\n\nkeeper; key\nkeeper: Ada; key: 4" in text
    assert "# Attachment: scan.pdf\n\n(not read: " in text
    assert "Dogs stay outside." in text
    assert text.index("See below.") < text.index("keeper: Ada")


def test_notebooks_show_code_in_fences() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}]},
    ]
    book = {"cells": cells, "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4}
    text = loaded("a.ipynb", json.dumps(book).encode()).text
    assert text == "# Title\nwords\n\n```python\n1 + 1\n```\n\n```\n2\n```"


def epub() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            "<container xmlns='urn:oasis:names:tc:opendocument:xmlns:container'><rootfiles>"
            "<rootfile full-path='OPS/book.opf'/></rootfiles></container>",
        )
        archive.writestr(
            "OPS/book.opf",
            "<package xmlns='http://www.idpf.org/2007/opf'><metadata "
            "xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:title>Book</dc:title></metadata>"
            "<manifest><item id='b' href='two.xhtml'/><item id='a' href='one.xhtml'/></manifest>"
            "<spine><itemref idref='a'/><itemref idref='b'/></spine></package>",
        )
        archive.writestr("OPS/one.xhtml", "<html><body><h1>One</h1><p>first</p></body></html>")
        archive.writestr("OPS/two.xhtml", "<html><body><h1>Two</h1><p>second</p></body></html>")
    return stream.getvalue()


def test_books_are_read_in_spine_order() -> None:
    found = loaded("a.epub", epub())
    assert found.title == "Book"
    assert found.text == "# One\n\nfirst\n\n# Two\n\nsecond"


def test_rich_text() -> None:
    data = rb"{\rtf1\ansi{\fonttbl{\f0 Times;}}\f0 Caf\'e9 \u8364?\par{\*\generator x;}Second}"
    assert loaded("a.rtf", data).text == "Café €\n\nSecond"


def test_a_line_above_the_columns_does_not_decide_what_separates_them() -> None:
    text = loaded("a.csv", b"Prices 2024\nName;Price\nPump;1,5\nValve;2,25\n").text
    assert "Name: Pump; Price: 1,5" in text


def test_front_matter_gives_the_title_and_stays_in_the_text() -> None:
    text = "---\ntitle: Real title\n---\n\n# Heading\n"
    found = loaded("a.md", text.encode())
    assert (found.title, found.text) == ("Real title", text)


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        (
            "a.rst",
            "PEP: 1\nTitle: API for\n  code\nPost-History:\n\nAbstract\n====\n",
            "API for code",
        ),
        ("a.txt", ":Title: A guide\n:Author: me\n\nHello.\n", "A guide"),
        ("a.txt", "Title: one field alone\n\nmay be a sentence.\n", ""),
        ("a.txt", "Note: the title: below\nruns on.\n\nTitle: x\n", ""),
    ],
)
def test_header_fields_give_the_title(name: str, text: str, title: str) -> None:
    found = loaded(name, text.encode())
    assert (found.title, found.text) == (title, text)


def test_titles_fall_back_to_heading_and_file_name() -> None:
    assert title_of("", "Heading", "a/b.md") == "Heading"
    assert title_of("Untitled", "", "docs/start_up-guide.pdf") == "start up guide"
    assert title_of("", "", "x.zip!/in/side.md") == "side"


def test_zip_bombs_are_refused_by_what_they_say_they_hold() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 60_000_000)
    assert "unpacks to" in refused("a.docx", stream.getvalue())


def test_files_over_the_limit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(SourceError, match="larger than 50 bytes"):
        load(LoadTask("a.txt", path=tmp_path / "a.txt"), Limits(max_file_bytes=50))
    assert "characters of text" in refused("a.txt", b"x" * 100, Limits(max_text_chars=50))


# -- workers -----------------------------------------------------------------------------------


def test_results_come_in_order_and_failures_are_reasons(tmp_path: Path) -> None:
    files = {"1.md": b"one", "2.pdf": pdf("two"), "3.pdf": b"%PDF-broken", "4.md": b"four"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    tasks = [LoadTask(name, path=tmp_path / name) for name in [*files, "5.md"]]
    with LoaderPool(workers=2, limits=LIMITS) as pool:
        results = list(pool.load_all(tasks))
    assert [task.source for task, _ in results] == [*files, "5.md"]
    kinds = [type(result) for _, result in results]
    assert kinds == [Loaded, Loaded, LoadFailure, Loaded, LoadFailure]


def test_a_parser_that_takes_too_long_is_killed_and_the_next_file_is_read(tmp_path: Path) -> None:
    # A PDF page whose content stream goes on for very long.
    slow = tmp_path / "slow.pdf"
    stream = io.BytesIO()
    canvas = Canvas(stream, pageCompression=0)
    text = canvas.beginText(72, 700)
    for number in range(40_000):
        text.textOut(f"word{number} ")
    canvas.drawText(text)
    canvas.save()
    slow.write_bytes(stream.getvalue())
    (tmp_path / "next.pdf").write_bytes(pdf("next"))
    tasks = [LoadTask(name, path=tmp_path / name) for name in ("slow.pdf", "next.pdf")]
    with LoaderPool(workers=1, limits=Limits(parse_timeout_seconds=0.5)) as pool:
        results = dict((task.source, result) for task, result in pool.load_all(tasks))
    assert "took longer than 0.5 s" in results["slow.pdf"].reason


def test_a_worker_that_dies_costs_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("a"))
    (tmp_path / "b.pdf").write_bytes(pdf("b"))
    with LoaderPool(workers=1, limits=LIMITS) as pool:
        results = pool.load_all([LoadTask(n, path=tmp_path / n) for n in ("a.pdf", "b.pdf")])
        pool_results = []
        for task, result in results:
            pool_results.append((task.source, type(result)))
            if task.source == "a.pdf" and pool._workers and pool._workers[0].job is not None:
                os.kill(pool._workers[0]._process.pid, 9)
    assert pool_results[0] == ("a.pdf", Loaded)


# -- sources -----------------------------------------------------------------------------------


def test_directories_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "d/a.md",
        "d/sub/b.txt",
        "d/.hidden/c.md",
        "d/x.bin",
        "d/y.DOC",
        "d/node_modules/y.md",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    found = find_sources(
        ["./d/", "d/a.md", "d/**/*.txt", "nowhere", "none-*.md"], exclude=[".*", "node_modules"]
    )
    assert list(found.sources) == ["d/a.md", "d/sub/b.txt"]
    assert found.skipped == {
        "d/x.bin": "unknown type",
        "d/y.DOC": "old binary Office format; save it as .docx",
    }
    assert set(found.failures) == {"nowhere", "none-*.md"}
    assert list(find_sources(["d"], include=["*.bin"]).sources) == ["d/x.bin"]
    assert source_name("./d//a.md") == "d/a.md"


def test_what_lies_below_a_root() -> None:
    assert is_below("d/a.md", ["d"])
    assert is_below("d/x.zip!/a.md", ["d/x.zip"])
    assert is_below("a.md", ["."])
    assert is_below("d/a.md", [], patterns=["d/*.md"])
    assert is_below("d/e/f/a.md", [], patterns=["d/**/*.md"])
    assert not is_below("d/e/a.md", [], patterns=["d/*.md"])
    assert not is_below("notes1.md", ["notes[1].md"])
    assert not is_below("https://host/a.md", ["."])
    assert not is_below("../../other/a.md", [".."])
    assert not is_below("dd/a.md", ["d"])
    assert not is_below("../a.md", ["."])


def archive_with(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in files.items():
                opened.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz") as opened:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                opened.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_members_of_archives(tmp_path: Path, name: str) -> None:
    files = {"guide/a.md": b"one", "../../evil.md": b"two", "x.bin": b"no", ".git/c.md": b"no"}
    path = archive_with(tmp_path / name, files)
    found = {t.source: t.data for t in members(path, name, LIMITS) if isinstance(t, LoadTask)}
    assert found[f"{name}!/guide/a.md"] == b"one"
    assert not any("x.bin" in source or ".git" in source for source in found)


def test_archives_in_archives_are_read(tmp_path: Path) -> None:
    data = archive_with(tmp_path / "4.zip", {"too-deep.md": b"no"}).read_bytes()
    for name in ("3.tar.gz", "2.zip", "1.zip"):
        inner = {"below.zip": data, f"{name}.md": name.encode(), "torn.zip": data[:40]}
        data = archive_with(tmp_path / name, inner).read_bytes()
    found = list(members(tmp_path / "1.zip", "1.zip", LIMITS))
    texts = {t.source: t.data for t in found if isinstance(t, LoadTask)}
    assert texts["1.zip!/below.zip!/2.zip.md"] == b"2.zip"
    assert texts["1.zip!/below.zip!/below.zip!/3.tar.gz.md"] == b"3.tar.gz"
    refused = dict(t for t in found if not isinstance(t, LoadTask))
    assert "damaged" in refused["1.zip!/torn.zip"]
    assert "depth" in refused["1.zip!/below.zip!/below.zip!/below.zip"]
    assert len(texts) == 3


def test_a_bomb_inside_an_archive_is_refused(tmp_path: Path) -> None:
    bomb = archive_with(tmp_path / "b.zip", {f"{n}.md": b"0" * 3_000_000 for n in range(9)})
    path = archive_with(tmp_path / "a.zip", {"b.zip": bomb.read_bytes(), "z.md": b"text"})
    with pytest.raises(SourceError, match="unpacks to more"):
        list(members(path, "a.zip", Limits(max_expansion=2.0)))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_archive_bombs_and_damage_are_refused(tmp_path: Path, name: str) -> None:
    path = archive_with(tmp_path / name, {f"{n}.md": b"0" * 3_000_000 for n in range(9)})
    with pytest.raises(SourceError, match="unpacks to more"):
        list(members(path, name, Limits(max_expansion=2.0)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SourceError, match="archive"):
        list(members(path, name, LIMITS))
