"""The text layer of PDF files."""

from __future__ import annotations

import io
import logging
import re

from rag_fti.features.loading.parsed import Limits, Parsed

_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def parse_pdf(data: bytes, limits: Limits, media_type: str) -> Parsed:
    """Texts of the pages; words that were cut at a line's end are whole again.

    Raises:
        ValueError: If it is encrypted, damaged or has no text layer.
    """
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    # It reports each oddity of a damaged file; what matters is whether text comes out.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("password-protected")
        if len(reader.pages) > limits.max_pages:
            raise ValueError(f"{len(reader.pages)} pages, more than {limits.max_pages}")
        pages = []
        size = 0
        for page in reader.pages:
            text = _HYPHENATED.sub("", page.extract_text() or "")
            size += len(text)
            if size > limits.max_text_chars:
                raise ValueError(f"more than {limits.max_text_chars} characters")
            pages.append(text.rstrip() + "\n\n" if text.strip() else "")
    except (FileNotDecryptedError, DependencyError) as error:
        raise ValueError("password-protected") from error
    if not any(pages):
        raise ValueError("no text layer (a scan?); run OCR on it first")
    information = reader.metadata
    title = str(information.title or "") if information else ""
    return Parsed("", title, media_type, pages=tuple(pages))
