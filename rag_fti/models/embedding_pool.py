"""Embedding in several processes, each with the whole model and its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

import numpy as np

from rag_fti.errors import InferenceError
from rag_fti.protocols import Vectors

_TEXTS_PER_TASK = 32


class SentenceModel(Protocol):
    """Computes vectors, prompts and scaling left to others."""

    def encode(self, texts: Sequence[str], *, stored: bool) -> Vectors:
        """Vectors of texts, float32 of shape ``(len(texts), dimension)``."""
        ...


class EmbeddingPool:
    """Worker processes that embed; they start with the first text and end with this process.

    Args:
        load: Makes the model in a worker; must be picklable.
        processes: How many workers.
    """

    def __init__(self, *, load: Callable[[], SentenceModel], processes: int) -> None:
        self._executor = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(load, max(1, (os.cpu_count() or 1) // processes)),
        )

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``.

        Raises:
            InferenceError: If a worker died.
        """
        # Like lengths together, so that little of a batch is padding.
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        parts = [
            [texts[number] for number in order[start : start + _TEXTS_PER_TASK]]
            for start in range(0, len(order), _TEXTS_PER_TASK)
        ]
        try:
            found = np.concatenate(list(self._executor.map(_encode, parts)))
        except BrokenProcessPool as error:
            raise InferenceError(
                "A worker process that embeds texts died.",
                next_step="See the messages above; a lower embedder.processes needs less memory.",
            ) from error
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def close(self) -> None:
        """End the workers."""
        self._executor.shutdown(cancel_futures=True)


_model: SentenceModel | None = None
"""A worker's model; set once, when the worker starts."""


def _start(load: Callable[[], SentenceModel], threads: int) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _model = load()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(texts: Sequence[str]) -> Vectors:
    assert _model is not None
    return _model.encode(texts, stored=True)
