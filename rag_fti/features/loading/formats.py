"""Which files are known, by name and by their first bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

_OFFICE = "application/vnd.openxmlformats-officedocument."


@dataclass(frozen=True)
class Format:
    """A kind of file and the parser that reads it."""

    media_type: str
    parser: str
    """Name in :data:`rag_fti.features.loading.parsing.PARSERS`."""


_TEXT = Format("text/plain", "text")
_BY_SUFFIX: dict[str, Format] = {
    **dict.fromkeys(("md", "markdown", "mdx", "mkd"), Format("text/markdown", "text")),
    **dict.fromkeys(("txt", "text", "log", "org", "adoc", "asciidoc", "tex"), _TEXT),
    "rst": Format("text/x-rst", "text"),
    **dict.fromkeys(("html", "htm", "xhtml"), Format("text/html", "html")),
    "xml": Format("application/xml", "xml"),
    "pdf": Format("application/pdf", "pdf"),
    "docx": Format(f"{_OFFICE}wordprocessingml.document", "docx"),
    "pptx": Format(f"{_OFFICE}presentationml.presentation", "pptx"),
    "xlsx": Format(f"{_OFFICE}spreadsheetml.sheet", "xlsx"),
    "odt": Format("application/vnd.oasis.opendocument.text", "odt"),
    "csv": Format("text/csv", "csv"),
    "tsv": Format("text/tab-separated-values", "csv"),
    "json": Format("application/json", "json"),
    **dict.fromkeys(("jsonl", "ndjson"), Format("application/x-ndjson", "jsonl")),
    "epub": Format("application/epub+zip", "epub"),
    "eml": Format("message/rfc822", "email"),
    "ipynb": Format("application/x-ipynb+json", "notebook"),
    "rtf": Format("application/rtf", "rtf"),
    **dict.fromkeys(("yaml", "yml", "toml", "ini", "cfg", "conf"), Format("text/plain", "text")),
}

_LANGUAGES = {
    "python": ("py", "pyi"), "js": ("js", "jsx", "mjs", "cjs"), "ts": ("ts", "tsx"),
    "java": ("java",), "kotlin": ("kt", "kts"), "go": ("go",), "rust": ("rs",),
    "c": ("c", "h"), "cpp": ("cpp", "cc", "cxx", "hpp", "hh"), "csharp": ("cs",), "php": ("php",),
    "ruby": ("rb",), "scala": ("scala",), "swift": ("swift",), "lua": ("lua",), "r": ("r",),
    "haskell": ("hs",), "elixir": ("ex", "exs"), "perl": ("pl", "pm"), "powershell": ("ps1",),
    "proto": ("proto",), "sol": ("sol",), "sql": ("sql",), "shell": ("sh", "bash", "zsh"),
    "css": ("css", "scss"), "zig": ("zig",), "dart": ("dart",), "julia": ("jl",),
}  # fmt: skip
_BY_SUFFIX |= {
    suffix: Format(f"text/x-source-{language}", "text")
    for language, suffixes in _LANGUAGES.items()
    for suffix in suffixes
}

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_UNSUPPORTED = {
    "doc": "docx", "ppt": "pptx", "xls": "xlsx", "msg": "eml",
}  # fmt: skip


def format_of(name: str) -> Format | None:
    """The format of a file name, or None where its suffix is not known."""
    return _BY_SUFFIX.get(PurePosixPath(name.lower()).suffix.lstrip("."))


def unread_reason(name: str) -> str:
    """Why files of a name's type are not read, where it is a known one."""
    better = _UNSUPPORTED.get(PurePosixPath(name.lower()).suffix.lstrip("."))
    return f"old binary Office format; save it as .{better}" if better else ""


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive whose members are documents."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def format_of_bytes(head: bytes, name: str) -> Format:
    """The format of a file by its first bytes where they tell, else by its name.

    Args:
        head: The first few kilobytes.
        name: File name; an unknown suffix counts as plain text.

    Raises:
        ValueError: If the bytes are of a kind that cannot be read, with the reason.
    """
    by_name = format_of(name)
    if b"%PDF-" in head[:1024]:
        return _BY_SUFFIX["pdf"]
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        raise ValueError(unread_reason(name) or "old binary Office format or password-protected")
    if head.startswith(b"{\\rtf"):
        return _BY_SUFFIX["rtf"]
    zipped = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    if zipped and (inner := _zipped_format(head)):
        return inner
    if by_name is None or by_name.parser == "text":
        for magic, kind in _BINARY:
            if head.startswith(magic):
                raise ValueError(f"this is {kind}, not a text document")
        return by_name or _TEXT
    if by_name.parser in _ZIPPED and not zipped:
        raise ValueError(f"not a .{PurePosixPath(name.lower()).suffix.lstrip('.')} file inside")
    return by_name


def _zipped_format(head: bytes) -> Format | None:
    """The document format of a zip file by its first members, whatever its name says."""
    for sign, suffix in _ZIP_SIGNS:
        if sign in head:
            return _BY_SUFFIX[suffix]
    return None


_ZIP_SIGNS = (
    (b"mimetypeapplication/epub+zip", "epub"),
    (b"mimetypeapplication/vnd.oasis.opendocument.text", "odt"),
    (b"word/", "docx"),
    (b"ppt/", "pptx"),
    (b"xl/", "xlsx"),
)
_ZIPPED = {"docx", "pptx", "xlsx", "odt", "epub"}
_BINARY = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"RIFF", "audio or video"),
    (b"ID3", "audio"),
    (b"OggS", "audio"),
    (b"SQLite format 3", "a database"),
)
