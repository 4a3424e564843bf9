"""Bytes to text."""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 256 * 1024
_UNREADABLE_SHARE = 0.05
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\ufffd]")


def decode(data: bytes) -> str:
    """The text of a file whose encoding nobody told.

    A byte order mark decides; then UTF-8 if it fits; then the most likely legacy encoding.

    Raises:
        ValueError: If the bytes look like no text in any encoding.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data.decode(encoding, errors="replace"))
    if guess := _wide_without_mark(data):
        return _checked(data.decode(guess, errors="replace"))
    try:
        return _checked(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # a truncated last character
            return _checked(data.decode("utf-8", errors="replace"))
    return _checked(data.decode(_likely_encoding(data), errors="replace"))


def _wide_without_mark(data: bytes) -> str:
    """UTF-16 or UTF-32 of mostly Latin text shows as regular zero bytes."""
    sample = data[:4096]
    if len(sample) < 4 or b"\x00" not in sample:
        return ""
    zeros = [sample[offset::4].count(0) / max(1, len(sample[offset::4])) for offset in range(4)]
    if all(share > 0.9 for share in zeros[1:]) and zeros[0] < 0.1:
        return "utf-32-le"
    if all(share > 0.9 for share in zeros[:3]) and zeros[3] < 0.1:
        return "utf-32-be"
    if zeros[1] > 0.6 and zeros[3] > 0.6 and zeros[0] < 0.2 and zeros[2] < 0.2:
        return "utf-16-le"
    if zeros[0] > 0.6 and zeros[2] > 0.6 and zeros[1] < 0.2 and zeros[3] < 0.2:
        return "utf-16-be"
    return ""


def _likely_encoding(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:_SAMPLE_BYTES]).best()
    return best.encoding if best is not None else "cp1252"


def _checked(text: str) -> str:
    sample = text[:_SAMPLE_BYTES]
    bad = len(_CONTROLS.findall(sample))
    if bad > 16 and bad > _UNREADABLE_SHARE * len(sample):
        raise ValueError("binary content: no text in any known encoding")
    return text
