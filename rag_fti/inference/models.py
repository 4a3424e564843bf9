"""Opening the model that answers: a registry version, a base model, or a remote one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import prompts
from rag_fti.config import Settings
from rag_fti.config.models import LocalGeneratorConfig, RemoteGeneratorConfig
from rag_fti.errors import IncompatibleArtifact, ModelNotFound
from rag_fti.protocols import Generator, embedder_differences
from rag_fti.retrieval import retrieval_settings
from rag_fti.roots import open_registry

if TYPE_CHECKING:
    from rag_fti.models.causal import BaseModel
    from rag_fti.registry import ModelVersion

logger = logging.getLogger(__name__)

BASE = "base"
"""The reference that means the base model without any adapter."""


@dataclass(frozen=True)
class ServedModel:
    """A generator and where it came from."""

    generator: Generator
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The registry version's manifest; empty for a base or remote model."""

    @property
    def name(self) -> str:
        """``name@version``, or the base or remote model's name."""
        return self.generator.model

    @property
    def dataset(self) -> str:
        """Dataset version the model was trained on; empty for a base model."""
        return str(self.manifest.get("dataset", ""))

    def close(self) -> None:
        """Release the generator's threads and connections once it is idle."""
        close = getattr(self.generator, "close", None)
        if close is not None:
            close()


def resolve_reference(settings: Settings, reference: str = "") -> ModelVersion | None:
    """The registry version that a reference means, or None for the base or remote model.

    Args:
        settings: Sections ``storage`` and ``generator``.
        reference: ``name@3``, an alias, ``base``, a directory or hub id; empty takes
            ``generator.model``, which falls back to the base model while the registry has no
            such alias.

    Raises:
        ModelNotFound: If ``reference`` is given and names nothing.
    """
    config = settings.generator
    if reference == BASE or (isinstance(config, RemoteGeneratorConfig) and not reference):
        return None
    wanted = reference or config.model
    if not reference and names_base_model(wanted):
        return None
    registry = open_registry(settings.storage)
    try:
        return registry.resolve(wanted)
    except ModelNotFound:
        if reference or "@" in wanted:
            raise
        return None


def open_model(settings: Settings, reference: str = "") -> ServedModel:
    """Load the model that a reference means, checking digests and prompt format.

    Args:
        settings: Sections ``storage``, ``generator`` and ``retrieval``.
        reference: As for :func:`resolve_reference`.

    Raises:
        ModelNotFound: If there is no such model.
        RegistryError: If a version's files do not match its manifest.
        IncompatibleArtifact: If base model, adapter or prompt format do not fit together.
    """
    version = resolve_reference(settings, reference)
    config = settings.generator
    if isinstance(config, RemoteGeneratorConfig):
        if version is None:
            from rag_fti.models.remote import build_remote_generator

            return ServedModel(build_remote_generator(config, environment=os.environ))
        config = LocalGeneratorConfig()
    if version is None:
        if not reference and not names_base_model(config.model):
            logger.info("no version is %s yet: the base model answers", config.model)
        return _open_base(config)
    return _open_version(settings, config, version)


def names_base_model(model: str) -> bool:
    """Whether a configured model is a base model and not something of the registry."""
    if model in (BASE, "embedded") or "/" in model:
        return True
    try:
        return Path(model).is_dir()
    except OSError:  # longer than a file name can be
        return False


def _open_base(config: LocalGeneratorConfig) -> ServedModel:
    from rag_fti.models.causal import resolve_base_model
    from rag_fti.models.local import load_local_generator

    reference = config.model if names_base_model(config.model) else config.base_model
    base = resolve_base_model(
        config.base_model if reference == BASE else reference, revision=config.revision
    )
    return ServedModel(
        load_local_generator(
            location=base.location,
            name=base.reference,
            device=config.device,
            dtype=config.dtype,
            max_batch=config.max_batch,
            threads=config.threads,
        )
    )


def _open_version(
    settings: Settings, config: LocalGeneratorConfig, version: ModelVersion
) -> ServedModel:
    from rag_fti.models.local import load_local_generator

    open_registry(settings.storage).verify(version)
    adapter = version.path if (version.path / "adapter_config.json").is_file() else None
    location = version.path if adapter is None else find_base(config, version).location
    generator = load_local_generator(
        location=location,
        name=version.ref,
        adapter=adapter,
        device=config.device,
        dtype=config.dtype,
        max_batch=config.max_batch,
        threads=config.threads,
        abstain_bias=float((version.manifest.get("calibration") or {}).get("abstain_bias", 0.0)),
    )
    expected = version.manifest.get("prompt_digest")
    actual = prompts.prompt_digest(generator.chat_template, retrieval_settings(settings))
    if expected and expected != actual:
        generator.close()
        raise IncompatibleArtifact(
            f"{version.ref} was trained on prompts with digest {expected[:12]}, this server "
            f"renders {actual[:12]}: the renderer, the chat template, retrieval.context_tokens "
            "or retrieval.neighbours differ.",
            next_step="Use the retrieval settings of its dataset, or build a dataset with these "
            "and train again.",
        )
    return ServedModel(generator, version.manifest)


def find_base(config: LocalGeneratorConfig, version: ModelVersion) -> BaseModel:
    """The base model a version was trained on.

    The configured one is tried first, then the one that the manifest names.

    Raises:
        IncompatibleArtifact: If neither has the weights that the version was trained on.
    """
    from rag_fti.models.causal import resolve_base_model

    recorded = version.manifest.get("base_model") or {}
    wanted = recorded.get("weights_digest")
    candidates = dict.fromkeys(
        [
            (config.base_model, config.revision),
            (str(recorded.get("reference", "")), recorded.get("revision") or None),
        ]
    )
    tried = []
    for reference, revision in candidates:
        if not reference:
            continue
        try:
            base = resolve_base_model(reference, revision=revision)
        except ModelNotFound as error:
            tried.append(f"{reference}: {error.message}")
            continue
        if wanted in (None, base.weights_digest):
            return base
        tried.append(f"{reference} has weights {base.weights_digest[:12]}")
    raise IncompatibleArtifact(
        f"{version.ref} needs the base model {recorded.get('reference')!r} with weights "
        f"{str(wanted)[:12]}; {'; '.join(tried)}.",
        next_step="Set generator.base_model to the base model it was trained on.",
    )


def check_store(
    manifest: Mapping[str, Any],
    *,
    model: str,
    embedder: Mapping[str, Any],
    chunker_digest: str,
) -> None:
    """Check that a model was trained on context like the store's.

    Args:
        manifest: The version's manifest.
        model: ``name@version``, for messages.
        embedder: The store's embedder fingerprint.
        chunker_digest: The store's chunker digest.

    Raises:
        IncompatibleArtifact: If the store was built in another way, saying which side to
            rebuild.
    """
    trained = manifest.get("embedder")
    if trained:
        differing = [
            f"{name} was {before!r} and is {now!r}"
            for name, (before, now) in embedder_differences(trained, embedder).items()
        ]
        if differing:
            raise IncompatibleArtifact(
                f"{model} was trained on passages found with another embedder than the store's: "
                f"{'; '.join(differing)}.",
                next_step="Train on a dataset built from this store, or serve a version that was.",
            )
    digest = manifest.get("chunker_digest")
    if digest and digest != chunker_digest:
        raise IncompatibleArtifact(
            f"{model} was trained on chunks cut in another way (digest {digest[:12]}) than the "
            f"store's ({chunker_digest[:12]}).",
            next_step="Ingest again with the chunking the model was trained on, or build a "
            "dataset from this store and train again.",
        )
