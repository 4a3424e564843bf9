from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from rag_fti.config.models import RerankerConfig
from rag_fti.errors import ModelNotFound
from rag_fti.models.reranker import build_reranker

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["the key is here", "a boat at the pier", "nothing", "the key and the boat"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random cross-encoder."""
    path = tmp_path_factory.mktemp("cross-encoder")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(path)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_one_score_per_text_whatever_the_batch(directory: Path) -> None:
    one = build_reranker(RerankerConfig(model=str(directory), device="cpu", batch_size=1))
    many = build_reranker(RerankerConfig(model=str(directory), device="cpu", batch_size=8))
    alone, together = one.score("where is the key", TEXTS), many.score("where is the key", TEXTS)
    assert alone.shape == (4,)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert len(set(alone.tolist())) == 4
    assert one.score("x", []).shape == (0,)
    assert one.model == str(directory)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing-here"):
        build_reranker(RerankerConfig(model=str(tmp_path / "nothing-here"), device="cpu"))
