"""The training pipeline: one dataset version and one base model become one registry version.

Runs with the ``train`` extra alone: no feature store, no embedder, no network.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts, ids, prompts
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractReport, ContractRun, Outcome
from rag_fti.datasets import SPLITS, DatasetVersion, open_dataset
from rag_fti.datasets.storage import PREFERENCES
from rag_fti.errors import ContractViolation, DatasetError, IncompatibleArtifact
from rag_fti.progress import Progress, Silent
from rag_fti.registry import ModelVersion, Registry
from rag_fti.roots import datasets_root, open_registry
from rag_fti.schemas import field_table, instructions_schema

if TYPE_CHECKING:
    from rag_fti.evaluation.calibration import Calibration
    from rag_fti.models.causal import BaseModel
    from rag_fti.training.job import JobResult

PIPELINE = "training"
_COMPARED_ROWS = 64
"""Training rows whose mean loss stands for a run's start and its end."""
_CALIBRATION_ROWS = 400
_LEAST_UNANSWERABLE = 16
"""Validation questions without an answer, below which the model's own abstentions stand."""


def _finite_loss(facts: Mapping[str, Any]) -> Outcome:
    value = facts["last_loss"]
    ok = value is not None and value == value and abs(value) != float("inf")
    return Outcome(ok, value, "a finite number")


def _something_learnt(facts: Mapping[str, Any]) -> Outcome:
    first, reached = facts["first_loss"], facts["reached_loss"]
    # A little more is no sign of anything: model validation judges by answers.
    ok = reached is None or reached <= first * 1.05 + 0.05
    return Outcome(ok, reached, f"about the loss before training, {first}, or less")


CONTRACT = Contract(
    pipeline=PIPELINE,
    purpose="Fine-tune a base model on one dataset version and publish it as a registry version.",
    inputs={
        "dataset": field_table(instructions_schema()),
        "base_model": "directory or hub id of a causal language model with safetensors weights",
    },
    outputs={
        "registry version": "PEFT adapter, tokenizer, chat template, card, metrics.json, "
        "contract.json, report.md, loss.png, calibration.json, risk_coverage.png, manifest.json "
        "written last",
        "alias": "challenger",
    },
    preconditions=(
        Check(
            "dataset intact",
            "every file of the dataset has the digest its manifest states",
            contracts.is_true("dataset_intact"),
            "Build the dataset again, or copy it again.",
        ),
        Check(
            "rows to train on",
            "the training split has at least one row",
            contracts.at_least("train_rows", 1),
            "Build a dataset with more documents or generators.",
        ),
        Check(
            "no leakage",
            "train, validation and test share no document group",
            contracts.equals("shared_groups", 0),
            "Build the dataset again.",
        ),
        Check(
            "same prompts",
            "prompts render for this base model as they did when the dataset was built",
            contracts.is_true("prompts_match"),
            "Build the dataset with the same training.base_model, or train the one it was built "
            "for.",
        ),
    ),
    invariants=(
        Check(
            "loss is a number",
            "no step had a loss that is NaN or infinite",
            _finite_loss,
            "Lower training.learning_rate.",
        ),
    ),
    postconditions=(
        Check(
            "adapter written",
            "the adapter's weights and configuration are on disk",
            contracts.is_true("adapter_written"),
        ),
        Check(
            "something was learnt",
            "the validation loss kept is not above that of before training (of a few validation "
            "rows that says nothing: then the last training loss is not above the first)",
            _something_learnt,
            "Look at the curve, loss.png beside the run's checkpoints in <storage.root>/training: "
            "lower training.learning_rate, or train longer (training.epochs, training.max_steps).",
        ),
    ),
    service_levels=(
        Check("duration", "a run takes at most a day", contracts.at_most("seconds", 86_400)),
        Check(
            "rows used",
            "at most 5 % of the rows are too long",
            contracts.at_most("too_long_share", 0.05),
        ),
    ),
)


