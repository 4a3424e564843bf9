"""The training pipeline."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rag_fti.config.section import Section


class LoraSection(Section):
    """Low-rank adaptation (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the update: ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    targets: str | tuple[str, ...] = "all-linear"
    """Modules that get an adapter; ``all-linear`` is every linear layer but the head."""
    last_layers: Annotated[int, Field(ge=0)] | None = None
    """Adapt only the last layers; 0 adapts all. Layers below need no backward pass. By default 4
    for the embedded model and all for any other."""
    dora: bool = False
    """Weight-decomposed variant (Liu et al. 2024)."""
    rslora: bool = False
    """Rank-stabilised scale ``alpha / sqrt(rank)`` (Kalajdzievski 2023)."""


class TrainingConfig(Section):
    """One fine-tune."""

    dataset: str = "instructions@latest"
    """``name@version``; ``latest`` is the newest complete version."""
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = "assistant"
    """Name in the registry."""
    base_model: str = "embedded"
    """``embedded``, a hub id or a directory."""
    revision: str | None = None
    """Hub revision of the base model."""
    lora: LoraSection = LoraSection()
    """The adapter."""
    quantize: Literal["none", "4bit"] = "none"
    """QLoRA (needs bitsandbytes and a CUDA GPU)."""
    objective: Literal["sft", "dpo"] = "sft"
    """Supervised fine-tuning, or direct preference optimisation on chosen and rejected answers."""
    dpo_beta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """How dearly a departure from the base model is paid in preference optimisation."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Passes over the training split."""
    min_steps: Annotated[int, Field(ge=1)] = 20
    """Least optimizer steps where ``epochs`` says how many: a small dataset is passed over more
    often, and the run does not stop early before. After fewer, the loss tells little of whether
    anything was learnt."""
    max_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps; 0 derives them from ``epochs`` and ``min_steps``."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    """Peak learning rate."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps with a rising rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Examples per optimizer step and process."""
    micro_batch_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Examples per forward pass (gradient accumulation makes up the rest); 0 is the whole batch on
    a GPU and at most 4 on a CPU, which gains nothing from more."""
    auto_batch_size: bool = False
    """Halve ``micro_batch_size`` until a step fits into memory; one process only."""
    max_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 2048
    """Longest example, and longest packed row; longer examples are left out and counted."""
    packing: bool | Literal["auto"] = "auto"
    """Put several examples into one row without letting them see one another, where the model
    supports it. ``auto`` does so on a GPU; a CPU is faster with batches of similar lengths."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    compile: bool = False
    """torch.compile the model."""
    liger: bool = False
    """Liger kernels, where installed and supported."""
    early_stopping: Annotated[int, Field(ge=0)] = 3
    """Evaluations without improvement before stopping; 0 never stops early."""
    evaluations_per_epoch: Annotated[int, Field(ge=0, le=1000)] = 1
    """Validation runs per epoch."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Longest time between checkpoints."""
    seed: int = 17
    """Seed of everything random."""
    merge: bool = False
    """Also store merged full weights."""
    samples: Annotated[int, Field(ge=0, le=100)] = 4
    """Validation questions that are answered before and after, for the report."""
    max_false_abstention: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The version is calibrated to abstain so readily that most validation questions are replied
    to rightly, or, where it has no abstention token, to withhold its least confident answers: in
    both cases so that at most this share of the answerable ones goes unanswered. With fewer than
    16 unanswerable ones the model's own abstentions stand."""
    trackers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Experiment trackers to report to."""
