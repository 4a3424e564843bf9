"""HTML and XML."""

from __future__ import annotations

import codecs
import re
from typing import Any

from rag_fti.features.loading.encoding import decode
from rag_fti.features.loading.parsed import Limits, Parsed

_BLOCKS = {
    "p", "div", "section", "article", "main", "blockquote", "figure", "figcaption", "dl", "dt",
    "dd", "ul", "ol", "table", "form", "fieldset", "details", "summary", "address", "body", "hr",
    "header", "footer", "aside", "nav", "center", "td", "th",
}  # fmt: skip
_DROPPED = (
    "script", "style", "noscript", "template", "svg", "iframe", "object", "embed", "canvas",
    "nav", "button", "select", "input", "textarea", "dialog",
)  # fmt: skip
_LEAST_SHARE = 0.05
"""Main-content extraction that keeps less of the page's text than this is not trusted. On the 181
pages of the article extraction benchmark 0.05 gives F1 0.949, 0 gives 0.954, 0.2 gives 0.907."""
_SMALL_PAGE = 600
_SPACES = re.compile(r"[ \t\r\f\v\u00a0]+")
_MANY_LINES = re.compile(r"\n\s*\n\s*\n+")
_XML_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,100}encoding\s*=\s*["']([\w.:-]+)""")


def parse_html(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """A web page's main content as Markdown; all visible text where that cannot be told."""
    html = decode_markup(data)
    if not html.strip():
        return Parsed("", media_type=media_type)
    tree = _soup(html)
    title = tree.title.get_text(" ", strip=True) if tree.title else ""
    language = str((tree.html or {}).get("lang", "")) if tree.html else ""
    everything = html_to_markdown(tree)
    text = everything
    if len(everything) > _SMALL_PAGE:
        main = _main_content(html)
        if len(main) >= _LEAST_SHARE * len(everything):
            text = main
    return Parsed(text, title, media_type, metadata={"language": language} if language else {})


def _main_content(html: str) -> str:
    import trafilatura

    found = trafilatura.extract(
        html,
        output_format="html",
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        favor_recall=True,
    )
    return fragment_to_markdown(found) if found else ""


def decode_markup(data: bytes) -> str:
    """Markup in the encoding that it declares, where it does and it fits."""
    found = _META_CHARSET.search(data[:4096]) or _XML_ENCODING.search(data[:200])
    if found and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            name = codecs.lookup(found[1].decode("ascii")).name
            # Browsers read Latin-1 as Windows-1252, which adds quotes, dashes and the euro.
            return data.decode("cp1252" if name == "iso8859-1" else name)
        except (LookupError, UnicodeDecodeError):
            pass  # declared wrongly or unknown; look at the bytes instead
    return decode(data)


def _soup(html: str) -> Any:
    from bs4 import BeautifulSoup

    return BeautifulSoup(_XML_DECLARATION.sub("", html), "lxml")


def fragment_to_markdown(html: str) -> str:
    """All visible text of a piece of HTML as Markdown."""
    return html_to_markdown(_soup(html))


def html_to_markdown(tree: Any) -> str:
    """All visible text of a parsed page as Markdown: headings, lists, tables, code."""
    from bs4 import Comment

    for tag in tree(_DROPPED):
        tag.decompose()
    for comment in tree.find_all(string=lambda s: isinstance(s, Comment)):
        comment.extract()
    parts: list[str] = []
    _walk(tree.body or tree, parts)
    return _MANY_LINES.sub("\n\n", "".join(parts)).strip()


def _walk(root: Any, parts: list[str]) -> None:
    """Depth first without recursion: real pages nest deeper than Python's stack."""
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            parts.append(node[0])
            continue
        name = getattr(node, "name", None)
        if name is None:
            parts.append(_SPACES.sub(" ", str(node).replace("\n", " ")))
        elif name in ("h1", "h2", "h3", "h4", "h5", "h6"):
            words = node.get_text(" ", strip=True)
            parts.append(f"\n\n{'#' * int(name[1])} {words}\n\n" if words else "\n\n")
        elif name == "pre":
            code = node.get_text().strip("\n")
            parts.append(f"\n\n```\n{code}\n```\n\n")
        elif name == "table" and not node.find("table"):
            parts.append(f"\n\n{_table(node)}\n\n")
        elif name == "br":
            parts.append("\n")
        else:
            before, after = _around(name)
            stack.append((after,))
            stack.extend(reversed(node.contents))
            stack.append((before,))


def _around(name: str) -> tuple[str, str]:
    if name == "li":
        return "\n- ", "\n"
    if name == "tr":
        return "\n", "\n"
    return ("\n\n", "\n\n") if name in _BLOCKS else ("", "")


def _table(node: Any) -> str:
    rows = [
        [" ".join(cell.get_text(" ", strip=True).split()) for cell in row(["td", "th"])]
        for row in node("tr")
    ]
    rows = [row for row in rows if any(row)]
    if not rows or max(map(len, rows)) == 1:
        return "\n\n".join(row[0] for row in rows if row)
    return table_to_markdown(rows)


def table_to_markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table whose first row is the head."""
    width = max(map(len, rows))
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.replace("|", "/") for cell in (*row, *[""] * (width - len(row)))]
        lines.append(f"| {' | '.join(cells)} |")
        if number == 0:
            lines.append(f"|{' --- |' * width}")
    return "\n".join(lines)


def parse_xml(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """An XML document's text, one line per element that holds some, with its name."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    root = etree.fromstring(data, parser)
    if root is None:
        raise ValueError("no XML element in it")
    lines = []
    for element in root.iter(tag=etree.Element):
        words = " ".join((element.text or "").split())
        if words:
            lines.append(f"{etree.QName(element).localname}: {words}")
        if tail := " ".join((element.tail or "").split()):
            lines.append(tail)
    return Parsed("\n".join(lines), media_type=media_type)