@dataclass(frozen=True)
class TrainingSummary:
    """What a run did."""

    run_id: str
    model: str
    version: int | None
    """None for a dry run, and in all but the first process of a distributed run."""
    dataset: str
    metrics: dict[str, Any]
    seconds: float
    tokens_per_second: float
    contract: dict[str, Any]
    path: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The promised keys of ``train --json``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def run(
    settings: Settings,
    *,
    resume: bool = False,
    reuse: bool = False,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    dry_run: bool = False,
) -> TrainingSummary:
    """Run the pipeline.

    Args:
        settings: All settings; ``training`` and ``storage`` count.
        resume: Go on from the last complete checkpoint of the same dataset, base model and
            hyperparameters.
        reuse: When the registry has a version made from just these inputs, return that one.
        progress: Receives progress.
        dry_run: Check the preconditions and say what would be trained.

    Raises:
        ContractViolation: If a check fails; nothing is published then.
        TrainingError: If the run fails.
        DatasetError: If there is no such dataset.
        ModelNotFound: If there is no such base model.
    """
    from rag_fti.models.causal import load_tokenizer, resolve_base_model

    config = settings.training
    run_id = contracts.new_run_id(PIPELINE)
    dataset = open_dataset(datasets_root(settings.storage), config.dataset)
    base = resolve_base_model(config.base_model, revision=config.revision)
    work = _work_directory(settings, dataset, base)
    report_path = settings.storage.reports / PIPELINE / f"{run_id}.json"
    if not _first_process():
        progress = Silent()
        report_path = work.parent / "other-processes" / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=None if dry_run else report_path)
    registry = open_registry(settings.storage)
    _require(contract, dataset, load_tokenizer(base.location).chat_template)

    def summary(
        metrics: Mapping[str, Any], report: ContractReport, version: ModelVersion | None = None
    ) -> TrainingSummary:
        return TrainingSummary(
            run_id=run_id,
            model=config.model_name,
            version=version.version if version else None,
            dataset=dataset.ref,
            metrics=dict(metrics),
            seconds=report.seconds,
            tokens_per_second=metrics.get("tokens_per_second", 0.0),
            contract=report.summary(contract.report_path),
            path=version.location if version else "",
        )

    if reuse and (known := _same_run(registry, config.model_name, work.name)):
        if "challenger" not in registry.aliases(config.model_name):
            # Published, and killed before the alias moved.
            _challenge(registry, known, dataset, run_id, report_path)
        return summary(known.manifest["metrics"], contract.finish({"too_long_share": 0.0}), known)
    if dry_run:
        counts = {f"{split}_rows": rows for split, rows in dataset.manifest["splits"].items()}
        return summary(counts, contract.finish({"too_long_share": 0.0}))

    from rag_fti.training.job import configured_options, run_job
    from rag_fti.training.reporting import draw_losses, write_papers
    from rag_fti.training.saving import save_adapter, save_merged

    progress.note(f"training {config.base_model} on {dataset.ref} ({work.name})")
    left = any(work.rglob("checkpoint-*"))
    if left and not resume:
        progress.note("starting over: checkpoints of a killed run go (--resume goes on from them)")
    elif resume and not left and not reuse:
        progress.note("there is no checkpoint of this run to resume: starting from the beginning")
    result = run_job(
        base.location,
        dataset.rows("train").to_pylist(),
        dataset.rows("validation").to_pylist(),
        preferences=_preferences(dataset),
        options=configured_options(config, base_reference=base.reference),
        work=work,
        resume=resume,
        progress=progress,
    )
    metrics = result.metrics
    rows = metrics["train_examples"] + metrics["validation_examples"]
    ends = ends_of([loss for _, loss in result.fit.losses()], config.batch_size)
    first, reached = compared_losses(metrics, ends=ends, least_steps=config.min_steps)
    facts = {
        "last_loss": metrics["train_loss_last"],
        "too_long_share": metrics["too_long"] / max(1, rows + metrics["too_long"]),
        "first_loss": first,
        "reached_loss": reached,
    }
    contract.hold(facts)
    if not _first_process():
        return summary(metrics, contract.finish(facts))
    draw_losses(
        work / "loss.png",
        train=result.fit.losses(),
        validation=result.fit.validation_losses(),
        best_step=result.fit.best_step,
    )

    staged = work / "model"
    shutil.rmtree(staged, ignore_errors=True)
    save_adapter(
        result.model,
        result.tokenizer,
        staged,
        base_reference=base.reference,
        revision=base.revision,
    )
    facts["adapter_written"] = (staged / "adapter_model.safetensors").is_file() and (
        staged / "adapter_config.json"
    ).is_file()
    contract.ensure(facts)
    report = contract.finish(facts)
    calibration = _calibrate(settings, dataset, result, progress)
    write_papers(
        staged,
        name=config.model_name,
        base=base,
        dataset=dataset,
        result=result,
        calibration=calibration,
        contract=report.to_dict(),
        facts={
            "LoRA": f"rank {config.lora.rank}, alpha {config.lora.alpha:g}, {config.lora.targets}",
            "seed": config.seed,
        },
    )
    if config.merge:
        save_merged(result.model, result.tokenizer, staged / "merged")
    manifest = {
        **_manifest(settings, dataset, base, result),
        "calibration": calibration.to_dict(curve=False),
        "run": work.name,
        "run_id": run_id,
    }
    version = registry.publish(config.model_name, staged, manifest)
    _challenge(registry, version, dataset, run_id, report_path)
    # Nothing is left to resume.
    shutil.rmtree(work)
    return summary(metrics, report, version)


