"""One question on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rag_fti.config import Settings
from rag_fti.errors import ConfigError


def ask_once(
    settings: Settings,
    question: str,
    *,
    model: str = "",
    where: str | None = None,
    at: str = "",
    collections: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Answer a question and log it like a served one.

    Args:
        settings: All inference sections.
        question: What to ask.
        model: ``name@version``, an alias or ``base``; empty takes the configured model.
        where: SQL condition over the chunk columns.
        at: Snapshot or tag to read.
        collections: Only these; None searches all.

    Returns:
        The promised keys of ``ask --json``.

    Raises:
        ConfigError: If the question is empty, or there is no such collection.
        StoreError: If the store holds no documents.
    """
    if not question.strip():
        raise ConfigError("The question is empty.", next_step='Write it in quotes: rag-fti ask "…"')
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import build_engine
    from rag_fti.inference.engine import require_documents
    from rag_fti.inference.replay import asked
    from rag_fti.inference.request_log import RequestLog
    from rag_fti.retrieval.filters import require_collections

    store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    require_documents(store)
    require_collections(store, collections, at=at or settings.inference.follow)
    engine = build_engine(settings, store=store, model_ref=model or None)
    answer = engine.answer(question, where=where, at=at, collections=collections)
    if settings.inference.log:
        log = RequestLog(
            store,
            redact=settings.inference.log_redact,
            sample=settings.inference.log_sample,
            flush_seconds=0.0,
        )
        log.record(
            answer,
            collections=collections,
            settings={"route": "ask", **asked(settings, where=where, at=at)},
        )
        log.close()
    return answer.to_dict()
