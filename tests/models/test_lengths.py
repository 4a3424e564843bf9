from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rag_fti.models.lengths import encode_by_length
from rag_fti.protocols import Vectors


def test_vectors_come_back_in_the_order_of_the_texts_and_batches_are_of_like_length() -> None:
    lengths = [int(n) for n in np.random.default_rng(3).integers(1, 50, size=21)]
    batches: list[list[int]] = []

    def encode(numbers: Sequence[int]) -> Vectors:
        batches.append([lengths[number] for number in numbers])
        return np.array([[number, lengths[number]] for number in numbers], dtype=np.float32)

    vectors = encode_by_length(lengths, 4, encode)
    assert vectors.tolist() == [[number, length] for number, length in enumerate(lengths)]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1]
    assert [length for batch in batches for length in batch] == sorted(lengths, reverse=True)
