from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rag_fti.errors import ConfigError, TrainingError
from rag_fti.progress import Progress, Silent
from rag_fti.training.examples import Example
from rag_fti.training.fitting import (
    OutOfMemory,
    checkpoints,
    is_out_of_memory,
    plan_schedule,
)
from rag_fti.training.job import JobOptions, JobResult, LoraOptions, run_job
from rag_fti.training.preparing import prepare
from rag_fti.training.probing import Capabilities
from tests.conftest import REPOSITORY
from tests.training.tiny import LIBRARY_WARNINGS, build_llama, make_rows

pytestmark = LIBRARY_WARNINGS

OPTIONS = JobOptions(
    device="cpu",
    dtype="float32",
    batch_size=4,
    max_steps=12,
    learning_rate=5e-3,
    evaluations_per_epoch=2,
    early_stopping=0,
    samples=0,
    packing=True,
    lora=LoraOptions(rank=4, alpha=8),
)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def train(
    base: Path,
    work: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    held: int = 6,
    **changes: Any,
) -> JobResult:
    return run_job(
        base,
        make_rows(24),
        make_rows(held, 1000),
        options=replace(OPTIONS, **changes),
        work=work,
        resume=resume,
        progress=progress or Silent(),
    )


PROGRAM = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tests.training import test_fitting as t
base, work, slow = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "slow"
if slow:
    import time
    from rag_fti.training import batches
    real = batches.PackedBatches.__call__
    def slowed(self, rows):
        time.sleep(0.5)
        return real(self, rows)
    batches.PackedBatches.__call__ = slowed
