"""What a parser hands back, and the limits it works under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LOADER_VERSION = 4
"""Raised when any parser changes what it reads; documents are then read again."""


@dataclass(frozen=True)
class Limits:
    """What is refused; see :class:`rag_fti.config.features.LoadingConfig`."""

    max_file_bytes: int = 64 * 1024 * 1024
    max_text_chars: int = 50_000_000
    max_pages: int = 5000
    max_expansion: float = 200.0
    parse_timeout_seconds: float = 60.0


@dataclass(frozen=True)
class Parsed:
    """A file's text before cleaning; Markdown where its format has structure."""

    text: str
    title: str = ""
    media_type: str = "text/plain"
    pages: tuple[str, ...] = ()
    """Texts of the pages, in place of ``text``, where the format has pages."""
    metadata: Mapping[str, str] = field(default_factory=dict)
