"""Embedding models run by sentence-transformers on torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag_fti.errors import ConfigError
from rag_fti.models.lengths import encode_by_length
from rag_fti.protocols import Vectors


class TorchModel:
    """A sentence-transformers model.

    Args:
        directory: The model's files.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: Arithmetic for stored texts: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        batch_size: Texts per forward pass; 0 is what suits the device.
        max_tokens: What is longer is cut.

    Raises:
        ConfigError: If it cannot be loaded, or the device is not there.
    """

    def __init__(
        self, *, directory: Path, device: str, dtype: str, batch_size: int, max_tokens: int
    ) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer
        from transformers.utils import logging as transformers_logging

        from rag_fti.models.hardware import pick_batch_size, pick_device, pick_dtype

        device = pick_device(device)
        arithmetic = pick_dtype(dtype, device)
        transformers_logging.disable_progress_bar()
        try:
            model = SentenceTransformer(str(directory), device=device, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError(
                f"Cannot load the embedding model in {directory}: {error}",
                next_step="Check embedder.model.",
            ) from error
        model.max_seq_length = max_tokens
        self._model = model
        self._batch_size = batch_size or pick_batch_size(device)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        self._autocast: Any = None if arithmetic == torch.float32 else arithmetic

    def encode(self, texts: Sequence[str], *, stored: bool) -> Vectors:
        """Vectors of texts, float32 of shape ``(len(texts), dimension)``.

        Args:
            texts: At least one.
            stored: Whether mixed precision is allowed; questions are computed in float32.
        """

        def encode(numbers: Sequence[int]) -> Vectors:
            vectors = self._model.encode(
                [texts[number] for number in numbers],
                batch_size=len(numbers),
                convert_to_tensor=True,
                show_progress_bar=False,
            )
            found: Vectors = vectors.float().cpu().numpy()
            return found

        lengths = [len(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts))]
        with self._mixed_precision() if stored else contextlib.nullcontext():
            return encode_by_length(lengths, self._batch_size, encode)

    def _mixed_precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self._model.device.type, dtype=self._autocast)
