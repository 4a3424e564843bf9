"""Vectors of questions, remembered: people, dashboards and tests ask the same again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from rag_fti.protocols import Embedder, EmbedderFingerprint, Vectors

LONGEST_REMEMBERED = 2000
"""Characters; what is longer is somebody's document, not a question that is asked again."""

_Key = tuple[EmbedderFingerprint, str, str]


class QueryVectors:
    """An embedder for questions that keeps the vectors of the latest ones. Thread-safe.

    Args:
        embedder: Makes the vectors.
        size: Most questions remembered; 0 remembers none.
    """

    def __init__(self, embedder: Embedder, *, size: int) -> None:
        self._embedder = embedder
        self._size = size
        self._lock = threading.Lock()
        self._vectors: OrderedDict[_Key, Vectors] = OrderedDict()
        self.asked = 0
        """Questions that came."""
        self.hits = 0
        """Questions whose vector was there."""

    def __len__(self) -> int:
        return len(self._vectors)

    def encode(self, questions: Sequence[str], *, asker: str = "") -> list[Vectors]:
        """The vector of each question, float32 of shape ``(dimension,)``, not to be changed.

        Args:
            questions: Any texts.
            asker: Who asks. What others have asked is computed anew: its time would tell that
                they did.
        """
        fingerprint = self._embedder.fingerprint
        keys = [(fingerprint, asker, question) for question in questions]
        found: dict[_Key, Vectors] = {}
        with self._lock:
            self.asked += len(keys)
            for key in keys:
                if key in self._vectors:
                    self._vectors.move_to_end(key)
                    found[key] = self._vectors[key]
                    self.hits += 1
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            # Without the lock: others may find theirs, or embed at the same time.
            made = self._embedder.encode_queries([question for *_, question in missing])
            for key, row in zip(missing, made, strict=True):
                found[key] = np.array(row, dtype=np.float32)  # a copy, so that the batch can go
                found[key].setflags(write=False)
            with self._lock:
                self._vectors.update(
                    (key, found[key]) for key in missing if len(key[-1]) <= LONGEST_REMEMBERED
                )
                while len(self._vectors) > self._size:
                    self._vectors.popitem(last=False)
        return [found[key] for key in keys]
