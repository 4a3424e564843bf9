"""Build the PDF and DOCX documents of the sample corpus from their Markdown sources.

Usage: python data/sample/make_binaries.py

Each `sources/<folder>/<name>.<pdf|docx>.md` becomes `corpus/<folder>/<name>.<pdf|docx>`.
The same source always gives the same bytes: no clock, no random ids.
"""

from __future__ import annotations

import datetime
import re
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

from docx import Document
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.lib.units import cm
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "sources"
CORPUS = HERE / "corpus"
AUTHOR = "Haldren Tidal and Marine Research Cooperative"
FIXED_TIME = datetime.datetime(2025, 4, 1, 9, 0, 0)


@dataclass(frozen=True)
class Block:
    """A heading (level 1 to 3), a paragraph (level 0) or a table (rows)."""

    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


def parse(source: str) -> list[Block]:
    """Read the small part of Markdown the sources use: headings, paragraphs, pipe tables."""
    blocks: list[Block] = []
    for part in re.split(r"\n\s*\n", source.strip()):
        if part.startswith("|"):
            rows = [
                tuple(cell.strip() for cell in line.strip("|").split("|"))
                for line in part.splitlines()
            ]
            blocks.append(Block(rows=(rows[0], *rows[2:])))
        elif match := re.match(r"(#{1,3}) (.+)$", part):
            blocks.append(Block(match[2], level=len(match[1])))
        else:
            blocks.append(Block(" ".join(part.split())))
    return blocks


def build_pdf(blocks: list[Block], target: Path) -> None:
    """Write the blocks as an A4 PDF with a text layer."""
    styles = getSampleStyleSheet()
    body = styles["BodyText"].clone("Body", fontSize=11, leading=15)
    cell = styles["BodyText"].clone("Cell", fontSize=9, leading=11, spaceBefore=0)
    story: list[Flowable] = []
    for block in blocks:
        if block.rows:
            rows = [[Paragraph(escape(value), cell) for value in row] for row in block.rows]
            grid = [
                ("GRID", (0, 0), (-1, -1), 0.4, colors.grey),
                ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
            ]
            story += [Spacer(1, 4), Table(rows, repeatRows=1, style=grid), Spacer(1, 8)]
        elif block.level:
            story.append(Paragraph(escape(block.text), styles[f"Heading{block.level}"]))
        else:
            story.append(Paragraph(escape(block.text), body))
    document = SimpleDocTemplate(
        str(target), pagesize=A4, title=blocks[0].text, author=AUTHOR, invariant=1,
        leftMargin=2.4 * cm, rightMargin=2.4 * cm, topMargin=2.2 * cm, bottomMargin=2.2 * cm,
    )  # fmt: skip
    document.build(story)


def build_docx(blocks: list[Block], target: Path) -> None:
    """Write the blocks as DOCX, with the archive's times fixed."""
    document = Document()
    properties = document.core_properties
    properties.title, properties.author = blocks[0].text, AUTHOR
    properties.created = properties.modified = FIXED_TIME
    for block in blocks:
        if block.rows:
            table = document.add_table(len(block.rows), len(block.rows[0]), style="Table Grid")
            for cells, row in zip(table.rows, block.rows, strict=True):
                for cell, value in zip(cells.cells, row, strict=True):
                    cell.text = value
        elif block.level:
            document.add_heading(block.text, level=block.level)
        else:
            document.add_paragraph(block.text)
    buffer = BytesIO()
    document.save(buffer)
    with (
        zipfile.ZipFile(buffer) as built,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as fixed,
    ):
        for name in built.namelist():
            fixed.writestr(
                zipfile.ZipInfo(name, FIXED_TIME.timetuple()[:6]),
                built.read(name),
                zipfile.ZIP_DEFLATED,
            )


def main() -> None:
    """Build every document that has a source."""
    for source in sorted(SOURCES.rglob("*.md")):
        target = CORPUS / source.relative_to(SOURCES).with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        build = {".pdf": build_pdf, ".docx": build_docx}[target.suffix]
        build(parse(source.read_text(encoding="utf-8")), target)
        print(target.relative_to(HERE))


if __name__ == "__main__":
    main()