def ends_of(losses: Sequence[float], batch_size: int) -> tuple[float, float]:
    """Mean training loss of the first and of the last few steps, so many that rows do not decide.

    Args:
        losses: Of every step; at least one.
        batch_size: Rows of a step.
    """
    count = max(1, min(len(losses) // 2, math.ceil(_COMPARED_ROWS / batch_size)))
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


def compared_losses(
    metrics: Mapping[str, Any], *, ends: tuple[float, float], least_steps: int
) -> tuple[float, float | None]:
    """The losses before and after that tell whether a run got better; after is None where none do.

    They are those of the same validation rows. A few of them tell which rows they are more than
    what was learnt: the training losses stand in then. After a handful of steps nothing tells.

    Args:
        metrics: Of the run.
        ends: Mean of the first and of the last training losses.
        least_steps: Steps below which the run only tries things out.
    """
    from rag_fti.training.job import FEW_VALIDATION_ROWS

    first, last = ends
    if metrics["validation_loss"] is None or metrics["steps"] < least_steps:
        return first, None
    before = metrics["validation_loss_before"]
    if before is None or metrics["validation_examples"] < FEW_VALIDATION_ROWS:
        return first, last
    return float(before), float(metrics["validation_loss"])


def _calibrate(
    settings: Settings, dataset: DatasetVersion, result: JobResult, progress: Progress
) -> Calibration:
    """Fit how readily this version abstains, and below which confidence it is withheld."""
    from rag_fti.evaluation.calibration import calibrate, fit_abstain_bias
    from rag_fti.models.local import context_window
    from rag_fti.training.examples import rows_with_room
    from rag_fti.training.replies import abstention_margins, validation_replies

    rows = rows_with_room(
        dataset.rows("validation").to_pylist()[:_CALIBRATION_ROWS],
        result.tokenizer,
        window=context_window(result.model, result.tokenizer),
    )
    most = settings.training.max_false_abstention
    margins = abstention_margins(result.model, result.tokenizer, rows)
    replies = validation_replies(
        result.model,
        result.tokenizer,
        rows,
        max_tokens=settings.inference.max_tokens,
        progress=progress,
        abstain_bias=-math.inf if margins else 0.0,
    )
    bias = fit_abstain_bias(
        margins, replies, max_false_abstention=most, least_unanswerable=_LEAST_UNANSWERABLE
    )
    if margins:
        replies = [
            replace(reply, abstained=reply.abstained or margin + (bias or 0.0) > 0)
            for reply, margin in zip(replies, margins, strict=True)
        ]
    return calibrate(
        replies,
        max_false_abstention=most,
        least_unanswerable=_LEAST_UNANSWERABLE,
        abstain_bias=bias,
    )


def _challenge(
    registry: Registry,
    version: ModelVersion,
    dataset: DatasetVersion,
    run_id: str,
    report_path: Path,
) -> None:
    registry.set_alias(
        version.name,
        "challenger",
        version.version,
        why=f"trained on {dataset.ref} by {run_id}",
        report=str(report_path),
    )


def _preferences(dataset: DatasetVersion) -> list[dict[str, Any]]:
    rows = dataset.rows(PREFERENCES).to_pylist() if dataset.has(PREFERENCES) else []
    return list(rows)


def _require(contract: ContractRun, dataset: DatasetVersion, chat_template: str | None) -> None:
    facts = _input_facts(dataset, chat_template)
    try:
        contract.require(facts)
    except ContractViolation as error:
        if facts["dataset_intact"] and not facts["prompts_match"]:
            raise IncompatibleArtifact(
                f"Dataset {dataset.ref} was built for other prompts than this base model and "
                "release render (chat template, prompt text or retrieval settings differ).",
                next_step="Build the dataset again with the same training.base_model: "
                "rag-fti dataset build training.base_model=…",
            ) from error
        raise


def _input_facts(dataset: DatasetVersion, chat_template: str | None) -> dict[str, Any]:
    manifest = dataset.manifest
    try:
        dataset.verify()
    except DatasetError:
        return {
            "dataset_intact": False,
            "train_rows": 0,
            "shared_groups": 0,
            "prompts_match": False,
        }
    groups = [set(dataset.rows(split).column("group").to_pylist()) for split in SPLITS]
    shared = len(groups[0] & groups[1]) + len(groups[0] & groups[2]) + len(groups[1] & groups[2])
    digest = prompts.prompt_digest(chat_template, manifest["retrieval"])
    return {
        "dataset_intact": True,
        "train_rows": manifest["splits"]["train"],
        "shared_groups": shared,
        "prompts_match": digest == manifest["prompt_digest"],
    }


def _same_run(registry: Registry, name: str, run: str) -> ModelVersion | None:
    found = [v for v in registry.versions(name) if v.manifest.get("run") == run]
    return found[-1] if found else None


def _work_directory(settings: Settings, dataset: DatasetVersion, base: BaseModel) -> Path:
    """Checkpoints of the same data, weights and hyperparameters share a directory."""
    from rag_fti.models.hardware import pick_device

    hyperparameters = settings.training.model_dump(
        mode="json", exclude={"dataset", "checkpoint_minutes", "trackers", "device", "merge"}
    )
    # The number of processes and the packing of a GPU decide the steps and the order of the rows.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = pick_device(settings.training.device) == "cuda"
    key = ids.digest_json([dataset.ref, base.weights_digest, hyperparameters, processes, on_gpu])
    return settings.storage.root / "training" / f"{settings.training.model_name}-{key[:12]}"


def _manifest(
    settings: Settings, dataset: DatasetVersion, base: BaseModel, result: JobResult
) -> dict[str, Any]:
    origin = dataset.manifest
    return {
        "base_model": base.to_dict(),
        "dataset": dataset.ref,
        "dataset_manifest_digest": dataset.manifest_digest,
        "snapshot": origin["snapshot"],
        "prompt_digest": origin["prompt_digest"],
        "retrieval": origin["retrieval"],
        "embedder": origin["embedder"],
        "chunker_digest": origin["chunker_digest"],
        "training": {
            **settings.training.model_dump(mode="json"),
            "dataset": dataset.ref,
            "switches": result.switches,
        },
        "metrics": result.metrics,
    }


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["train", *sys.argv[1:]])
