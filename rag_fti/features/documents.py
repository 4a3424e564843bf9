"""Documents from loaded files, and from stored rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rag_fti import ids
from rag_fti.features.language import language_of
from rag_fti.features.loading import LOADER_VERSION, Loaded
from rag_fti.features.loading.parsing import name_of, title_of
from rag_fti.features.structure import blocks_of, first_heading
from rag_fti.schemas import Document


def document_of(loaded: Loaded, *, source: str, collection: str, raw_digest: str) -> Document:
    """The document in a file.

    Args:
        loaded: Its cleaned text.
        source: Where it lies.
        collection: Where it goes.
        raw_digest: Of the file's bytes.
    """
    heading = first_heading(blocks_of(loaded.text, loaded.media_type))
    title = title_of(loaded.title, heading, source)
    metadata = dict(loaded.metadata)
    language = metadata.pop("language", "")[:2].lower() or language_of(loaded.text)
    version = ids.digest_json(
        {
            "text": ids.digest_text(loaded.text),
            "title": title,
            "metadata": metadata,
            "loader": LOADER_VERSION,
        }
    )
    return Document(
        document_id=ids.document_id(collection, source),
        collection=collection,
        source=source,
        title=title,
        text=loaded.text,
        media_type=loaded.media_type,
        raw_digest=raw_digest,
        version=version,
        language=language,
        pages=loaded.pages,
        metadata=metadata,
    )


def moved_document(row: Mapping[str, Any], *, source: str) -> Document:
    """A stored document under the name of another of its sources.

    Args:
        row: Its row in ``documents``.
        source: The name it gets.
    """
    metadata = json.loads(row["metadata"])
    return Document(
        document_id=ids.document_id(row["collection"], source),
        collection=row["collection"],
        source=source,
        title=name_of(source) if row["title"] == name_of(row["source"]) else row["title"],
        text=row["text"],
        media_type=row["media_type"],
        raw_digest=row["raw_digest"],
        version=row["version"],
        language=row["language"],
        pages=tuple(metadata.pop("pages", ())),
        metadata=metadata,
    )
