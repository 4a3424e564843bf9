"""Putting a retriever together from settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rag_fti.config import Settings
from rag_fti.protocols import Embedder
from rag_fti.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore


def build_retriever(
    settings: Settings, *, store: FeatureStore | None = None, embedder: Embedder | None = None
) -> Retriever:
    """The retriever that ``settings`` describe.

    Args:
        settings: Sections ``storage``, ``embedder``, ``reranker`` and ``retrieval`` are read.
        store: An open store; None opens the one of the settings.
        embedder: A loaded embedder; None loads the one of the settings.

    Raises:
        IncompatibleArtifact: If the store was built with another embedder.
        StoreError: If the store cannot be opened.
    """
    if store is None:
        from rag_fti.feature_store import FeatureStore

        store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    if embedder is None:
        from rag_fti.models.embedder import build_embedder

        embedder = build_embedder(settings.embedder)
    if store.exists():
        store.require_recipe(embedder=embedder.fingerprint)
    reranker = None
    if settings.reranker.model:
        from rag_fti.models.reranker import build_reranker

        reranker = build_reranker(settings.reranker)
    section = settings.retrieval
    return Retriever(
        store=store,
        embedder=embedder,
        mode=section.mode,
        k=section.k,
        candidates=section.candidates,
        fusion=section.fusion,
        vector_weight=section.vector_weight,
        rrf_constant=section.rrf_constant,
        diversity=section.diversity,
        neighbours=section.neighbours,
        reranker=reranker,
        rerank_candidates=settings.reranker.candidates,
        query_cache=section.query_cache,
    )


def retrieval_settings(settings: Settings) -> dict[str, Any]:
    """What shapes the context of a prompt, for :func:`rag_fti.prompts.prompt_digest`.

    Search mode, fusion, weights and ``k`` decide *which* passages come, not how a prompt looks,
    and are tuned while a model is in use; they are left out. How much room the passages have
    and whether neighbours are shown is what a model gets used to.
    """
    section = settings.retrieval
    return {
        "context_tokens": section.context_tokens,
        "neighbours": section.neighbours,
    }
