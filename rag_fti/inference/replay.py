"""A logged answer, asked again the way it was asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rag_fti.config import Settings
from rag_fti.config.models import LocalGeneratorConfig, RemoteGeneratorConfig
from rag_fti.errors import InferenceError, ModelNotFound
from rag_fti.inference.building import build_engine
from rag_fti.inference.engine import Sampling
from rag_fti.inference.models import BASE, names_base_model
from rag_fti.retrieval.retriever import Mode
from rag_fti.schemas import Answer

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore

_NOT_ABOUT_ANSWERS: Mapping[str, set[str]] = {
    "retrieval": set(),
    "reranker": {"device", "batch_size"},
    "inference": {"follow", "log", "log_redact", "log_sample"},
}
"""Sections that shape an answer, and their fields that do not."""


@dataclass(frozen=True)
class Replay:
    """A second answer to a logged question."""

    answer: Answer
    notes: tuple[str, ...]
    """Why it may differ although nothing is wrong."""


def asked(
    settings: Settings,
    *,
    k: int | None = None,
    mode: Mode | None = None,
    where: str | None = None,
    at: str = "",
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """What a request asked for and how the engine was set, as the log keeps it.

    Args:
        settings: The configuration that the engine was built from.
        k: As asked for; None where the request did not say.
        mode: As asked for.
        where: As asked for.
        at: As asked for.
        sampling: As asked for.

    Returns:
        JSON-ready values: the request's own, and under ``configured`` the sections that shape
        an answer.
    """
    return {
        "k": k,
        "mode": mode,
        "filter": where,
        "at": at,
        "sampling": asdict(sampling or Sampling()),
        "configured": {
            section: getattr(settings, section).model_dump(mode="json", exclude=left_out)
            for section, left_out in _NOT_ABOUT_ANSWERS.items()
        },
    }


def replay(record: Mapping[str, Any], *, settings: Settings, store: FeatureStore) -> Replay:
    """Answer a logged question again: same snapshot, model, search, history and sampling.

    Args:
        record: The logged answer, as :func:`rag_fti.lineage.trace` gives it.
        settings: Where storage and models are; how to answer comes from the record.
        store: The open feature store.

    Raises:
        InferenceError: If the log has no text to ask again.
        ModelNotFound: If the model that answered is not to be had any more.
        SnapshotNotFound: If the snapshot is gone.
        IncompatibleArtifact: If store and model have become incompatible.
    """
    if not record["question"]:
        raise InferenceError(
            f"{record['id']} was logged without its question, so it cannot be asked again.",
            next_step="Answers are logged with their texts while inference.log_redact is false.",
        )
    logged = record["settings"]
    notes = _notes(logged)
    settings, reference = _as_answered(_as_configured(settings, logged, notes), record["model"])
    engine = build_engine(settings, store=store, model_ref=reference)
    sampling = logged.get("sampling", {})
    answer = engine.answer(
        record["question"],
        history=logged.get("history", ()),
        k=logged.get("k"),
        mode=logged.get("mode"),
        where=logged.get("filter"),
        collections=None if record["collections"] == ["*"] else record["collections"],
        at=record["snapshot"],
        **sampling,
    )
    return Replay(answer, tuple(notes))


def _notes(logged: Mapping[str, Any]) -> list[str]:
    notes = []
    if "configured" not in logged:
        notes.append(
            "the log does not say how the engine was set: today's settings were used, and "
            "earlier turns of the conversation, if there were any, are missing"
        )
        return notes
    temperature = logged["sampling"]["temperature"]
    if temperature is None:
        temperature = logged["configured"]["inference"].get("temperature", 0.0)
    if temperature > 0 and logged["sampling"]["seed"] is None:
        notes.append(f"it was sampled at temperature {temperature:g} without a seed")
    if logged.get("finish_reason") == "cancelled":
        notes.append("the client left before the answer was complete")
    return notes


def _as_configured(settings: Settings, logged: Mapping[str, Any], notes: list[str]) -> Settings:
    """Today's settings, with the logged ones where they shape an answer."""
    sections: dict[str, Any] = {}
    for name, values in logged.get("configured", {}).items():
        current = getattr(settings, name)
        known = {key: value for key, value in values.items() if key in type(current).model_fields}
        if len(known) < len(values):
            gone = ", ".join(f"{name}.{key}" for key in values if key not in known)
            notes.append(f"it was asked with settings that no longer exist: {gone}")
        try:
            sections[name] = type(current).model_validate({**current.model_dump(), **known})
        except ValidationError as error:
            raise InferenceError(
                f"The logged settings of {name} cannot be used any more: {error}.",
                next_step="Replay it with the version of rag-fti that answered.",
            ) from error
    return settings.model_copy(update=sections)


def _as_answered(settings: Settings, model: str) -> tuple[Settings, str]:
    """Settings and reference that open the model that answered.

    Raises:
        ModelNotFound: If it is a remote model and another one is configured.
    """
    config = settings.generator
    if isinstance(config, RemoteGeneratorConfig) and model == config.model:
        return settings, BASE
    if "@" in model and not names_base_model(model):
        return settings, model
    if isinstance(config, LocalGeneratorConfig) and names_base_model(model):
        revision = config.revision if model == config.base_model else None
        base = config.model_copy(update={"model": BASE, "base_model": model, "revision": revision})
        return settings.model_copy(update={"generator": base}), BASE
    raise ModelNotFound(
        f"{model!r} answered, and generator.type={config.type} with "
        f"generator.model={config.model} cannot reach it.",
        next_step="Replay with the generator settings of the server that answered: generator.type, "
        "generator.base_url and generator.model.",
    )
