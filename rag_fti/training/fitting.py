"""The run itself: steps, checkpoints, resume, early stopping, and the ways it can fail.

transformers' Trainer does the stepping. Around it stand what a job on a rented machine needs:
checkpoints that are known to be complete, a run that goes on after ``kill -9`` as if nothing had
happened, a stop at the first loss that is no number, and advice instead of a trace when memory
runs out.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from rag_fti.errors import TrainingError
from rag_fti.files import write_json_atomic
from rag_fti.progress import Progress
from rag_fti.training.batches import Row
from rag_fti.training.throughput import peak_memory_bytes

logger = logging.getLogger(__name__)

Loss = Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
"""Mean loss of a model on a batch."""

COMPLETE = "complete.json"
"""Written into a checkpoint when everything else of it is on disk."""


@dataclass(frozen=True)
class Schedule:
    """How many examples and rows make a step, and how many steps a run."""

    micro_rows: int
    """Rows per forward pass and process."""
    accumulation: int
    """Forward passes per optimizer step."""
    steps: int
    steps_per_epoch: int
    """Steps of one pass over the rows."""
    evaluate_every: int
    """Steps between validation runs; 0 for never."""
    least_steps: int
    """Steps before which a run does not stop early."""
    epochs: float
    """Passes over the rows that ``steps`` make."""

    @property
    def rows_per_step(self) -> int:
        """Rows per optimizer step and process."""
        return self.micro_rows * self.accumulation

    @property
    def passes(self) -> int:
        """Passes to lay out so that every step is full.

        A last step of one left-over row would move the weights, and the last loss, by that row.
        """
        return math.ceil(self.epochs)


def plan_schedule(
    *,
    rows: int,
    examples: int,
    batch_size: int,
    micro_batch_size: int,
    epochs: float,
    max_steps: int,
    evaluations_per_epoch: int,
    min_steps: int = 1,
    processes: int = 1,
) -> Schedule:
    """Turn a batch size in examples into rows and steps.

    A step takes at most one pass over the rows.

    Args:
        rows: Rows of the training split after packing.
        examples: Examples in them.
        batch_size: Examples per optimizer step and process.
        micro_batch_size: Examples per forward pass; 0 for all of a step.
        epochs: Passes over the rows.
        max_steps: Steps; 0 derives them from ``epochs``.
        evaluations_per_epoch: Validation runs per pass; 0 for none.
        min_steps: Least steps where they are derived from ``epochs``.
        processes: Processes that share the rows.
    """
    per_row = examples / rows
    rows_per_step = max(1, min(round(batch_size / per_row), math.ceil(rows / processes)))
    wanted = max(1, round((micro_batch_size or batch_size) / per_row))
    micro = min(wanted, rows_per_step)
    accumulation = math.ceil(rows_per_step / micro)
    micro = math.ceil(rows_per_step / accumulation)  # 2 times 3 rows rather than 4 and 4 for 6
    per_step = micro * accumulation * processes
    per_epoch = math.ceil(rows / per_step)
    steps = max_steps or max(min_steps, math.ceil(per_epoch * epochs))
    return Schedule(
        micro_rows=micro,
        accumulation=accumulation,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluate_every=max(1, per_epoch // evaluations_per_epoch) if evaluations_per_epoch else 0,
        least_steps=0 if max_steps else min_steps,
        epochs=steps * per_step / rows,
    )


@dataclass(frozen=True)
class FitOptions:
    """Everything about a run but model and data."""

    learning_rate: float
    warmup_share: float
    weight_decay: float
    early_stopping: int
    checkpoint_minutes: float
    seed: int
    device: str
    bf16: bool
    fp16: bool
    compile: bool
    liger: bool
    trackers: tuple[str, ...] = ()
    keep_best: bool = True
    """Put the weights of the least validation loss back; off where few rows would decide."""


@dataclass(frozen=True)
class FitResult:
    """What a run measured."""

    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per logged step (``loss``, ``grad_norm``, ``learning_rate``) and per validation
    (``eval_loss``), each with ``step`` and ``epoch``; step 0 is the model before training."""
    best_step: int = 0
    """Step whose weights the model has now: that of the least validation loss, or the last."""
    stopped_early: bool = False
    seconds: float = 0.0
    """Time spent in steps, without validation, checkpoints and set-up, of this process."""
    steps_timed: int = 0
    tokens_per_second: float = 0.0
    """Prompt and completion tokens, padding left out."""
    padding_share: float = 0.0
    """Share of computed positions that were padding."""

    def losses(self) -> list[tuple[int, float]]:
        """Training loss by step."""
        return [(int(e["step"]), e["loss"]) for e in self.history if "loss" in e]

    def validation_losses(self) -> list[tuple[int, float]]:
        """Validation loss by step, 0 before training."""
        return [(int(e["step"]), e["eval_loss"]) for e in self.history if "eval_loss" in e]


