"""What a finished model says counts as it will when it is served."""

from __future__ import annotations

from pathlib import Path

import torch

from rag_fti.models.causal import load_causal_lm, load_tokenizer
from rag_fti.progress import Silent
from rag_fti.training.replies import validation_replies
from rag_fti.training.samples import generate_samples
from tests.training.test_fitting import adapted
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


def test_samples_end_where_answers_do(tiny_llama: Path) -> None:
    """Chat models end a turn with a token that is not always the tokenizer's."""
    model, tokenizer = adapted(tiny_llama), load_tokenizer(tiny_llama)
    (said,) = generate_samples(model, tokenizer, make_rows(1), adapted=False, max_tokens=6)
    first = tokenizer(said, add_special_tokens=False)["input_ids"][0]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    (ended,) = generate_samples(model, tokenizer, make_rows(1), adapted=False, max_tokens=6)
    assert len(said.split()) == 6 and ended.split() == said.split()[:1]
