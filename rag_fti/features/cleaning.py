"""Cleaning: the little that is changed about a text before anything counts its characters.

Cleaned text is what documents store and what every span refers to, so cleaning keeps what a
reader sees: line ends become line feeds, characters that no reader sees or that break stores go.
Cleaning twice changes nothing.
"""

from __future__ import annotations

import re

CLEANER_VERSION = 1

_LINE_ENDS = re.compile(r"\r\n?|\u0085|\u2028|\u2029|\x0b|\x0c")
_UNWANTED = re.compile(
    "["
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # control characters but tab and line feed
    "\ufeff\u200b\u2060\u00ad"  # byte order mark, zero-width space, word joiner, soft hyphen
    "\u202a-\u202e\u2066-\u2069"  # direction overrides: they make text read as what it is not
    "\ud800-\udfff"  # lone surrogates cannot be stored
    "\ufdd0-\ufdef\ufffe\uffff"
    "]"
)


def clean_text(text: str) -> str:
    """The text as it is stored: see the module's words on what changes."""
    return _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))


def clean_line(text: str, *, limit: int = 300) -> str:
    """Cleaned text on one line, such as a title; at most ``limit`` characters."""
    return " ".join(clean_text(text).split())[:limit].strip()