def fit(
    model: Any,
    train: Sequence[Row],
    validation: Sequence[Row],
    *,
    collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]],
    schedule: Schedule,
    options: FitOptions,
    work: Path,
    resume: bool,
    progress: Progress,
    loss: Loss | None = None,
) -> FitResult:
    """Train the adapter of ``model`` in place.

    Args:
        model: A model with trainable parameters.
        train: Rows of all passes over the training split, in the order of training.
        validation: Rows of the validation split; may be empty.
        collate: Makes a batch of rows.
        schedule: Steps and rows per step.
        options: Hyperparameters.
        work: Directory of this run's checkpoints.
        resume: Go on from the last complete checkpoint in ``work``; else start over.
        progress: Receives loss, speed, time left and memory.
        loss: Mean loss of a batch; None takes the one that the model returns.

    Raises:
        TrainingError: If the loss is no number, memory runs out, or a tracker fails.
    """
    from accelerate import PartialState

    processes = PartialState(cpu=options.device == "cpu")
    if processes.is_main_process:
        if not resume:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        remove_incomplete(work)
    processes.wait_for_everyone()
    checkpoint = last_checkpoint(work) if resume else None
    watch = _Watch(options, schedule, work, progress)
    meter = _Meter(collate)
    arguments = _arguments(
        options, schedule, work, evaluates=bool(validation), fresh=checkpoint is None
    )
    trainer = _Trainer(
        loss,
        model=model,
        args=arguments,
        data_collator=meter,
        train_dataset=_Rows(train),
        eval_dataset=_Rows(validation) if validation else None,
        callbacks=[watch, *_tensorboard(options, work)],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    watch.meter = meter
    ended = _ended(checkpoint, schedule, options) if checkpoint else None
    try:
        if checkpoint and ended:  # Trainer would take one more step
            trainer.state = ended
            watch.stopped = ended.global_step < schedule.steps
            _load_adapter(trainer.model, checkpoint)
        else:
            trainer.train(
                resume_from_checkpoint=str(checkpoint) if checkpoint else None,
                # Trainer adds to this list; what a model's configuration names may be a tuple.
                ignore_keys_for_eval=["past_key_values", "cache"],
            )
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(micro_rows=schedule.micro_rows) from error
        raise
    except _tracker_errors(options) as error:
        raise TrainingError(
            f"An experiment tracker failed: {error}",
            next_step="Check MLFLOW_TRACKING_URI, or take mlflow out of training.trackers.",
        ) from error
    # The other processes of a distributed run publish nothing and keep what they have.
    best = (
        watch.restore_best(trainer.model, trainer.state.log_history)
        if processes.is_main_process and options.keep_best
        else 0
    )
    return FitResult(
        steps=trainer.state.global_step,
        history=[dict(entry) for entry in trainer.state.log_history],
        best_step=best or trainer.state.global_step,
        stopped_early=watch.stopped,
        seconds=watch.step_seconds,
        steps_timed=watch.steps_timed,
        tokens_per_second=watch.tokens_per_second,
        padding_share=1 - meter.tokens / meter.positions if meter.positions else 0.0,
    )


class OutOfMemory(TrainingError):
    """A step did not fit into memory."""

    def __init__(self, *, micro_rows: int) -> None:
        super().__init__(
            f"Out of memory with {micro_rows} row(s) per forward pass.",
            next_step="Try, in this order: training.auto_batch_size=true (one process only; "
            "of several, a smaller training.micro_batch_size), "
            "training.gradient_checkpointing=true, a smaller training.max_tokens, "
            "training.quantize=4bit on a GPU, a smaller base model.",
        )
        self.micro_rows = micro_rows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text


def checkpoints(work: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in work.glob("checkpoint-*") if (p / COMPLETE).is_file()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint, or None before there is one."""
    found = checkpoints(work)
    return found[-1] if found else None


def remove_incomplete(work: Path) -> None:
    """Delete what a killed run left half written."""
    for path in work.glob("checkpoint-*"):
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)


def _ended(checkpoint: Path, schedule: Schedule, options: FitOptions) -> TrainerState | None:
    """The state in a checkpoint after which nothing is left to train, else None."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    _, since = _best_evaluation(state.log_history)
    early = 0 < options.early_stopping <= since and state.global_step >= schedule.least_steps
    return state if early or state.global_step >= schedule.steps else None


def _best_evaluation(history: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """Step of the least validation loss, not of before training, and how many came after it."""
    entries = _evaluations(history)
    if not entries:
        return 0, 0
    _, best = min(entries)
    return best, sum(1 for _, step in entries if step > best)


def _evaluations(history: Sequence[Mapping[str, float]]) -> list[tuple[float, int]]:
    """Validation loss and step, without that of before training."""
    found = [(e["eval_loss"], int(e["step"])) for e in history if "eval_loss" in e]
    return [(loss, step) for loss, step in found if step]


def _load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(str(checkpoint / "adapter_model.safetensors")))


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer with a loss that may come from outside."""

    def __init__(self, loss: Loss | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss = loss
        if loss is not None:
            # A mean over the batch: Trainer divides it by the number of batches per step.
            self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if self._loss is None:
            return super().compute_loss(model, inputs, *rest, **options)
        value = self._loss(model, inputs)
        return (value, {"loss": value}) if options.get("return_outputs") else value


class _Rows(torch.utils.data.Dataset[Row]):
    """A sequence of rows in the shape Trainer wants."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Meter:
    """A collator that counts real tokens and computed positions."""

    def __init__(self, collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]) -> None:
        self._collate = collate
        self.tokens = 0
        self.positions = 0

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        batch = self._collate(rows)
        self.tokens += sum(len(example) for row in rows for example in row)
        self.positions += batch["input_ids"].numel()
        return batch


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Progress, checkpoints by time, best weights, early stopping, and the stop at NaN."""

    def __init__(
        self, options: FitOptions, schedule: Schedule, work: Path, progress: Progress
    ) -> None:
        self._options, self._schedule = options, schedule
        self._work, self._progress = work, progress
        self._last_save = self._step_began = time.monotonic()
        self._loss = math.nan
        self._tokens_before = 0
        self._tokens_timed = 0
        self._first_step: int | None = None
        self.meter: _Meter | None = None
        self.stopped = False
        self.step_seconds = 0.0
        self.steps_timed = 0

    @property
    def tokens_per_second(self) -> float:
        return self._tokens_timed / self.step_seconds if self.step_seconds else 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_began = time.monotonic()
        if self._first_step is None:
            self._first_step = state.global_step
        assert self.meter is not None
        self._tokens_before = self.meter.tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.meter is not None
        # The first step warms caches, allocators and compilation up: it is not timed. The data
        # loader runs one batch ahead, hence the mean over all that was collated.
        if state.global_step > (self._first_step or 0) + 1 or state.max_steps == 1:
            self.step_seconds += time.monotonic() - self._step_began
            self.steps_timed += 1
            mean = self.meter.tokens / max(1, state.global_step - (self._first_step or 0))
            self._tokens_timed = round(mean * self.steps_timed)
        due = time.monotonic() - self._last_save >= self._options.checkpoint_minutes * 60
        if due or state.global_step >= state.max_steps:
            control.should_save = True
        left = state.max_steps - state.global_step
        per_step = self.step_seconds / self.steps_timed if self.steps_timed else 0.0
        memory = peak_memory_bytes(self._options.device) / 1e9
        self._progress.update(
            "training",
            state.global_step,
            state.max_steps,
            detail=f"loss {self._loss:.3f}, {self.tokens_per_second:,.0f} tokens/s, "
            f"{left * per_step:.0f} s left, {memory:.1f} GB",
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        for key in ("loss", "eval_loss", "grad_norm"):
            if key in logs and not math.isfinite(logs[key]):
                if not state.global_step:
                    raise TrainingError(
                        f"{key} is {logs[key]} before training; nothing was published.",
                        next_step="The base model gives no finite loss on the validation rows: use "
                        "training.dtype=float32, or another base model.",
                    )
                raise TrainingError(
                    f"{key} is {logs[key]} at step {state.global_step}; nothing was published.",
                    next_step="Lower training.learning_rate, or use training.dtype=float32; "
                    f"complete checkpoints are in {self._work}.",
                )
        self._loss = logs.get("loss", self._loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        if not state.global_step:
            self._progress.note(f"before training: validation loss {metrics['eval_loss']:.4f}")
            return
        best_step, since = _best_evaluation(state.log_history)
        if best_step == state.global_step and state.is_world_process_zero:
            self._store_best(kwargs["model"], state.global_step, metrics["eval_loss"])
        self._progress.note(
            f"step {state.global_step}: validation loss {metrics['eval_loss']:.4f}"
            f"{' (best so far)' if best_step == state.global_step else ''}"
        )
        control.should_save = True
        enough = state.global_step >= self._schedule.least_steps
        if enough and 0 < self._options.early_stopping <= since:
            self.stopped = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last_save = time.monotonic()
        if state.is_world_process_zero:
            folder = self._work / f"checkpoint-{state.global_step}"
            write_json_atomic(folder / COMPLETE, {"step": state.global_step})

    def _store_best(self, model: Any, step: int, loss: float) -> None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        weights = {
            name: value.detach().contiguous().cpu()
            for name, value in get_peft_model_state_dict(model).items()
        }
        target = self._work / "best.safetensors"
        temporary = target.with_suffix(".tmp")
        save_file(weights, str(temporary), metadata={"step": str(step), "loss": str(loss)})
        temporary.replace(target)

    def restore_best(self, model: Any, history: list[dict[str, float]]) -> int:
        """Put the weights with the least validation loss back; their step, 0 if there are none."""
        from peft import set_peft_model_state_dict
        from safetensors import safe_open

        entries = _evaluations(history)
        target = self._work / "best.safetensors"
        if not entries or not target.is_file():
            return 0
        with safe_open(str(target), framework="pt") as stored:
            if int(stored.metadata()["step"]) != min(entries)[1]:
                return 0
            # A peft name holds no adapter name; set_peft_model_state_dict puts it back.
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        set_peft_model_state_dict(model, weights)
        return min(entries)[1]


def _tensorboard(options: FitOptions, work: Path) -> list[TrainerCallback]:
    """Events go beside the checkpoints, which are removed when a run is published."""
    if "tensorboard" not in options.trackers:
        return []
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    # TENSORBOARD_LOGGING_DIR, read by the callback, wins.
    callback.logging_dir = callback.logging_dir or str(work.parent / "tensorboard" / work.name)
    return [callback]


def _tracker_errors(options: FitOptions) -> tuple[type[Exception], ...]:
    if "mlflow" not in options.trackers:
        return ()
    from mlflow.exceptions import MlflowException

    return (MlflowException,)


def _arguments(
    options: FitOptions, schedule: Schedule, work: Path, *, evaluates: bool, fresh: bool
) -> TrainingArguments:
    cuda = options.device == "cuda"
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=schedule.micro_rows,
        per_device_eval_batch_size=schedule.micro_rows,
        gradient_accumulation_steps=schedule.accumulation,
        max_steps=schedule.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(options.warmup_share * schedule.steps),
        weight_decay=options.weight_decay,
        optim="adamw_torch_fused" if cuda else "adamw_torch",
        bf16=options.bf16,
        fp16=options.fp16,
        torch_compile=options.compile,
        use_liger_kernel=options.liger,
        eval_strategy="steps" if evaluates and schedule.evaluate_every else "no",
        # A resumed run has the loss of before training in its history.
        eval_on_start=fresh and evaluates and bool(schedule.evaluate_every),
        eval_steps=schedule.evaluate_every or None,
        prediction_loss_only=True,
        # Saving is decided by _Watch: by time, after validation, and at the end.
        save_strategy="no",
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=options.seed,
        data_seed=options.seed,
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=cuda,
        # Every adapter weight gets a gradient; looking for those without one costs each step.
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        label_names=["labels"],
        disable_tqdm=True,
        run_name=work.name,
        # TensorBoard has its own callback: Trainer would write below the checkpoints.
        report_to=[name for name in options.trackers if name != "tensorboard"] or "none",
    )
    # Several visible GPUs without a launcher: use one. DataParallel would split packed rows.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
