"""One fine-tune on this machine: load, prepare, fit within memory, measure."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rag_fti.errors import ConfigError, TrainingError
from rag_fti.files import write_json_atomic
from rag_fti.models.causal import EMBEDDED, load_causal_lm, load_tokenizer
from rag_fti.models.hardware import pick_device, pick_dtype
from rag_fti.models.local import context_window
from rag_fti.progress import Progress
from rag_fti.training.adapter import add_adapter, parameter_counts, quantization
from rag_fti.training.batches import Row
from rag_fti.training.examples import EncodedRows, encode_rows, end_token, rows_with_room
from rag_fti.training.fitting import (
    FitOptions,
    FitResult,
    Loss,
    OutOfMemory,
    Schedule,
    fit,
    plan_schedule,
)
from rag_fti.training.packing import padded_order
from rag_fti.training.preferences import (
    PairBatches,
    encode_pairs,
    preference_accuracy,
    preference_loss,
)
from rag_fti.training.preparing import PreparedRun, describe, prepare
from rag_fti.training.probing import Capabilities, probe
from rag_fti.training.reporting import Sample
from rag_fti.training.samples import generate_samples, sample_rows
from rag_fti.training.throughput import (
    device_name,
    flops_per_token,
    peak_flops,
    peak_memory_bytes,
)

if TYPE_CHECKING:
    from rag_fti.config.training import TrainingConfig

logger = logging.getLogger(__name__)

_CPU_ROWS = 4
_EMBEDDED_LAYERS = 4
FEW_VALIDATION_ROWS = 16
"""Fewer say more about themselves than about a model: they stop no run and choose no weights."""
_FITS = "fits.json"
"""Beside the checkpoints: the examples per forward pass that fit into memory."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LoraOptions:
    """See :func:`rag_fti.training.adapter.add_adapter`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    last_layers: int = 0
    dora: bool = False
    rslora: bool = False


@dataclass(frozen=True)
class JobOptions:
    """Hyperparameters and switches; meanings and ranges as in the configuration."""

    lora: LoraOptions = LoraOptions()
    objective: str = "sft"
    dpo_beta: float = 0.1
    quantize: str = "none"
    epochs: float = 3.0
    min_steps: int = 1
    max_steps: int = 0
    learning_rate: float = 5e-4
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    batch_size: int = 16
    micro_batch_size: int = 0
    auto_batch_size: bool = False
    max_tokens: int = 2048
    packing: bool | str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    liger: bool = False
    early_stopping: int = 3
    evaluations_per_epoch: int = 1
    checkpoint_minutes: float = 5.0
    seed: int = 17
    samples: int = 4
    trackers: tuple[str, ...] = ()


def configured_options(config: TrainingConfig, *, base_reference: str) -> JobOptions:
    """A configuration section as options.

    Of the embedded base model only the last layers are trained where nothing is said of them.

    Args:
        config: The section.
        base_reference: What the base model is called; that of a copy is its original's.
    """
    lora = config.lora.model_dump()
    if lora["last_layers"] is None:
        lora["last_layers"] = _EMBEDDED_LAYERS if base_reference == EMBEDDED else 0
    shared = {
        name: getattr(config, name) for name in JobOptions.__dataclass_fields__ if name != "lora"
    }
    return JobOptions(lora=LoraOptions(**lora), **shared)


@dataclass
class JobResult:
    """A trained model and what was measured on the way."""

    model: Any
    tokenizer: Any
    fit: FitResult
    metrics: dict[str, Any]
    switches: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)


def run_job(
    base: Path,
    train: Rows,
    validation: Rows,
    *,
    options: JobOptions,
    work: Path,
    resume: bool,
    progress: Progress,
    preferences: Rows = (),
) -> JobResult:
    """Fine-tune a base model.

    Args:
        base: Directory of the base model.
        train: Rows of the training split.
        validation: Rows of the validation split; may be empty.
        options: Hyperparameters and switches.
        work: Directory for checkpoints.
        resume: Go on from the last complete checkpoint.
        progress: Receives loss, speed and time left.
        preferences: Rows with ``prompt``, ``chosen`` and ``rejected``; what ``objective="dpo"``
            trains on.

    Raises:
        TrainingError: If nothing is left to train on, the loss is no number, or memory runs out.
        ConfigError: If an option does not fit this machine or model.
    """
    from transformers import set_seed

    device = pick_device(options.device)
    _require_packages(options, device)
    _use_own_gpu(device)
    dtype = pick_dtype(options.dtype, device)
    if dtype == torch.float16 and device != "cuda":
        raise ConfigError(
            f"training.dtype=float16 needs a CUDA GPU; this runs on {device}.",
            next_step="Set training.dtype=auto.",
        )
    set_seed(options.seed)
    tokenizer = load_tokenizer(base)
    end = end_token(tokenizer)
    model = _load_model(base, options, device, dtype)
    window = context_window(model, tokenizer)
    advice = "Raise training.max_tokens"
    if window < options.max_tokens:
        advice = "Train a base model with a longer window"
        progress.note(
            f"the base model takes {window} tokens: longer examples are left out, whatever "
            f"training.max_tokens={options.max_tokens} says"
        )
        options = replace(options, max_tokens=window)
    pairs: list[Row] = []
    if options.objective == "dpo":
        if not preferences:
            raise TrainingError(
                "training.objective=dpo needs preference pairs, and the dataset has none.",
                next_step="Build a dataset with the feedback generator once answers were "
                "corrected by users, or train with training.objective=sft.",
            )
        pairs, too_long = encode_pairs(
            preferences, tokenizer, end_token_id=end, max_tokens=options.max_tokens
        )
        # There are too few pairs to hold some back for validation.
        data = EncodedRows(tuple(chain.from_iterable(pairs)), too_long)
        held = EncodedRows((), 0)
    else:
        encode = _encoder(tokenizer, end, options.max_tokens)
        data, held = encode(train), encode(validation)
    if not data.examples:
        rows = "preference pairs" if options.objective == "dpo" else "training rows"
        raise TrainingError(
            f"None of {data.too_long} {rows} is at most {options.max_tokens} tokens long; "
            f"the base model takes {window}.",
            next_step=f"{advice}, or build the dataset with fewer passages.",
        )
    autocast = torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)
    with autocast:
        capabilities = probe(model, data.examples, pad_token_id=tokenizer.pad_token_id)
    chosen = sample_rows(validation or train, count=options.samples) if options.samples else []
    chosen = rows_with_room(chosen, tokenizer, window=window)
    before = generate_samples(model, tokenizer, chosen, adapted=False)
    lay_out = (
        partial(_pair_run, pairs, tokenizer.pad_token_id, options)
        if pairs
        else partial(
            _example_run, data, held, capabilities, tokenizer.pad_token_id, options, device
        )
    )
    most = options.batch_size if device == "cuda" else min(_CPU_ROWS, options.batch_size)
    run, result = _fit_within_memory(
        model,
        lay_out,
        options,
        _fit_options(options, device, dtype, held=len(held.examples)),
        # A pair is two rows.
        micro=options.micro_batch_size or (max(1, most // 2) if pairs else most),
        loss=preference_loss(options.dpo_beta) if pairs else None,
        work=work,
        resume=resume,
        progress=progress,
    )
    after = generate_samples(model, tokenizer, chosen, adapted=True)
    trainable, total = parameter_counts(model)
    mean_length = data.tokens / len(data.examples)
    peak = peak_flops(device)
    per_token = flops_per_token(model, length=mean_length)
    losses = result.losses()
    validations = dict(result.validation_losses())
    validated, untrained = validations.get(result.best_step), validations.get(0)
    metrics: dict[str, Any] = {
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped_early": result.stopped_early,
        "train_loss_first": round(losses[0][1], 4) if losses else None,
        "train_loss_last": round(losses[-1][1], 4) if losses else None,
        "validation_loss_before": None if untrained is None else round(untrained, 4),
        "validation_loss": None if validated is None else round(validated, 4),
        "train_examples": len(pairs or data.examples),
        "validation_examples": len(held.examples),
        "too_long": data.too_long + held.too_long,
        "tokens_per_epoch": data.tokens,
        "completion_tokens_per_epoch": data.completion_tokens,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "padding_share": round(result.padding_share, 4),
        "flops_per_token": per_token,
        "mfu": round(per_token * result.tokens_per_second / peak, 4) if peak else None,
        "peak_memory_bytes": peak_memory_bytes(device),
        "trainable_parameters": trainable,
        "parameters": total,
        "train_seconds": round(result.seconds, 2),
    }
    if pairs:
        metrics["preference_pairs"] = len(pairs)
        metrics["preference_accuracy"] = round(
            preference_accuracy(model, pairs, pad_token_id=tokenizer.pad_token_id), 4
        )
    switches = describe(
        run,
        capabilities,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        attention=getattr(model.config, "_attn_implementation", "own"),
        gradient_checkpointing=options.gradient_checkpointing,
        compile=options.compile,
        liger=options.liger,
        quantize=options.quantize,
        objective=options.objective,
        steps_note=_added_passes(run.schedule, options),
    )
    samples = [
        Sample(row["question"], row["messages"][-1]["content"], old, new)
        for row, old, new in zip(chosen, before, after, strict=True)
    ]
    return JobResult(model, tokenizer, result, metrics, switches, samples)


def _encoder(tokenizer: Any, end: int, max_tokens: int) -> Callable[[Rows], EncodedRows]:
    return lambda rows: encode_rows(rows, tokenizer, end_token_id=end, max_tokens=max_tokens)


def _load_model(base: Path, options: JobOptions, device: str, dtype: torch.dtype) -> Any:
    # On a GPU the frozen weights are kept in the narrow type, the adapter in float32. On a CPU
    # autocast from float32 weights is as fast and keeps the base exact.
    model = load_causal_lm(
        base,
        device=device,
        dtype=dtype if device == "cuda" else torch.float32,
        trainable=True,
        quantization=quantization(options.quantize, device=device),
    )
    # A cache would make transformers take packed rows for one long sequence.
    model.config.use_cache = False
    lora = options.lora
    return add_adapter(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        last_layers=lora.last_layers,
        dora=lora.dora,
        rslora=lora.rslora,
        quantized=options.quantize != "none",
        gradient_checkpointing=options.gradient_checkpointing,
    )


def _fit_within_memory(
    model: Any,
    lay_out: Callable[[int], PreparedRun],
    options: JobOptions,
    fit_options: FitOptions,
    *,
    micro: int,
    loss: Loss | None,
    work: Path,
    resume: bool,
    progress: Progress,
) -> tuple[PreparedRun, FitResult]:
    """Fit; with ``auto_batch_size``, start over with half the rows whenever memory runs out.

    Only where one process trains: of several, the others wait for the one that ran out. What
    fitted is kept beside the checkpoints: a resumed run has the same order of the examples.

    Args:
        model: A model with an adapter.
        lay_out: Makes the run for so many rows per forward pass.
        options: Of the job.
        fit_options: Hyperparameters.
        micro: Rows per forward pass to begin with.
        loss: See :func:`rag_fti.training.fitting.fit`.
        work: Directory for checkpoints.
        resume: Go on from the last complete checkpoint.
        progress: Receives progress.
    """
    initial = {
        name: value.detach().cpu().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }
    found = work / _FITS
    if resume and options.auto_batch_size and found.is_file():
        micro = int(json.loads(found.read_text(encoding="utf-8"))["micro_batch_size"])
    while True:
        run = lay_out(micro)
        if note := _added_passes(run.schedule, options):
            progress.note(note)
        try:
            return run, fit(
                model,
                run.train,
                run.validation,
                collate=run.collate,
                schedule=run.schedule,
                options=fit_options,
                work=work,
                resume=resume,
                progress=progress,
                loss=loss,
            )
        except OutOfMemory as error:
            if not options.auto_batch_size or error.micro_rows == 1 or _processes() > 1:
                raise
            micro = max(1, micro // 2)
        shutil.rmtree(work)  # checkpoints belong to another order of the examples
        write_json_atomic(found, {"micro_batch_size": micro})
        resume = True  # keeps what was found; there is nothing else to go on from
        progress.note(f"Out of memory: starting over with {micro} examples per forward pass.")
        _start_over(model, initial, fit_options.device)


def _example_run(
    data: EncodedRows,
    held: EncodedRows,
    capabilities: Capabilities,
    pad_token_id: int,
    options: JobOptions,
    device: str,
    micro: int,
) -> PreparedRun:
    return prepare(
        data.examples,
        held.examples,
        capabilities=capabilities,
        packing=device == "cuda" if options.packing == "auto" else bool(options.packing),
        row_tokens=options.max_tokens,
        pad_token_id=pad_token_id,
        batch_size=options.batch_size,
        micro_batch_size=micro,
        epochs=options.epochs,
        min_steps=options.min_steps,
        max_steps=options.max_steps,
        evaluations_per_epoch=options.evaluations_per_epoch if held.examples else 0,
        seed=options.seed,
        processes=_processes(),
    )


def _pair_run(pairs: list[Row], pad_token_id: int, options: JobOptions, micro: int) -> PreparedRun:
    schedule = plan_schedule(
        rows=len(pairs),
        examples=len(pairs),
        batch_size=options.batch_size,
        micro_batch_size=micro,
        epochs=options.epochs,
        min_steps=options.min_steps,
        max_steps=options.max_steps,
        evaluations_per_epoch=0,
        processes=_processes(),
    )
    lengths = [max(map(len, pair)) for pair in pairs]
    order = [
        index
        for number in range(schedule.passes)
        for (index,) in padded_order(lengths, batch=schedule.micro_rows, seed=options.seed + number)
    ]
    return PreparedRun(
        [pairs[n] for n in order], [], PairBatches(pad_token_id), schedule, packed=False
    )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _added_passes(schedule: Schedule, options: JobOptions) -> str:
    """Why a run has more passes than configured; empty if it has not."""
    configured = math.ceil(schedule.steps_per_epoch * options.epochs)
    if options.max_steps or configured >= schedule.steps:
        return ""
    return (
        f"a small dataset: training.epochs={options.epochs:g} would be {configured} optimizer "
        f"steps, training.min_steps makes it {schedule.steps} in {schedule.epochs:.0f} passes"
    )


def _start_over(model: Any, initial: Mapping[str, torch.Tensor], device: str) -> None:
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in initial:
                value.copy_(initial[name])
    if device == "cuda":
        torch.cuda.empty_cache()


def _fit_options(options: JobOptions, device: str, dtype: torch.dtype, *, held: int) -> FitOptions:
    # Which weights are best would be decided by which rows these are.
    few = held < FEW_VALIDATION_ROWS
    return FitOptions(
        learning_rate=options.learning_rate,
        warmup_share=options.warmup_share,
        weight_decay=options.weight_decay,
        early_stopping=0 if few else options.early_stopping,
        keep_best=not few,
        checkpoint_minutes=options.checkpoint_minutes,
        seed=options.seed,
        device=device,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        compile=options.compile,
        liger=options.liger,
        trackers=options.trackers,
    )


def _use_own_gpu(device: str) -> None:
    """Under torchrun or accelerate, every process has a GPU of its own."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _require_packages(options: JobOptions, device: str) -> None:
    if options.liger:
        if device != "cuda":
            raise ConfigError(
                f"training.liger needs a CUDA GPU; this runs on {device}.",
                next_step="Set training.liger=false.",
            )
        _require("liger_kernel", "training.liger", "liger-kernel")
    for tracker in options.trackers:
        _require(tracker, f"training.trackers={tracker}", tracker)


def _require(module: str, setting: str, package: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigError(
            f"{setting} needs the package {package}, which is not installed.",
            next_step=f"pip install {package}, or take the setting out.",
        )