result = t.train(base, work, resume=True)
print(json.dumps(result.fit.losses()))
"""


def run_program(base: Path, work: Path, speed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(base), str(work), speed],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_a_killed_run_resumes_to_the_same_losses(tiny_llama: Path, tmp_path: Path) -> None:
    undisturbed = train(tiny_llama, tmp_path / "a").fit.losses()
    process = run_program(tiny_llama, tmp_path / "b", "slow")
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "b") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = checkpoints(tmp_path / "b")
    assert found and int(found[-1].name.rpartition("-")[2]) < 12
    # A checkpoint that the kill left half written is not gone on from.
    broken = tmp_path / "b" / "checkpoint-11"
    broken.mkdir()
    (broken / "adapter_model.safetensors").write_bytes(b"half")
    output, _ = run_program(tiny_llama, tmp_path / "b", "fast").communicate(timeout=200)
    resumed = [tuple(item) for item in json.loads(output)]
    assert [step for step, _ in resumed] == list(range(1, 13))
    for (_, one), (_, other) in zip(undisturbed, resumed, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_the_best_weights_are_kept_and_training_stops_early(
    tiny_llama: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 400, "learning_rate": 5e-2, "early_stopping": 2, "epochs": 50}
    result = train(tiny_llama, tmp_path, held=16, **changes)
    losses = dict(result.fit.validation_losses())
    assert result.fit.stopped_early and result.fit.steps < 400
    assert result.fit.best_step == min(losses, key=lambda step: losses[step])
    assert len([step for step in losses if step > result.fit.best_step]) == 2


def test_a_few_validation_rows_choose_no_weights(tiny_llama: Path, tmp_path: Path) -> None:
    changes = {"max_steps": 40, "learning_rate": 5e-2, "early_stopping": 1, "epochs": 50}
    result = train(tiny_llama, tmp_path, held=15, **changes)
    losses = dict(result.fit.validation_losses())
    assert (result.fit.steps, result.fit.best_step, result.fit.stopped_early) == (40, 40, False)
    assert result.metrics["validation_loss"] == round(losses[40], 4)


@pytest.mark.parametrize(
    "changes",
    [{"max_steps": 10}, {"max_steps": 400, "learning_rate": 5e-2, "early_stopping": 1}],
    ids=["all steps", "early"],
)
def test_a_run_that_was_killed_after_its_last_step_is_not_trained_further(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ended = train(tiny_llama, tmp_path, epochs=50, held=16, **changes)
    again = train(tiny_llama, tmp_path, epochs=50, held=16, resume=True, **changes)
    assert again.fit.losses() == ended.fit.losses()
    assert again.fit.validation_losses() == ended.fit.validation_losses()
    assert again.fit.steps == ended.fit.steps and again.fit.best_step == ended.fit.best_step
    assert again.fit.stopped_early == ended.fit.stopped_early
    for (name, one), (_, other) in zip(
        ended.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_last_weights_are_judged_before_the_best_are_chosen(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # 6 steps make a pass, and a validation is due every 3: the 11th is between two of them.
    result = train(tiny_llama, tmp_path, max_steps=11, packing=False)
    losses = dict(result.fit.validation_losses())
    assert list(losses) == [0, 3, 6, 9, 11]
    assert losses.pop(0) == pytest.approx(result.metrics["validation_loss_before"], abs=1e-4)
    assert result.fit.best_step == min(losses, key=lambda step: losses[step])


def test_a_loss_that_is_no_number_stops_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    from rag_fti.models import causal

    location = tmp_path / "broken"
    model = causal.load_causal_lm(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    model.save_pretrained(str(location))
    causal.load_tokenizer(tiny_llama).save_pretrained(str(location))
    with pytest.raises(TrainingError, match="before training"):
        train(location, tmp_path / "work", packing=False)
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        train(location, tmp_path / "unjudged", packing=False, held=0)


def test_memory_that_runs_out_ends_in_advice_or_a_smaller_batch(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    real = LlamaForCausalLM.forward

    def hungry(self: Any, input_ids: Any = None, **options: Any) -> Any:
        if self.training and len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", hungry)
    with pytest.raises(OutOfMemory) as caught:
        train(tiny_llama, tmp_path / "a", packing=False)
    assert "auto_batch_size" in caught.value.next_step
    result = train(tiny_llama, tmp_path / "b", packing=False, auto_batch_size=True)
    assert result.fit.steps == 12 and result.switches["micro_rows"] == 1
    assert result.switches["accumulation"] == 4
    # A run that goes on does so with the rows that fitted: it tries no more, and loses no step.
    shutil.rmtree(tmp_path / "b" / "checkpoint-12")
    (last,) = (tmp_path / "b").glob("checkpoint-*")
    notes = Notes()
    again = train(
        tiny_llama, tmp_path / "b", packing=False, auto_batch_size=True, resume=True,
        progress=notes,
    )  # fmt: skip
    assert not [line for line in notes.lines if "Out of memory" in line]
    assert again.fit.steps_timed == 12 - int(last.name.rpartition("-")[2]) - 1
    assert again.fit.losses() == result.fit.losses()
    assert again.switches["micro_rows"] == 1


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.slow
def test_gradients_add_up_the_same_in_small_steps(tiny_llama: Path, tmp_path: Path) -> None:
    whole = train(tiny_llama, tmp_path / "a", packing=False, evaluations_per_epoch=0)
    parts = train(
        tiny_llama, tmp_path / "b", packing=False, micro_batch_size=2, evaluations_per_epoch=0
    )
    assert parts.switches["accumulation"] == 2
    assert len(whole.fit.losses()) == len(parts.fit.losses()) == 12


@pytest.mark.parametrize(
    "lora",
    [
        LoraOptions(rank=4, dora=True),
        LoraOptions(rank=4, last_layers=1),
        pytest.param(LoraOptions(rank=4, rslora=True), marks=pytest.mark.slow),
        pytest.param(LoraOptions(rank=4, targets=("q_proj", "v_proj")), marks=pytest.mark.slow),
    ],
)
def test_adapter_variants_train(tiny_llama: Path, tmp_path: Path, lora: LoraOptions) -> None:
    result = train(tiny_llama, tmp_path, lora=lora, max_steps=3, evaluations_per_epoch=0)
    names = [name for name, p in result.model.named_parameters() if p.requires_grad]
    assert names and len(result.fit.losses()) == 3
    if lora.last_layers:
        assert all(".layers.1." in name for name in names)
    if lora.dora:
        assert any("magnitude" in name for name in names)


def test_gradient_checkpointing_changes_no_number(tiny_llama: Path, tmp_path: Path) -> None:
    plain = train(tiny_llama, tmp_path / "a", max_steps=3, evaluations_per_epoch=0)
    saved = train(
        tiny_llama,
        tmp_path / "b",
        max_steps=3,
        evaluations_per_epoch=0,
        gradient_checkpointing=True,
    )
    for (_, one), (_, other) in zip(plain.fit.losses(), saved.fit.losses(), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_options_that_do_not_fit_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit the base model"):
        train(tiny_llama, tmp_path, lora=LoraOptions(targets=("no_such_module",)))
    with pytest.raises(ConfigError, match="needs bitsandbytes and a CUDA GPU"):
        train(tiny_llama, tmp_path, quantize="4bit")
    with pytest.raises(ConfigError, match="liger needs a CUDA GPU"):
        train(tiny_llama, tmp_path, liger=True)
    with pytest.raises(ConfigError, match="needs the package mlflow"):
        train(tiny_llama, tmp_path, trackers=("mlflow",))
    with pytest.raises(ConfigError, match="float16 needs a CUDA GPU"):
        train(tiny_llama, tmp_path, dtype="float16")
    with pytest.raises(TrainingError, match="at most 64 tokens long"):
        train(tiny_llama, tmp_path, max_tokens=64)


def adapted(base: Path, **changes: Any) -> Any:
    from rag_fti.models.causal import load_causal_lm
    from rag_fti.training.adapter import add_adapter

    options: dict[str, Any] = {
        "rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear", "last_layers": 0,
        "dora": False, "rslora": False, "quantized": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return add_adapter(load_causal_lm(base), **{**options, **changes})


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens"])
def test_only_embeddings_that_are_not_the_head_are_adapted(
    tiny_llama: Path, tmp_path: Path, target: str
) -> None:
    tied = build_llama(tmp_path, family="qwen3")
    with pytest.raises(ConfigError, match="both as input embedding and as head"):
        adapted(tied, targets=("q_proj", target))
    assert adapted(tied, targets=("q_proj",)) and adapted(tiny_llama, targets=(target,))


def test_the_last_layers_of_gpt2_are_adapted(tiny_llama: Path, tmp_path: Path) -> None:
    from rag_fti.training.throughput import flops_per_token

    model = adapted(build_llama(tmp_path, family="gpt2"), last_layers=1)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(".h.1." in name for name in names)
    block = model.base_model.model.transformer.h[0]
    assert flops_per_token(model, length=0) > 8 * block.mlp.c_fc.weight.numel()
    with pytest.raises(ConfigError, match="no linear layer of the base model; it has: down_proj"):
        adapted(tiny_llama, last_layers=1, targets=("qproj",))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_examples_beyond_the_models_window_are_left_out(tmp_path: Path, family: str) -> None:
    # Examples have 112 to 140 tokens, their prompts up to 131.
    base, notes = build_llama(tmp_path / "base", family=family, window=128), Notes()
    result = train(base, tmp_path / "work", progress=notes, max_steps=2, samples=6)
    assert (result.metrics["train_examples"], result.metrics["too_long"]) == (17, 8)
    assert len(result.samples) == 5
    assert "the base model takes 128 tokens" in notes.lines[0]
    base = build_llama(tmp_path / "narrow", family=family, window=64)
    with pytest.raises(TrainingError, match="at most 64 tokens long") as caught:
        train(base, tmp_path / "work")
    assert "longer window" in caught.value.next_step


def test_schedules() -> None:
    plan = plan_schedule(
        rows=100, examples=100, batch_size=16, micro_batch_size=4, epochs=2, max_steps=0,
        evaluations_per_epoch=2,
    )  # fmt: skip
    assert (plan.micro_rows, plan.accumulation, plan.steps_per_epoch) == (4, 4, 7)
    assert plan.steps == 14 and plan.evaluate_every == 3
    uneven = plan_schedule(
        rows=100, examples=100, batch_size=6, micro_batch_size=4, epochs=1, max_steps=0,
        evaluations_per_epoch=0,
    )  # fmt: skip
    assert (uneven.micro_rows, uneven.accumulation, uneven.steps) == (3, 2, 17)
    packed = plan_schedule(
        rows=25, examples=100, batch_size=16, micro_batch_size=0, epochs=1, max_steps=0,
        evaluations_per_epoch=0, processes=2,
    )  # fmt: skip
    assert (packed.rows_per_step, packed.steps, packed.evaluate_every) == (4, 4, 0)


def test_a_small_dataset_is_passed_over_until_there_are_enough_steps() -> None:
    few: dict[str, Any] = {
        "rows": 12, "examples": 12, "batch_size": 16, "micro_batch_size": 4, "epochs": 2,
        "evaluations_per_epoch": 1,
    }  # fmt: skip
    plan = plan_schedule(**few, max_steps=0, min_steps=20)
    # A step is one pass at most: two of them compare like with like.
    assert (plan.rows_per_step, plan.steps, plan.epochs) == (12, 20, 20)
    exact = plan_schedule(**few, max_steps=3, min_steps=20)
    assert (exact.steps, exact.least_steps) == (3, 0)
    many = plan_schedule(**{**few, "rows": 400, "examples": 400}, max_steps=0, min_steps=20)
    assert (many.steps, many.epochs) == (50, 2)


def test_every_step_is_full() -> None:
    examples = [Example(tuple(range(5 + n)), 2) for n in range(17)]
    for steps in (1, 2, 3, 20):
        run = prepare(
            examples, (), capabilities=Capabilities(False, False, ""), packing=False,
            row_tokens=100, pad_token_id=0, batch_size=16, micro_batch_size=4, epochs=1,
            max_steps=steps, evaluations_per_epoch=0, seed=0,
        )  # fmt: skip
        assert 0 <= len(run.train) - 16 * steps < 17


def test_added_passes_are_told_and_not_cut_short(tiny_llama: Path, tmp_path: Path) -> None:
    notes = Notes()
    options = replace(
        OPTIONS, batch_size=16, epochs=2, max_steps=0, min_steps=8, learning_rate=0.2,
        early_stopping=1, evaluations_per_epoch=1,
    )  # fmt: skip
    result = run_job(
        tiny_llama, make_rows(12), make_rows(1, 1000), options=options, work=tmp_path,
        resume=False, progress=notes,
    )  # fmt: skip
    assert result.fit.steps >= 8 and result.switches["epochs"] >= 8
    (told,) = [line for line in notes.lines if "min_steps" in line]
    assert "training.epochs=2 would be 2 optimizer steps" in told
    assert result.switches["steps_note"] == told
