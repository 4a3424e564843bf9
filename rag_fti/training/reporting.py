"""The files for people: model card, training report, loss curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rag_fti.datasets import DatasetVersion
from rag_fti.evaluation.calibration import Calibration, draw_risk_coverage

if TYPE_CHECKING:
    from rag_fti.models.causal import BaseModel
    from rag_fti.training.job import JobResult


@dataclass(frozen=True)
class Sample:
    """One question and what was said to it."""

    question: str
    expected: str
    before: str
    after: str


def write_papers(
    folder: Path,
    *,
    name: str,
    base: BaseModel,
    dataset: DatasetVersion,
    result: JobResult,
    calibration: Calibration,
    contract: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write card, report, curves and figures beside the weights.

    Args:
        folder: Where the weights are.
        name: The model's name in the registry.
        base: What was fine-tuned.
        dataset: On what.
        result: What came of it.
        calibration: When its answers are withheld.
        contract: The run's report.
        facts: Further lines for the first table.
    """
    facts = {
        "base model": f"{base.reference} {base.revision}".strip(),
        "base weights": base.weights_digest[:16],
        "dataset": dataset.ref,
        **facts,
    }
    draw_losses(
        folder / "loss.png",
        train=result.fit.losses(),
        validation=result.fit.validation_losses(),
        best_step=result.fit.best_step,
    )
    draw_risk_coverage(folder / "risk_coverage.png", {name: calibration})
    origin = dataset.manifest
    report = render_report(
        title=f"{name} on {dataset.ref}",
        facts=facts,
        metrics={key: value for key, value in result.metrics.items() if value is not None},
        switches=result.switches,
        samples=result.samples,
        calibration=_calibration_table(calibration),
        dataset={
            "rows": origin["splits"],
            **{key: origin[key] for key in ("generators", "filters") if key in origin},
        },
    )
    loss = result.metrics["validation_loss"]
    card = render_card(
        name=name,
        base_model=base.reference,
        dataset=dataset.ref,
        licence=licence_of(base.location),
        metrics={} if loss is None else {"validation loss": loss},
        facts=facts,
    )
    (folder / "report.md").write_text(report, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    for file, value in (
        ("metrics.json", result.metrics),
        ("calibration.json", calibration.to_dict()),
        ("contract.json", dict(contract)),
        ("losses.json", result.fit.history),
    ):
        (folder / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _calibration_table(calibration: Calibration) -> dict[str, Any]:
    shown = ("coverage", "risk", "false_abstention", "abstention_recall")
    return {
        "validation questions": calibration.questions,
        "area under the risk-coverage curve": calibration.aurc,
        "added to the logit of abstaining": round(calibration.abstain_bias, 3),
        "withheld below": calibration.abstain_below,
        "with this threshold": {key: getattr(calibration.chosen, key) for key in shown},
        "without": {key: getattr(calibration.without, key) for key in shown},
    }


def draw_losses(
    path: Path,
    *,
    train: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]],
    best_step: int,
) -> None:
    """Write the loss curves as a PNG.

    Args:
        path: File to write.
        train: Step and loss of every step.
        validation: Step and loss of every validation run.
        best_step: Step whose weights were kept.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="#9bb8d3", linewidth=1, label="training")
    if validation:
        steps, losses = zip(*validation, strict=True)
        axes.plot(steps, losses, color="#c2410c", marker="o", markersize=4, label="validation")
        axes.axvline(best_step, color="#57534e", linestyle=":", label=f"kept: step {best_step}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per completion token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=120)


def licence_of(base: Path) -> str:
    """The licence named in a base model's card, ``other`` where there is none."""
    card = base / "README.md"
    if not card.is_file():
        return "other"
    parts = card.read_text(encoding="utf-8").split("---")
    try:
        front = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    except yaml.YAMLError:
        return "other"
    return str(front.get("license", "other")) if isinstance(front, Mapping) else "other"


def render_report(
    *,
    title: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any],
    switches: Mapping[str, Any],
    samples: Sequence[Sample],
    calibration: Mapping[str, Any],
    dataset: Mapping[str, Any],
) -> str:
    """The training report as Markdown."""
    lines = [f"# {title}", "", "![Loss curves](loss.png)", ""]
    for heading, table in (
        ("What was trained", facts),
        ("Result", metrics),
        ("Switched on", switches),
        ("Dataset", dataset),
    ):
        lines += [f"## {heading}", "", "| | |", "| --- | --- |"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in table.items()]
        lines.append("")
    lines += ["## Calibration", "", "![Risk-coverage curve](risk_coverage.png)", ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in calibration.items()]
    lines += [
        "",
        "## Samples",
        "",
        "| question | expected | before | after |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {_cell(s.question)} | {_cell(s.expected)} | {_cell(s.before)} | {_cell(s.after)} |"
        for s in samples
    ]
    return "\n".join(lines) + "\n"


def render_card(
    *,
    name: str,
    base_model: str,
    dataset: str,
    licence: str,
    metrics: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """The Hugging Face model card: YAML front matter, then Markdown."""
    front = {
        "base_model": base_model,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": licence,
        "datasets": [dataset],
        "tags": ["rag", "lora", "rag-fti"],
    }
    rows = [f"| {key} | {_cell(value)} |" for key, value in {**facts, **metrics}.items()]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {name}",
            "",
            "A low-rank adapter that answers questions from retrieved passages, cites them with "
            "markers like `[1]`, and says so when they do not hold the answer. Load it with peft "
            "or vLLM on top of the base model named above; prompts must be rendered as "
            "`rag_fti.prompts` does (digest in `manifest.json`).",
            "",
            "| | |",
            "| --- | --- |",
            *rows,
            "",
            "The training report is in `report.md`, how it does on held-out questions in the "
            "registry's evaluation reports. It repeats what its passages say, right or wrong; it "
            "is not meant to answer from its own knowledge.",
            "",
        ]
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items()) or "-"
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return text or "-"
