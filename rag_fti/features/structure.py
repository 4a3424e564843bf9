"""Where a text's sections, code blocks and tables are.

A text is cut into blocks that cover it without gaps. A block is a heading, paragraph, code
block or table with the blank lines after it, and knows the headings above it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["heading", "text", "code", "table"]

STRUCTURE_VERSION = 1

MARKDOWN_TYPES = frozenset(
    {
        "text/markdown",
        "text/html",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "application/vnd.openxmlformats-officedocument.presentationml.presentation",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "application/vnd.oasis.opendocument.text",
        "application/epub+zip",
        "application/x-ipynb+json",
        "message/rfc822",
    }
)
"""Types that are Markdown or whose loaders write Markdown."""

_LONGEST_TITLE = 200

_ATX = re.compile(r"^ {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_SETEXT = re.compile(r"^ {0,3}(?:=+|-+)[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$")
_TABLE_RULE = re.compile(r"^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s")
_RST_RULE = re.compile(r"^([=\-`:'\"~^_*+#<>.!$%&])\1{2,}[ \t]*$")
_RST_TABLE = re.compile(r"^[ \t]*(?:\+[-=+]+\+|={2,}(?: +={2,})+|\|.*\|)[ \t]*$")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_EMPHASIS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")
_DEFINITION = re.compile(
    r"^(?:export |public |private |protected |static |async |abstract |final |pub(?:\(\w+\))? )*"
    r"(?:class|def|func|fn|function|interface|trait|struct|enum|impl|module|object|type)\s+"
    r"([A-Za-z_][\w.]*(?:::\w+)*)"
)


@dataclass(frozen=True)
class Block:
    """A stretch of text of one kind: ``text[start:end]``."""

    start: int
    end: int
    kind: BlockKind
    headings: tuple[str, ...]
    """Headings above the block, outermost first; a heading counts itself."""


@dataclass(frozen=True)
class _Label:
    """What a line is part of."""

    kind: BlockKind = "text"
    opens: bool = False
    """Whether a new block starts here whatever came before."""
    glued: bool = False
    """Whether the line continues the block even after blank lines (inside a code fence)."""
    level: int = 0
    title: str = ""
    """Of a heading: set on its first line."""


def structure_of(media_type: str) -> str:
    """``markdown``, ``rst``, ``code`` or ``text``: how a type's structure is written."""
    if media_type in MARKDOWN_TYPES:
        return "markdown"
    if media_type == "text/x-rst":
        return "rst"
    return "code" if media_type.startswith("text/x-source-") else "text"


def blocks_of(text: str, media_type: str) -> list[Block]:
    """The blocks of a text, in order, covering all of it.

    Args:
        text: Cleaned text.
        media_type: Decides how structure is written; unknown types have paragraphs only.
    """
    lines = _split_lines(text)
    label = _LABELLERS[structure_of(media_type)]
    return list(_group(lines, label(lines)))


def first_heading(blocks: Sequence[Block]) -> str:
    """The first heading's text, or nothing where there is none."""
    return next((block.headings[-1] for block in blocks if block.kind == "heading"), "")


def column_names(block: str) -> str:
    """The column names of a Markdown table, or nothing where a block does not start with them."""
    header, _, rest = block.partition("\n")
    if not _TABLE_RULE.match(rest.partition("\n")[0]):
        return ""
    cells = (_plain_words(cell) for cell in header.strip().strip("|").split("|"))
    return " | ".join(cells)[:_LONGEST_TITLE].strip(" |")


def _split_lines(text: str) -> list[str]:
    """Lines with their line feed; they join to the text again."""
    lines = text.split("\n")
    last = lines.pop()
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _group(lines: Sequence[str], labels: Iterator[_Label]) -> Iterator[Block]:
    open_headings: list[tuple[int, str]] = []
    start, position, kind = 0, 0, None
    path: tuple[str, ...] = ()
    after_blank = False
    for line, label in zip(lines, labels, strict=True):
        blank = not line.strip() and not label.glued
        if not blank:
            fresh = label.opens or label.kind != kind or (after_blank and not label.glued)
            if kind is not None and fresh:
                yield Block(start, position, kind, path)
                start = position
            if kind is None or fresh:
                if label.level:
                    while open_headings and open_headings[-1][0] >= label.level:
                        open_headings.pop()
                    open_headings.append((label.level, label.title))
                kind = label.kind
                path = tuple(title for _, title in open_headings if title)
        after_blank = blank
        position += len(line)
    if position > start or (kind is None and position):
        yield Block(start, position, kind or "text", path)


