"""Content hashes: the same input always gets the same id.

All ids are the first ``ID_LENGTH`` hex digits of a SHA-256 over canonical bytes; 32 digits
(128 bits) keep the chance of any collision among a billion ids below 1e-20 (birthday bound).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ID_LENGTH = 32


def digest_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_text(text: str) -> str:
    """SHA-256 of ``text`` in UTF-8 as 64 hex digits; lone surrogates are kept apart."""
    return digest_bytes(text.encode("utf-8", errors="surrogatepass"))


def digest_json(value: Any) -> str:
    """SHA-256 of ``value`` as canonical JSON (sorted keys, no spaces), 64 hex digits.

    Raises:
        TypeError: If ``value`` holds something JSON has no form for.
        ValueError: If ``value`` holds NaN or an infinity.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return digest_text(text)


def digest_file(path: Path, *, block_bytes: int = 1 << 20) -> str:
    """SHA-256 of a file's bytes, read in blocks, as 64 hex digits."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(block_bytes):
            state.update(block)
    return state.hexdigest()


def content_id(*parts: str) -> str:
    """Id of an ordered tuple of strings. ``("ab", "c")`` and ``("a", "bc")`` differ."""
    return digest_json(list(parts))[:ID_LENGTH]


def document_id(collection: str, source: str) -> str:
    """Id of a document: where it came from, not what it says, so that updates keep it."""
    return content_id("document", collection, source)


def chunk_ids(document: str, texts: Sequence[str]) -> list[str]:
    """Ids of a document's chunks, in order.

    A chunk's id depends on its document, its text and how many equal texts came before it in
    the document. An edit elsewhere in the document therefore leaves it alone, and two equal
    paragraphs still get different ids.
    """
    seen: dict[str, int] = {}
    result = []
    for text in texts:
        digest = digest_text(text)
        occurrence = seen.get(digest, 0)
        seen[digest] = occurrence + 1
        result.append(content_id("chunk", document, digest, str(occurrence)))
    return result


def digest_of_files(paths: Iterable[Path], *, root: Path) -> str:
    """One digest over several files' names (relative to ``root``) and bytes, order-free."""
    entries = {path.relative_to(root).as_posix(): digest_file(path) for path in paths}
    return digest_json(entries)
