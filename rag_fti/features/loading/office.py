"""Zip-based documents: DOCX, PPTX, XLSX, ODT, EPUB."""

from __future__ import annotations

import datetime
import io
import posixpath
import urllib.parse
import zipfile
from collections.abc import Iterator
from typing import Any

from rag_fti.features.loading.markup import fragment_to_markdown, table_to_markdown
from rag_fti.features.loading.parsed import Limits, Parsed
from rag_fti.features.loading.records import row_lines

_SMALL_BYTES = 4 * 1024 * 1024


def check_expansion(data: bytes, limits: Limits) -> None:
    """Refuse zip bombs by what the directory of the archive says.

    Raises:
        ValueError: If it unpacks to too much, or is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"damaged file: {error}") from error
    if any(entry.flag_bits & 1 for entry in entries):
        raise ValueError("password-protected")
    total = sum(entry.file_size for entry in entries)
    if total > max(_SMALL_BYTES, limits.max_expansion * max(1, len(data))):
        raise ValueError(
            f"unpacks to {total} bytes, more than {limits.max_expansion:g} times its size"
        )


def parse_docx(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A Word document: headings, paragraphs, lists and tables in their order."""
    import docx

    check_expansion(data, limits)
    document = docx.Document(io.BytesIO(data))
    parts = [part for part in _docx_parts(document) if part]
    properties = document.core_properties
    return Parsed(
        "\n\n".join(parts),
        title=properties.title or "",
        media_type=media_type,
        metadata={"author": properties.author} if properties.author else {},
    )


def _docx_parts(document: Any) -> Iterator[str]:
    from docx.table import Table

    for item in document.iter_inner_content():
        if isinstance(item, Table):
            rows = [_cells(row, item) for row in item.rows]
            rows = [row for row in rows if any(row)]
            yield table_to_markdown(rows) if rows else ""
            continue
        text = item.text.strip()
        style = (item.style.name or "") if item.style is not None else ""
        if not text:
            continue
        if style == "Title":
            yield f"# {' '.join(text.split())}"
        elif style.startswith("Heading ") and style[8:].isdigit():
            yield f"{'#' * min(6, int(style[8:]))} {' '.join(text.split())}"
        elif style.startswith("List"):
            yield f"- {text}"
        else:
            yield text


def _cells(row: Any, table: Any) -> list[str]:
    """Texts of a row's cells as they are stored; a merged cell counts once."""
    from docx.table import _Cell

    return [" ".join(_Cell(element, table).text.split()) for element in row._tr.tc_lst]


def parse_pptx(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A presentation: one page per slide with its title, texts, tables and notes."""
    from pptx import Presentation

    check_expansion(data, limits)
    presentation = Presentation(io.BytesIO(data))
    pages = []
    for number, slide in enumerate(presentation.slides, start=1):
        if number > limits.max_pages:
            raise ValueError(f"more than {limits.max_pages} slides")
        title_shape = slide.shapes.title
        title = " ".join(title_shape.text_frame.text.split()) if title_shape is not None else ""
        parts = [f"## {title or f'Slide {number}'}"]
        parts += _shape_texts(slide.shapes, skip=title_shape)
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        pages.append("\n\n".join(part.strip() for part in parts if part.strip()) + "\n\n")
    title = presentation.core_properties.title or ""
    return Parsed("", title, media_type, pages=tuple(pages))


def _shape_texts(shapes: Any, *, skip: Any) -> list[str]:
    texts: list[str] = []
    for shape in shapes:
        if skip is not None and shape.shape_id == skip.shape_id:
            continue
        if hasattr(shape, "shapes"):
            texts += _shape_texts(shape.shapes, skip=skip)
        elif getattr(shape, "has_table", False) and shape.has_table:
            rows = [[" ".join(c.text.split()) for c in row.cells] for row in shape.table.rows]
            texts.append(table_to_markdown(rows))
        elif shape.has_text_frame:
            texts.append("\n".join(p.text for p in shape.text_frame.paragraphs if p.text.strip()))
    return texts


def parse_xlsx(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A workbook: one page per sheet, one line per row."""
    import openpyxl

    check_expansion(data, limits)
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        pages = []
        size = 0
        for sheet in book.worksheets:
            lines = []
            for line in row_lines(map(_shown, row) for row in sheet.iter_rows()):
                lines.append(line)
                size += len(line)
                if size > limits.max_text_chars:
                    raise ValueError(f"more than {limits.max_text_chars} characters")
            pages.append(f"## {sheet.title}\n\n" + "\n".join(lines) + "\n\n" if lines else "")
        title = book.properties.title or ""
    finally:
        book.close()
    return Parsed("", title, media_type, pages=tuple(pages))


def _shown(cell: Any) -> Any:
    """A spreadsheet cell's value about as the program shows it."""
    value = cell.value
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date()
    if isinstance(value, int | float) and not isinstance(value, bool):
        percent = "%" in (cell.number_format or "")
        return f"{value * 100:.10g}%" if percent else f"{value:.15g}"
    return value


def parse_odt(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """An OpenDocument text: headings, paragraphs and table rows."""
    from lxml import etree

    check_expansion(data, limits)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = archive.read("content.xml")
    root = etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))
    text = "{urn:oasis:names:tc:opendocument:xmlns:text:1.0}"
    table = "{urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
    parts = []
    for node in root.iter(f"{text}h", f"{text}p", f"{table}table-row"):
        if any(parent.tag == f"{table}table-row" for parent in node.iterancestors()):
            continue
        if node.tag == f"{table}table-row":
            cells = [" ".join("".join(c.itertext()).split()) for c in node]
            parts.append(f"| {' | '.join(cells)} |")
            continue
        words = " ".join("".join(node.itertext()).split())
        level = int(node.get(f"{text}outline-level", "1")) if node.tag == f"{text}h" else 0
        parts.append(f"{'#' * min(6, level)} {words}" if level else words)
    joined = "\n\n".join(part for part in parts if part)
    return Parsed(joined.replace(" |\n\n| ", " |\n| "), media_type=media_type)


def parse_epub(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """An e-book: the chapters of its spine, in reading order."""
    from lxml import etree

    check_expansion(data, limits)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        container = etree.fromstring(archive.read("META-INF/container.xml"), parser)
        location = container.find(".//{*}rootfile").get("full-path")
        package = etree.fromstring(archive.read(location), parser)
        files = {i.get("id"): i.get("href", "") for i in package.iterfind(".//{*}manifest/{*}item")}
        title = package.findtext(".//{http://purl.org/dc/elements/1.1/}title") or ""
        chapters = []
        for number, reference in enumerate(package.iterfind(".//{*}spine/{*}itemref"), start=1):
            if number > limits.max_pages:
                raise ValueError(f"more than {limits.max_pages} chapters")
            href = urllib.parse.unquote(files.get(reference.get("idref"), "").split("#")[0])
            name = posixpath.normpath(posixpath.join(posixpath.dirname(location), href))
            if name in archive.namelist():
                html = archive.read(name).decode("utf-8", errors="replace")
                chapters.append(fragment_to_markdown(html))
    return Parsed("\n\n".join(c for c in chapters if c), title, media_type)