def _label_text(lines: Sequence[str]) -> Iterator[_Label]:
    for _ in lines:
        yield _Label()


def _label_code(lines: Sequence[str]) -> Iterator[_Label]:
    """Source code: top-level definitions are sections."""
    for line in lines:
        found = _DEFINITION.match(line)
        if found:
            yield _Label("code", opens=True, level=1, title=found[1][:_LONGEST_TITLE])
        else:
            yield _Label("code", glued=True)


def _label_markdown(lines: Sequence[str]) -> Iterator[_Label]:
    fence = ""
    skip = 0
    for number, line in enumerate(lines):
        if skip:
            skip -= 1
            yield _Label("heading")
            continue
        stripped = line.rstrip("\n")
        if fence:
            if stripped.lstrip().startswith(fence) and not stripped.strip().strip(fence[0]):
                fence = ""
            yield _Label("code", glued=True)
        elif opening := _FENCE.match(line):
            fence = opening[1]
            yield _Label("code", opens=True)
        elif heading := _ATX.match(stripped):
            title = _plain_words(_without_closing(heading[2] or ""))
            yield _Label("heading", opens=True, level=len(heading[1]), title=title)
        elif _is_setext(lines, number):
            skip = 1
            level = 1 if lines[number + 1].strip().startswith("=") else 2
            yield _Label("heading", opens=True, level=level, title=_plain_words(stripped))
        elif _TABLE_ROW.match(stripped):
            yield _Label("table")
        else:
            yield _Label()


def _without_closing(title: str) -> str:
    """A heading's text without the number signs that may close it, as in ``## Title ##``."""
    title = title.rstrip(" \t")
    before = title.rstrip("#")
    return before.rstrip(" \t") if not before or before[-1] in " \t" else title


def _is_setext(lines: Sequence[str], number: int) -> bool:
    line = lines[number]
    if number + 1 >= len(lines) or not _SETEXT.match(lines[number + 1].rstrip("\n")):
        return False
    if not line.strip() or line.startswith(("    ", "\t")) or _TABLE_ROW.match(line.rstrip("\n")):
        return False
    before = lines[number - 1].strip() if number else ""
    # A rule under a longer paragraph or a list item is a rule; front matter is no heading.
    return not before and not _LIST_ITEM.match(line) and not _SETEXT.match(line.rstrip("\n"))


def _label_rst(lines: Sequence[str]) -> Iterator[_Label]:
    """reStructuredText: a rule under (and maybe over) a line makes a heading.

    Levels are numbered in the order in which their styles appear.
    """
    styles: list[str] = []
    skip = 0
    for number in range(len(lines)):
        if skip:
            skip -= 1
            yield _Label("heading")
            continue
        heading = _rst_heading(lines, number)
        if heading is not None:
            style, title, skip = heading
            if style not in styles:
                styles.append(style)
            yield _Label("heading", opens=True, level=styles.index(style) + 1, title=title)
        elif _RST_TABLE.match(lines[number].rstrip("\n")):
            yield _Label("table")
        else:
            yield _Label()


def _rst_heading(lines: Sequence[str], number: int) -> tuple[str, str, int] | None:
    """Style, title and further lines of the heading that starts at a line."""
    line = lines[number].rstrip()
    if number and lines[number - 1].strip():
        return None
    following = [item.rstrip() for item in lines[number + 1 : number + 3]]
    if _RST_RULE.match(line) and len(following) == 2 and following[1] == line:
        title = following[0].strip()[:_LONGEST_TITLE]
        return (f"{line[0]}/{line[0]}", title, 2) if title else None
    under = following[0] if following else ""
    titled = bool(line) and not line[0].isspace() and not _RST_RULE.match(line)
    if titled and _RST_RULE.match(under) and len(under) >= len(line):
        return under[0], line.strip()[:_LONGEST_TITLE], 1
    return None


def _plain_words(markdown: str) -> str:
    """A heading's first words without links and emphasis."""
    words = _EMPHASIS.sub("", _LINK.sub(r"\1", markdown[: 2 * _LONGEST_TITLE]))
    return " ".join(words.split())[:_LONGEST_TITLE]


_LABELLERS: dict[str, Callable[[Sequence[str]], Iterator[_Label]]] = {
    "markdown": _label_markdown,
    "rst": _label_rst,
    "code": _label_code,
    "text": _label_text,
}
