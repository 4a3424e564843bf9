"""Embedding chunks, each distinct text once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rag_fti import ids
from rag_fti.protocols import Embedder, Vectors

_SLICE = 256
"""Texts per call of the embedder: enough to sort by length, few enough to show progress."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts and where they came from."""

    vectors: Vectors
    """Float32 of shape ``(len(texts), dimension)``."""
    digests: tuple[str, ...]
    """SHA-256 of each text."""
    computed: npt.NDArray[np.bool_]
    """Whether a vector was computed now, shape ``(len(texts),)``; the others were known."""


def embed_texts(
    texts: Sequence[str],
    *,
    embedder: Embedder,
    known: Callable[[Sequence[str]], dict[str, Vectors]],
    advance: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """Vectors of texts; a text whose vector is known, or that occurs twice, costs nothing.

    Args:
        texts: What to embed.
        embedder: Computes vectors.
        known: Looks digests up among stored vectors.
        advance: Is told how many texts each call of the embedder finished.

    Returns:
        Vectors in the order of ``texts``.
    """
    digests = tuple(ids.digest_text(text) for text in texts)
    stored = known(digests) if texts else {}
    first = {d: n for n, d in reversed(list(enumerate(digests))) if d not in stored}
    # Longest first, so that texts of like length share a batch and little is padding.
    order = sorted(first.values(), key=lambda number: (-len(texts[number]), number))
    fresh: dict[str, Vectors] = {}
    for start in range(0, len(order), _SLICE):
        numbers = order[start : start + _SLICE]
        vectors = embedder.encode_documents([texts[number] for number in numbers])
        fresh.update((digests[n], vector) for n, vector in zip(numbers, vectors, strict=True))
        advance(len(numbers))
    dimension = embedder.fingerprint.dimension
    result = np.zeros((len(texts), dimension), dtype=np.float32)
    computed = np.zeros(len(texts), dtype=np.bool_)
    for number, digest in enumerate(digests):
        result[number] = fresh[digest] if digest in fresh else stored[digest]
        computed[number] = first.get(digest) == number
    return Embedded(result, digests, computed)
