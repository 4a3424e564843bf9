"""From bytes to text, whatever the format."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

import yaml

from rag_fti.errors import SourceError
from rag_fti.features.loading import mail, markup, office, pdf, records, rtf
from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.formats import Format, format_of_bytes
from rag_fti.features.loading.parsed import Limits, Parsed

_HEAD_BYTES = 4096
_FRONT_MATTER_CHARS = 10_000
_HEADER_FIELD = re.compile(r":?([A-Za-z][\w-]*):(?:\s+|$)")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def parse(data: bytes, name: str, limits: Limits, *, format: Format | None = None) -> Parsed:
    """The text of a file.

    Args:
        data: Its bytes.
        name: Its name, which tells the format where the bytes do not.
        limits: What is refused.
        format: The format where it is known already, such as from a web server.

    Raises:
        SourceError: If it cannot be read, with the reason alone as message.
    """
    try:
        chosen = format or format_of_bytes(data[:_HEAD_BYTES], name)
        parsed = PARSERS[chosen.parser](data, limits, chosen.media_type)
    except ValueError as error:
        raise SourceError(str(error)) from error
    except MemoryError as error:
        raise SourceError("needs more memory than a parser may have") from error
    except Exception as error:
        # Parsers of other people's formats fail in every way there is; the file is set aside
        # with the reason, which is what "cannot be read" means here.
        raise SourceError(f"damaged file ({type(error).__name__}: {error})"[:300]) from error
    size = len(parsed.text) + sum(map(len, parsed.pages))
    if size > limits.max_text_chars:
        raise SourceError(f"{size} characters of text, more than {limits.max_text_chars}")
    return parsed


def _parse_text(data: bytes, limits: Limits, media_type: str) -> Parsed:
    text = decode(data)
    title = ""
    if media_type == "text/markdown" and (front := _FRONT_MATTER.match(text.replace("\r\n", "\n"))):
        title = _front_matter_title(front[1])
    if media_type in ("text/x-rst", "text/plain"):
        title = _header_title(text[:_FRONT_MATTER_CHARS])
    return Parsed(text, title=title, media_type=media_type)


def _front_matter_title(front: str) -> str:
    if len(front) > _FRONT_MATTER_CHARS:
        return ""
    try:
        values = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""  # not front matter after all
    title = values.get("title") if isinstance(values, dict) else None
    return str(title) if isinstance(title, str | int | float) else ""


def _header_title(text: str) -> str:
    """The ``Title`` of header fields before the first empty line, as in PEPs and reST docinfo.

    Indented lines continue a field; where any other line stands among them it is running text.
    """
    fields: dict[str, str] = {}
    name = ""
    for line in text.lstrip("\ufeff\r\n").splitlines():
        if not line.strip():
            break
        field = _HEADER_FIELD.match(line)
        if field:
            name = field[1].lower()
            fields[name] = line[field.end() :].strip()
        elif name and line[0].isspace():
            fields[name] += f" {line.strip()}"
        else:
            return ""
    return fields.get("title", "") if len(fields) > 1 else ""


PARSERS: dict[str, Callable[[bytes, Limits, str], Parsed]] = {
    "text": _parse_text,
    "html": markup.parse_html,
    "xml": markup.parse_xml,
    "pdf": pdf.parse_pdf,
    "docx": office.parse_docx,
    "pptx": office.parse_pptx,
    "xlsx": office.parse_xlsx,
    "odt": office.parse_odt,
    "epub": office.parse_epub,
    "csv": records.parse_csv,
    "json": records.parse_json,
    "jsonl": records.parse_jsonl,
    "notebook": records.parse_notebook,
    "email": mail.parse_email,
    "rtf": rtf.parse_rtf,
}


_NO_TITLES = {
    "", "untitled", "untitled document", "document", "word document", "presentation", "title",
    "powerpoint presentation", "slide 1", "microsoft word", "untitled spreadsheet", "title slide",
}  # fmt: skip
"""Titles that programs put into files nobody gave one."""


def title_of(parsed_title: str, heading: str, source: str) -> str:
    """A document's title: its own, else its first heading, else its file name."""
    own = parsed_title if parsed_title.casefold() not in _NO_TITLES else ""
    return own or heading or name_of(source)


def name_of(source: str) -> str:
    """A source's file name as words, without its ending: ``a/start_up.md`` is ``start up``."""
    stem = PurePosixPath(source.rsplit("!/", 1)[-1].split("?", 1)[0]).stem
    return stem.replace("_", " ").replace("-", " ").strip()
