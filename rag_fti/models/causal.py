"""Loading causal language models: the embedded one, a directory, or a hub id.

Weights are read from safetensors only (never pickle) and no code from a model repository runs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rag_fti import ids, prompts
from rag_fti.errors import IncompatibleArtifact, ModelNotFound

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_DIRECTORY = Path("data/models/rag-fti-reader")
ORIGIN = "rag_fti_origin.json"
"""In a copy of a base model, as training bundles hold one: what it is a copy of."""

FALLBACK_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For base models that ship no chat template of their own."""

_SYSTEM_IN_FIRST_TURN = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set said = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- if rest and rest[0]['role'] == 'user' %}"
    "{%- set said = said + '\n\n' + rest[0]['content'] %}{%- set rest = rest[1:] %}"
    "{%- endif %}"
    "{%- set messages = [{'role': 'user', 'content': said}] + rest %}"
    "{%- endif %}"
)
"""Before a chat template that knows no system role (Gemma 2, the first Mistral models)."""

_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class BaseModel:
    """A base model that is on this machine."""

    reference: str
    """As configured: ``embedded``, a hub id or a directory; of a copy, that of the original."""
    revision: str
    """Hub commit; empty for a directory."""
    location: Path
    """Directory with config, tokenizer and weights."""
    weights_digest: str
    """SHA-256 over the weight files' names and bytes, 64 hex digits."""

    def to_dict(self) -> dict[str, str]:
        """What manifests record. The location is left out: it differs between machines."""
        return {
            "reference": self.reference,
            "revision": self.revision,
            "weights_digest": self.weights_digest,
        }


def resolve_base_model(reference: str, *, revision: str | None = None) -> BaseModel:
    """Find a base model, fetching it from the hub if it is a hub id that is not cached.

    Args:
        reference: ``embedded``, a directory, or a hub id (``owner/name``).
        revision: Hub commit, tag or branch; ignored for directories.

    Raises:
        ModelNotFound: If there is no such model, or the hub cannot be reached and has no copy
            in the cache.
        IncompatibleArtifact: If it is a copy and does not say of what.
    """
    location = _local_directory(reference)
    commit = ""
    if location is None:
        location, commit = _from_hub(reference, revision)
    weights = sorted(location.glob("*.safetensors"))
    if not (location / "config.json").is_file() or not weights:
        raise ModelNotFound(
            f"{location} is not a model directory: it needs config.json and *.safetensors.",
            next_step="Save the model with save_pretrained(); pickled weights are not read.",
        )
    digest = ids.digest_of_files(weights, root=location)
    if (location / ORIGIN).is_file():
        reference, commit = _read_origin(location / ORIGIN)
    return BaseModel(reference, commit, location, digest)


def _read_origin(path: Path) -> tuple[str, str]:
    """Reference and revision of what a copy is a copy of."""
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        return str(origin["reference"]), str(origin["revision"])
    except (ValueError, KeyError, TypeError) as error:
        raise IncompatibleArtifact(
            f"{path} is damaged; expected a JSON object with reference and revision.",
            next_step="Write the bundle again with rag-fti train bundle.",
        ) from error


def load_tokenizer(location: Path) -> Any:
    """The tokenizer of a model directory, left-padded, with a pad token and a chat template.

    Of several chat templates it keeps the default one.

    Raises:
        ModelNotFound: If the directory holds no tokenizer.
        IncompatibleArtifact: If its chat template cannot render a prompt.
    """
    from transformers import AutoTokenizer

    _register_own_classes()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(location), trust_remote_code=False, local_files_only=True
        )
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = tokenizer.get_chat_template()
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"No usable tokenizer in {location}: {error}.") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logger.info("%s has no chat template; using the plain one", location)
        tokenizer.chat_template = FALLBACK_CHAT_TEMPLATE
    if _turn_fault(tokenizer):
        tokenizer.chat_template = _SYSTEM_IN_FIRST_TURN + tokenizer.chat_template
        if fault := _turn_fault(tokenizer):
            raise IncompatibleArtifact(
                f"The chat template of {location} cannot render a system and a user turn: {fault}.",
                next_step="Put a chat_template.jinja that can beside its tokenizer.",
            )
    return tokenizer


def _turn_fault(tokenizer: Any) -> str:
    """What keeps a system and a user turn from being a prompt; empty if nothing does.

    A template may leave the system text out on purpose, as the embedded model's does.
    """
    from jinja2 import TemplateError

    question = "Why?"
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": question})
    try:
        text = prompts.render(tokenizer, turns)
    except (TemplateError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if question in text else f"it made {text!r} of them"


def load_causal_lm(
    location: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    adapter: Path | None = None,
    trainable: bool = False,
    quantization: Any = None,
) -> Any:
    """A causal language model, optionally with a LoRA adapter on top.

    Args:
        location: Base model directory.
        device: Torch device name.
        dtype: Weight dtype.
        adapter: PEFT adapter directory.
        trainable: Keep the adapter trainable instead of switching to evaluation.
        quantization: A transformers quantization config (QLoRA), or None.

    Raises:
        ModelNotFound: If the weights cannot be read.
        IncompatibleArtifact: If the adapter does not fit the base model.
    """
    from transformers import AutoModelForCausalLM

    _register_own_classes()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(location),
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            quantization_config=quantization,
        )
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"Cannot load the model in {location}: {error}.") from error
    if quantization is None:
        model = model.to(device)
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
        except (OSError, ValueError, RuntimeError) as error:
            raise IncompatibleArtifact(
                f"The adapter in {adapter} does not fit the base model in {location}: {error}.",
                next_step="Use the base model named in the version's manifest.",
            ) from error
    return model if trainable else model.eval()


def _local_directory(reference: str) -> Path | None:
    if reference != EMBEDDED:
        path = Path(reference).expanduser()
        return path if path.is_dir() else None
    checkout = Path(__file__).resolve().parents[2]
    for root in (Path(), checkout):
        if (root / EMBEDDED_DIRECTORY / "config.json").is_file():
            return root / EMBEDDED_DIRECTORY
    raise ModelNotFound(
        f"The embedded model is not at {EMBEDDED_DIRECTORY}, neither here nor in {checkout}.",
        next_step="Run from a checkout of the project, or name a hub id or directory instead.",
    )


def _from_hub(reference: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = snapshot_download(reference, revision=revision, allow_patterns=list(_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"{reference!r} is neither a directory nor a hub model that can be fetched: {error}",
            next_step="Check the spelling; offline, copy the model into a directory and name that.",
        ) from error
    # The cache keeps each commit under snapshots/<commit>.
    return Path(path), Path(path).name


def _register_own_classes() -> None:
    from rag_fti.models.reader import register

    register()
