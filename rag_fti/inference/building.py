"""The composition root of inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_fti import prompts
from rag_fti.config import Settings
from rag_fti.errors import ConfigError
from rag_fti.inference.engine import Engine
from rag_fti.inference.models import ServedModel, check_store, open_model, resolve_reference
from rag_fti.protocols import Embedder, Generator
from rag_fti.retrieval import Retriever, build_retriever, retrieval_settings

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore


def build_engine(
    settings: Settings,
    *,
    store: FeatureStore | None = None,
    embedder: Embedder | None = None,
    generator: Generator | None = None,
    model_ref: str | None = None,
) -> Engine:
    """An engine over the configured store and model.

    Args:
        settings: Sections ``storage``, ``embedder``, ``reranker``, ``generator``, ``retrieval``
            and ``inference``.
        store: An open store; None opens the configured one.
        embedder: A loaded embedder; None loads the configured one.
        generator: A ready generator; None loads the one that ``model_ref`` means.
        model_ref: ``name@3``, an alias, ``base``, or None for ``generator.model``.

    Raises:
        StoreError: If the store cannot be read.
        ModelNotFound: If there is no such model.
        IncompatibleArtifact: If store, embedder and model were not made for each other.
    """
    if generator is None:
        resolve_reference(settings, model_ref or "")  # a wrong name fails before models load
    retriever = build_retriever(settings, store=store, embedder=embedder)
    served = (
        ServedModel(generator) if generator is not None else open_model(settings, model_ref or "")
    )
    return assemble(settings, retriever=retriever, served=served)


def calibrated_threshold(served: ServedModel) -> float:
    """The confidence below which a version's answers are withheld, as its training found it.

    0 for models that stream word by word: withholding would hold every answer back to its end,
    which is for the user to choose (``inference.abstain_below``).
    """
    if not getattr(served.generator, "restores_text", False):
        return 0.0
    return float((served.manifest.get("calibration") or {}).get("abstain_below", 0.0))


def sees_instructions(generator: Generator) -> bool:
    """Whether a system message makes it into the model's prompts at all."""
    asked = [{"role": "user", "content": "Why?"}]
    told = [{"role": "system", "content": prompts.CONDENSE_SYSTEM_PROMPT}, *asked]
    return generator.count_prompt_tokens(told) > generator.count_prompt_tokens(asked)


def assemble(settings: Settings, *, retriever: Retriever, served: ServedModel) -> Engine:
    """An engine from an opened retriever and model, checked against each other.

    Raises:
        IncompatibleArtifact: If the model was trained on another kind of context.
        ConfigError: If the model is to rewrite follow-ups and cannot see what it is asked.
    """
    store: FeatureStore = retriever.store  # type: ignore[assignment]
    if served.manifest and store.exists():
        recipe = store.recipe()
        check_store(
            served.manifest,
            model=served.name,
            embedder=recipe.embedder.to_dict(),
            chunker_digest=recipe.chunker_digest,
        )
    template = getattr(served.generator, "chat_template", None)
    section = settings.inference
    if section.condense == "model" and not sees_instructions(served.generator):
        raise ConfigError(
            f"inference.condense is model, but {served.name} cannot rewrite follow-up questions: "
            "its chat template leaves the system message out.",
            next_step="Set inference.condense to previous, or serve a model that follows "
            "instructions.",
        )
    threshold = section.abstain_below
    if threshold is None:
        threshold = calibrated_threshold(served)
    return Engine(
        retriever=retriever,
        served=served,
        prompt_digest=prompts.prompt_digest(template, retrieval_settings(settings)),
        context_tokens=settings.retrieval.context_tokens,
        max_tokens=section.max_tokens,
        temperature=section.temperature,
        abstain_below=threshold,
        condense_mode=section.condense,
        history_turns=section.history_turns,
        follow=section.follow,
    )
