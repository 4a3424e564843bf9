from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rag_fti.errors import TrainingError
from rag_fti.models.causal import load_causal_lm, load_tokenizer
from rag_fti.progress import Silent
from rag_fti.training.examples import end_token
from rag_fti.training.job import JobOptions, LoraOptions, run_job
from rag_fti.training.preferences import (
    PairBatches,
    completion_log_probabilities,
    encode_pairs,
    preference_loss,
)
from tests.training.tiny import COLOURS, LIBRARY_WARNINGS, make_rows

pytestmark = LIBRARY_WARNINGS


def pairs(count: int) -> list[dict[str, Any]]:
    rows = [row for row in make_rows(count) if row["answerable"]]
    return [
        {
            "prompt": row["messages"][:-1],
            "chosen": [row["messages"][-1]],
            "rejected": [{"role": "assistant", "content": f"{COLOURS[(n + 3) % 8]} [2]"}],
        }
        for n, row in enumerate(rows)
    ]


def test_log_probabilities_are_those_of_the_completion_alone(tiny_llama: Path) -> None:
    model, tokenizer = load_causal_lm(tiny_llama), load_tokenizer(tiny_llama)
    rows, too_long = encode_pairs(
        pairs(6), tokenizer, end_token_id=end_token(tokenizer), max_tokens=2048
    )
    assert too_long == 0
    with torch.no_grad():
        found = completion_log_probabilities(model, PairBatches(0)(rows))
        for place, example in enumerate([r[0] for r in rows] + [r[1] for r in rows]):
            logits = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
            expected = sum(
                float(logits[n - 1, example.input_ids[n]])
                for n in range(example.prompt_length, len(example))
            )
            assert float(found[place]) == pytest.approx(expected, abs=1e-3)


def test_an_untrained_adapter_has_the_loss_of_a_coin(tiny_llama: Path) -> None:
    from rag_fti.training.adapter import add_adapter

    tokenizer = load_tokenizer(tiny_llama)
    rows, _ = encode_pairs(pairs(4), tokenizer, end_token_id=end_token(tokenizer), max_tokens=2048)
    model = add_adapter(
        load_causal_lm(tiny_llama), rank=4, alpha=8, dropout=0.0, targets="all-linear",
        last_layers=0, dora=False, rslora=False, quantized=False, gradient_checkpointing=False,
    )  # fmt: skip
    loss = preference_loss(0.1)(model, PairBatches(0)(rows))
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)


def test_the_reference_drops_nothing_out(tiny_llama: Path) -> None:
    from rag_fti.training.adapter import add_adapter

    tokenizer = load_tokenizer(tiny_llama)
    rows, _ = encode_pairs(pairs(4), tokenizer, end_token_id=end_token(tokenizer), max_tokens=2048)
    batch = PairBatches(0)(rows)
    base = load_causal_lm(tiny_llama)
    with torch.no_grad():
        expected = completion_log_probabilities(base, batch)
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model = add_adapter(
        base, rank=4, alpha=8, dropout=0.0, targets="all-linear",
        last_layers=0, dora=False, rslora=False, quantized=False, gradient_checkpointing=False,
    )  # fmt: skip
    model.train()
    torch.manual_seed(0)
    policy = completion_log_probabilities(model, batch)
    chosen, rejected = (policy - expected).chunk(2)
    wanted = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    torch.manual_seed(0)
    loss = preference_loss(0.1)(model, batch)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert model.training and all(layer.training for layer in base.model.layers)


def test_a_model_wrapped_for_several_processes_has_the_same_loss(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from rag_fti.training.adapter import add_adapter

    tokenizer = load_tokenizer(tiny_llama)
    rows, _ = encode_pairs(pairs(4), tokenizer, end_token_id=end_token(tokenizer), max_tokens=2048)
    model = add_adapter(
        load_causal_lm(tiny_llama), rank=4, alpha=8, dropout=0.0, targets="all-linear",
        last_layers=0, dora=False, rslora=False, quantized=False, gradient_checkpointing=False,
    )  # fmt: skip
    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1
    )
    try:
        loss = preference_loss(0.1)(DistributedDataParallel(model), PairBatches(0)(rows))
        loss.backward()
    finally:
        distributed.destroy_process_group()
    assert loss.item() == pytest.approx(0.6931, abs=1e-3)
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_preferences_are_learnt(tiny_llama: Path, tmp_path: Path) -> None:
    options = JobOptions(
        device="cpu", dtype="float32", objective="dpo", batch_size=4, max_steps=12, samples=0,
        learning_rate=2e-2, lora=LoraOptions(rank=4, alpha=8),
    )  # fmt: skip
    result = run_job(
        tiny_llama, make_rows(8), (), preferences=pairs(16), options=options,
        work=tmp_path / "a", resume=False, progress=Silent(),
    )  # fmt: skip
    losses = result.fit.losses()
    assert losses[0][1] == pytest.approx(0.6931, abs=1e-3) and losses[-1][1] < 0.65
    assert result.metrics["preference_accuracy"] > 0.9
    assert result.switches["objective"] == "dpo"
    # What is counted is what was trained on.
    counts = result.metrics
    assert (counts["train_examples"], counts["preference_pairs"]) == (13, 13)
    assert (counts["validation_examples"], counts["too_long"]) == (0, 0)
    assert counts["completion_tokens_per_epoch"] == 13 * 2 * 5
    with pytest.raises(TrainingError, match="needs preference pairs"):
        run_job(
            tiny_llama, make_rows(8), (), options=replace(options, max_steps=1),
            work=tmp_path / "b", resume=False, progress=Silent(),
        )  # fmt: skip


def test_long_pairs_are_counted_and_long_rows_stop_nothing(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Rows without an answer are the longest of their prompt: 124 tokens.
    options = JobOptions(
        device="cpu", dtype="float32", objective="dpo", max_steps=1, samples=0, max_tokens=120,
    )  # fmt: skip
    unanswerable = [row for row in make_rows(20) if not row["answerable"]][1:2]
    result = run_job(
        tiny_llama, unanswerable, (), preferences=pairs(16), options=options,
        work=tmp_path / "a", resume=False, progress=Silent(),
    )  # fmt: skip
    assert 0 < result.metrics["train_examples"] == 13 - result.metrics["too_long"] < 13
    with pytest.raises(TrainingError, match="None of 13 preference pairs is at most 64 tokens"):
        run_job(
            tiny_llama, make_rows(8), (), preferences=pairs(16),
            options=replace(options, max_tokens=64),
            work=tmp_path / "b", resume=False, progress=Silent(),
        )  # fmt: skip


def test_pairs_that_do_not_fit_into_memory_are_halved(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.forward

    def hungry(self: Any, input_ids: Any = None, **options: Any) -> Any:
        if self.training and len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", hungry)
    options = JobOptions(
        device="cpu", dtype="float32", objective="dpo", batch_size=4, max_steps=2, samples=0,
        auto_batch_size=True,
    )  # fmt: skip
    result = run_job(
        tiny_llama, make_rows(8), (), preferences=pairs(16), options=options, work=tmp_path,
        resume=False, progress=Silent(),
    )  # fmt: skip
    assert (result.switches["micro_rows"], result.switches["accumulation"]) == (1, 4)
