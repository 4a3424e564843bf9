"""What a finished model says counts as it will when it is served."""

from __future__ import annotations

from pathlib import Path

import torch

from rag_fti.models.causal import load_causal_lm, load_tokenizer
from rag_fti.progress import Silent
from rag_fti.training.replies import validation_replies
from tests.training.tiny import LIBRARY_WARNINGS, make_rows

pytestmark = LIBRARY_WARNINGS


def test_a_model_that_says_nothing_abstains(tiny_llama: Path) -> None:
    """In serving, nothing is shown as the abstention sentence."""
    model, tokenizer = load_causal_lm(tiny_llama), load_tokenizer(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # so that the most likely token is padding
    replies = validation_replies(model, tokenizer, make_rows(5), max_tokens=3, progress=Silent())
    assert [reply.abstained for reply in replies] == [True] * 5
    assert [reply.answerable for reply in replies] == [True] * 4 + [False]
