"""Commands of the instruction dataset pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    ConfigFiles,
    DryRun,
    Json,
    Overrides,
    QuestionFiles,
    run_command,
    settings_from,
)
from rag_fti.errors import ConfigError
from rag_fti.progress import Progress

Reference = Annotated[str, typer.Argument(help="name@version or name@latest.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    group = typer.Typer(
        help="Build, list, show and export instruction datasets.", no_args_is_help=True
    )
    group.command("build")(build)
    group.command("list")(list_versions)
    group.command("show")(show)
    group.command("export")(export)
    app.add_typer(group, name="dataset")


def build(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    collection: Annotated[
        str | None, typer.Option(help="Only documents of this collection.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Snapshot or tag of the feature store.")] = None,
    pairs: QuestionFiles = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make an instruction dataset from a snapshot of the feature store.

    A dry run asks no teacher: what it has yet to be asked counts as over the budget.
    """

    def work(progress: Progress) -> Mapping[str, Any]:
        from pipelines import instruction_dataset

        settings = settings_from(
            config,
            overrides,
            {
                "dataset.collection": collection,
                "dataset.at": at,
                "dataset.pairs": [str(path) for path in pairs] if pairs else None,
            },
        )
        return instruction_dataset.run(settings, progress=progress, dry_run=dry_run).to_dict()

    run_command(work, as_json=as_json, render=_render_build)


def list_versions(
    overrides: Overrides = None, config: ConfigFiles = None, as_json: Json = False
) -> None:
    """List all dataset versions, oldest first."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.datasets import dataset_versions
        from rag_fti.roots import datasets_root

        settings = settings_from(config, overrides)
        return {
            "datasets": [
                {
                    "ref": version.ref,
                    "created_at": version.manifest["created_at"],
                    "snapshot": version.manifest["snapshot"],
                    "splits": version.manifest["splits"],
                }
                for version in dataset_versions(datasets_root(settings.storage))
            ]
        }

    run_command(work, as_json=as_json, render=_render_list)


def show(
    ref: Reference,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    rows: Annotated[int, typer.Option(help="Rows to print.", min=0)] = 2,
    split: Annotated[str, typer.Option(help="Split to take rows from.")] = "train",
    as_json: Json = False,
) -> None:
    """Show a version's manifest and some of its rows."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.datasets import open_dataset
        from rag_fti.roots import datasets_root

        settings = settings_from(config, overrides)
        version = open_dataset(datasets_root(settings.storage), ref)
        return {
            "ref": version.ref,
            "manifest": dict(version.manifest),
            "rows": version.rows(split).slice(0, rows).to_pylist(),
        }

    run_command(work, as_json=as_json, render=_render_show)


def export(
    ref: Reference,
    folder: Annotated[Path, typer.Argument(help="Directory to write into.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="messages, alpaca or sharegpt; all when left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a version as messages JSONL, alpaca and ShareGPT, with dataset_info.json."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.datasets import open_dataset
        from rag_fti.datasets.exporting import FORMATS, export_dataset
        from rag_fti.roots import datasets_root

        wanted = tuple(name for name in FORMATS if not formats or name in formats)
        unknown = set(formats or ()) - set(FORMATS)
        if unknown:
            raise ConfigError(
                f"Unknown format {sorted(unknown)[0]!r}.",
                next_step=f"Use {', '.join(FORMATS)}.",
            )
        settings = settings_from(config, overrides)
        version = open_dataset(datasets_root(settings.storage), ref)
        version.verify()
        files = export_dataset(version, folder, formats=wanted)
        return {"ref": version.ref, "files": [str(path) for path in files]}

    run_command(work, as_json=as_json, render=lambda s: "\n".join(s["files"]))


def _render_build(summary: Mapping[str, Any]) -> str:
    title = summary["dataset"] or "Dry run, nothing written"
    if summary["dataset"] and not summary["created"]:
        title += " (was there already)"
    lines = [title, f"  snapshot {summary['snapshot']}, {summary['seconds']:.1f} s"]
    for name in ("splits", "generators", "rules", "filters"):
        values = ", ".join(f"{key} {value}" for key, value in summary[name].items())
        lines.append(f"  {name}: {values or '-'}")
    empty = [split for split, rows in summary["splits"].items() if not rows]
    if empty:
        lines.append(f"  no rows for {' and '.join(empty)}: too few documents for their shares")
    lines.append(f"  answer found by retrieval alone: {summary['retrieval_recall']:.0%}")
    if summary["dataset"]:
        lines.append(f"Next: rag-fti train --dataset {summary['dataset']}")
    return "\n".join(lines)


def _render_list(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{item['ref']:36} {item['created_at'][:19]}  {item['snapshot']:12} "
        + ", ".join(f"{split} {rows}" for split, rows in item["splits"].items())
        for item in summary["datasets"]
    ]
    return "\n".join(lines) or "There are no datasets. Build one: rag-fti dataset build"


def _render_show(summary: Mapping[str, Any]) -> str:
    manifest = summary["manifest"]
    lines = [summary["ref"]]
    for key in ("created_at", "snapshot", "splits", "generators", "filters", "retrieval_recall"):
        lines.append(f"  {key}: {manifest.get(key)}")
    for row in summary["rows"]:
        lines.append("")
        # Preference pairs have their turns in three columns.
        shown = {"": row["messages"]} if "messages" in row else row
        for kind in ("", "prompt", "chosen", "rejected"):
            messages = [m for m in shown.get(kind) or () if m["role"] != "system"]
            lines += [f"[{kind or m['role']}] {m['content']}" for m in messages]
    return "\n".join(lines)
