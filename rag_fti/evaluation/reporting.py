"""The evaluation report: Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rag_fti.evaluation.calibration import calibrate, draw_risk_coverage
from rag_fti.evaluation.gates import GateResult
from rag_fti.evaluation.scoring import Interval, Judged, replies
from rag_fti.files import write_bytes_atomic, write_json_atomic

_SHOWN = (
    "f1",
    "exact_match",
    "f1_answerable",
    "citation_precision",
    "citation_recall",
    "abstention_precision",
    "abstention_recall",
    "false_abstention",
    "aurc",
    "retrieval_recall",
    "latency_mean_seconds",
    "latency_p95_seconds",
)
_DRAWN = ("f1", "exact_match", "citation_precision", "citation_recall", "abstention_recall")
_COLOURS = {"base": "#a8a29e", "champion": "#9bb8d3", "challenger": "#c2410c"}
_EXAMPLES = 12

Differences = Mapping[str, Mapping[str, Interval]]
"""Challenger minus other, by other and metric."""


def write_report(
    folder: Path,
    *,
    title: str,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any] | None],
    by_source: Mapping[str, Mapping[str, Mapping[str, Any]]],
    differences: Differences,
    differences_by_source: Mapping[str, Differences],
    gates: Sequence[GateResult],
    verdict: str,
    judged: Mapping[str, Sequence[Judged]],
) -> Path:
    """Write ``report.json``, ``report.md`` and, where matplotlib is installed, two pictures.

    Args:
        folder: New directory.
        title: Heading.
        facts: What was compared on what.
        scores: Scores of base, champion and challenger over everything; None where there is none.
        by_source: The same per question file and test split.
        differences: Challenger minus other, by other and metric.
        differences_by_source: The same per question file and test split.
        gates: Conditions and how they came out.
        verdict: What happened, in a sentence.
        judged: All answers.

    Returns:
        Path of ``report.json``.
    """
    drawn = find_spec("matplotlib") is not None
    if drawn:
        folder.mkdir(parents=True, exist_ok=True)
        _draw(folder / "scores.png", scores)
        draw_risk_coverage(
            folder / "risk_coverage.png",
            {
                name: calibrate(replies(items), max_false_abstention=0.0)
                for name, items in judged.items()
            },
        )
    write_bytes_atomic(
        folder / "report.md",
        _markdown(
            title,
            facts,
            scores,
            by_source,
            differences,
            differences_by_source,
            gates,
            verdict,
            judged,
            drawn,
        ).encode(),
    )
    path = folder / "report.json"
    write_json_atomic(
        path,
        {
            "title": title,
            **facts,
            "scores": scores,
            "by_source": by_source,
            "differences": differences_to_dict(differences),
            "differences_by_source": {
                source: differences_to_dict(part) for source, part in differences_by_source.items()
            },
            "gates": [gate.to_dict() for gate in gates],
            "verdict": verdict,
            "answers": {name: [asdict(item) for item in items] for name, items in judged.items()},
        },
    )
    return path


def differences_to_dict(differences: Differences) -> dict[str, dict[str, dict[str, float]]]:
    """JSON-ready form."""
    return {
        other: {metric: interval.to_dict() for metric, interval in table.items()}
        for other, table in differences.items()
    }


def _markdown(
    title: str,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any] | None],
    by_source: Mapping[str, Mapping[str, Mapping[str, Any]]],
    differences: Differences,
    differences_by_source: Mapping[str, Differences],
    gates: Sequence[GateResult],
    verdict: str,
    judged: Mapping[str, Sequence[Judged]],
    drawn: bool,
) -> str:
    lines = [f"# {title}", "", f"**{verdict}**", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()] + [""]
    if drawn:
        lines += ["![Scores](scores.png)", "", "![Risk and coverage](risk_coverage.png)", ""]
    lines += ["## Gates", "", "| gate | holds | value | condition | questions |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {g.name} | {'yes' if g.ok else '**no**'} | "
        f"{'-' if g.value is None else f'{g.value:.4f}'} | {g.threshold}"
        f"{f' ({g.note})' if g.note else ''} | {g.questions} |"
        for g in gates
    ]
    present = {name: table for name, table in scores.items() if table}
    lines += ["", "## Scores", "", *_table(present), ""]
    if differences:
        lines += ["## Challenger against the others", "", *_differences(differences), ""]
    for source, tables in by_source.items():
        lines += [f"## {source}", "", *_table(tables), ""]
        if differences_by_source[source]:
            lines += [*_differences(differences_by_source[source]), ""]
    lines += _examples(judged)
    return "\n".join(lines) + "\n"


def _table(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(tables)
    lines = [f"| | {' | '.join(names)} |", f"| --- | {' | '.join('---' for _ in names)} |"]
    for metric in ("questions", "answerable", *_SHOWN):
        values = [_value(tables[name].get(metric)) for name in names]
        lines.append(f"| {metric} | {' | '.join(values)} |")
    return lines


def _differences(differences: Differences) -> list[str]:
    lines = ["| against | metric | difference | 95 % interval |", "| --- | --- | --- | --- |"]
    return lines + [
        f"| {other} | {metric} | {i.mean:+.4f} | {i.low:+.4f} to {i.high:+.4f} |"
        for other, table in differences.items()
        for metric, i in table.items()
    ]


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _examples(judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Where challenger and base differ most, both ways."""
    base = {item.question_id: item for item in judged.get("base", ())}
    pairs = [
        (base[item.question_id], item)
        for item in judged["challenger"]
        if item.question_id in base and base[item.question_id].f1 != item.f1
    ]
    pairs.sort(key=lambda pair: pair[1].f1 - pair[0].f1)
    chosen = (
        [*pairs[: _EXAMPLES // 2], *pairs[-(_EXAMPLES // 2) :]] if len(pairs) > _EXAMPLES else pairs
    )
    lines = ["## Where they differ", "", "| question | expected | base | challenger |"]
    lines.append("| --- | --- | --- | --- |")
    for old, new in chosen:
        expected = " / ".join(new.expected) or "(abstention)"
        cells = (new.question, expected, old.answer, new.answer)
        lines.append(
            "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
        )
    return lines


def _draw(path: Path, scores: Mapping[str, Mapping[str, Any] | None]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = {name: table for name, table in scores.items() if table}
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(present)
    for number, (name, table) in enumerate(present.items()):
        values = [table.get(metric) or 0.0 for metric in _DRAWN]
        places = [n - 0.4 + width * (number + 0.5) for n in range(len(_DRAWN))]
        bars = axes.bar(places, values, width * 0.92, label=name, color=_COLOURS.get(name))
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(_DRAWN)), [metric.replace("_", " ") for metric in _DRAWN])
    axes.set_ylim(0, 1.1)
    axes.legend()
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)
