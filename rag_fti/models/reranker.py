"""Cross-encoders: models that read a question and a passage together."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rag_fti.config.models import RerankerConfig
from rag_fti.errors import ModelNotFound
from rag_fti.models.hardware import pick_device

logger = logging.getLogger(__name__)


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder.

    Args:
        model: Hub id or directory.
        revision: Hub revision.
        device: Torch device name.
        batch_size: Pairs per forward pass.

    Raises:
        ModelNotFound: If the model cannot be loaded.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        from sentence_transformers import CrossEncoder

        self._name = model
        self._batch_size = batch_size
        try:
            self._encoder = CrossEncoder(
                model, revision=revision, device=device, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"Cannot load the reranker {model!r}: {error}.",
                next_step="Name a directory or a hub id that is cached or can be fetched.",
            ) from error

    @property
    def model(self) -> str:
        """Hub id or directory of the model."""
        return self._name

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One score per text, shape ``(len(texts),)``; higher is more relevant."""
        if not texts:
            return np.zeros(0, dtype=np.float32)
        scores = self._encoder.predict(
            [(question, text) for text in texts],
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(scores, dtype=np.float32).reshape(len(texts))


def build_reranker(config: RerankerConfig) -> CrossEncoderReranker:
    """The reranker of a configuration section whose ``model`` is not empty."""
    return CrossEncoderReranker(
        model=config.model,
        revision=config.revision,
        device=pick_device(config.device),
        batch_size=config.batch_size,
    )
