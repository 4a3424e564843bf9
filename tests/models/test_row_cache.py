import random

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from rag_fti.models.row_cache import RowLayer

ROWS, HEADS, SIZE = 5, 2, 3


def joining(lengths: list[int]) -> DynamicLayer:
    """New rows as a model leaves them: padded on the left, with what must never be read."""
    layer = DynamicLayer()
    states = torch.randn(len(lengths), HEADS, max(lengths), SIZE)
    for row, length in enumerate(lengths):
        states[row, :, : max(lengths) - length] = torch.nan
    layer.update(states, states + 1)
    return layer


def test_rows_keep_their_tokens_whoever_comes_and_goes() -> None:
    torch.manual_seed(0)
    chance = random.Random(0)
    layer = RowLayer(joining([1]), rows=ROWS)
    expected: list[Tensor] = []  # keys of each row, (heads, tokens, size)
    for _ in range(900):  # long enough for the buffer to be outgrown
        if not expected or (len(expected) < ROWS and chance.random() < 0.02):
            most = ROWS - len(expected)
            lengths = [chance.randint(1, 400) for _ in range(chance.randint(1, most))]
            new = joining(lengths)
            layer.add(new, lengths)
            expected += [new.keys[row, :, -length:] for row, length in enumerate(lengths)]
        token = torch.randn(len(expected), HEADS, 1, SIZE)
        keys, values = layer.update(token, token + 1)
        expected = [torch.cat([row, one], dim=1) for row, one in zip(expected, token, strict=True)]
        if chance.random() < 0.02:
            gone = chance.randrange(len(expected))
            layer.take_out(gone)
            expected[gone] = expected[-1]
            expected.pop()
            longest = max((row.shape[1] for row in expected), default=0)
            layer.trim(layer.get_seq_length() - longest)
            keys, values = layer.keys, layer.values
        assert keys.shape[0] == len(expected)
        assert torch.equal(values.isfinite(), torch.ones_like(values, dtype=torch.bool))
        for row, wanted in enumerate(expected):
            length = wanted.shape[1]
            assert torch.equal(keys[row, :, -length:], wanted)
            assert torch.equal(values[row, :, -length:], wanted + 1)
