"""The embedded model's class trains like any other, without packing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rag_fti.models.causal import load_tokenizer
from rag_fti.models.reader import ReaderForCausalLM
from rag_fti.models.reader_config import ReaderConfig
from rag_fti.progress import Silent
from rag_fti.training.job import JobOptions, LoraOptions, run_job
from tests.conftest import REPOSITORY
from tests.training.tiny import LIBRARY_WARNINGS, make_rows

pytestmark = LIBRARY_WARNINGS
EMBEDDED = REPOSITORY / "data/models/rag-fti-reader"


@pytest.fixture(scope="module")
def tiny_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (EMBEDDED / "config.json").is_file():
        pytest.skip("the embedded model is not here")
    folder = tmp_path_factory.mktemp("reader")
    config = ReaderConfig.from_pretrained(str(EMBEDDED))
    config.update(
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
        }
    )
    torch.manual_seed(0)
    ReaderForCausalLM(config).save_pretrained(str(folder))
    load_tokenizer(EMBEDDED).save_pretrained(str(folder))
    return folder


def test_a_reader_is_trained_validated_and_asked(tiny_reader: Path, tmp_path: Path) -> None:
    result = run_job(
        tiny_reader,
        make_rows(12),
        make_rows(4, 1000),
        options=JobOptions(
            device="cpu",
            dtype="float32",
            batch_size=4,
            micro_batch_size=2,
            max_steps=4,
            learning_rate=5e-3,
            evaluations_per_epoch=1,
            samples=2,
            lora=LoraOptions(rank=4, alpha=8, last_layers=1),
        ),
        work=tmp_path,
        resume=False,
        progress=Silent(),
    )
    assert not result.switches["packing"] and "position_ids" in result.switches["note"]
    assert len(result.fit.losses()) == 4 and result.fit.validation_losses()
    assert len(result.samples) == 2
    adapted = {name for name, p in result.model.named_parameters() if p.requires_grad}
    assert not any(".layers.0." in name for name in adapted)
    assert any(".head." in name for name in adapted)
