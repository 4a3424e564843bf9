"""The usual sentence-transformers model, run without that library.

Most are a transformer, the mean of its token vectors or the first of them, and scaling to unit
length. Importing sentence-transformers for that brings scikit-learn, scipy, datasets and trainers:
two seconds of a processor, a quarter of what one question on the command line takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_KNOWN_SETTINGS = {"max_seq_length", "do_lower_case"}


class PooledModel:
    """Transformer, pooling and scaling.

    Args:
        transformer: Gives ``last_hidden_state``.
        tokenizer: Cuts texts to the model's length; pads nothing.
        first_token: Pool the first token's vector; else the mean of all.
        scaled: Scale vectors to unit length.
    """

    def __init__(
        self, transformer: Any, *, tokenizer: Any, first_token: bool, scaled: bool
    ) -> None:
        self._transformer = transformer
        self._tokenizer = tokenizer
        self._first_token = first_token
        self._scaled = scaled

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, shape ``(len(texts), dimension)``, on the model's device."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        device = self._transformer.device
        length = max(len(encoding.ids) for encoding in encodings)
        pad = getattr(self._transformer.config, "pad_token_id", None) or 0
        ids = torch.full((len(encodings), length), pad, dtype=torch.long)
        mask = torch.zeros((len(encodings), length), dtype=torch.long)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
            mask[row, : len(encoding.ids)] = 1
        mask = mask.to(device)
        hidden = self._transformer(input_ids=ids.to(device), attention_mask=mask).last_hidden_state
        if self._first_token:
            pooled = hidden[:, 0]
        else:
            # Summed in float32 and rounded back, as sentence-transformers does.
            shown = mask.unsqueeze(-1).to(hidden.dtype)
            total = (hidden * shown).sum(dim=1, dtype=torch.float32)
            pooled = (total / shown.sum(dim=1, dtype=torch.float32)).to(hidden.dtype)
        return functional.normalize(pooled, dim=1) if self._scaled else pooled


def load_pooled(directory: Path, *, device: str, tokenizer: Any) -> PooledModel | None:
    """The model in a directory, or None where it is of another shape.

    Args:
        directory: A sentence-transformers model.
        device: Where it runs.
        tokenizer: Its tokenizer, cutting and not padding.

    Raises:
        OSError: If its files cannot be loaded.
        ValueError: Likewise.
    """
    modules = [module["type"].rpartition(".")[2] for module in _read(directory / "modules.json")]
    config = _read(directory / "config.json")
    own = _read(directory / "sentence_bert_config.json")
    if (
        modules[:2] != ["Transformer", "Pooling"]
        or modules[2:] not in ([], ["Normalize"])
        or not own.keys() <= _KNOWN_SETTINGS
        or own.get("do_lower_case")
        or config.get("is_encoder_decoder")
        or "auto_map" in config
        or _read(directory / "config_sentence_transformers.json").get("default_prompt_name")
        or (directory / "adapter_config.json").exists()
    ):
        return None
    pooling = _read(directory / _read(directory / "modules.json")[1]["path"] / "config.json")
    modes = {key for key, value in pooling.items() if key.startswith("pooling_mode") and value}
    if modes not in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"}):
        return None
    from transformers import AutoModel

    transformer = AutoModel.from_pretrained(str(directory), local_files_only=True)
    return PooledModel(
        transformer.eval().to(device),
        tokenizer=tokenizer,
        first_token="pooling_mode_cls_token" in modes,
        scaled="Normalize" in modules,
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
