"""Commands of training, model validation and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.default_group import DEFAULT, DefaultGroup
from pipelines.commands.options import (
    ConfigFiles,
    DryRun,
    Json,
    Overrides,
    run_command,
    settings_from,
)
from rag_fti.progress import Progress

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.registry import ModelVersion, Registry

Version = Annotated[str, typer.Argument(help="name@version, name@alias, or an alias.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    training = typer.Typer(cls=DefaultGroup, help="Fine-tune a model on an instruction dataset.")
    training.command(DEFAULT)(train)
    app.add_typer(training, name="train")
    models = typer.Typer(cls=DefaultGroup, help="Look into and move models of the registry.")
    models.command(DEFAULT)(models_list)
    models.command("list")(models_list)
    app.add_typer(models, name="models")


def train(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    dataset: Annotated[
        str | None, typer.Option(help="name@version, name@latest, or a dataset directory.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="'embedded', a hub id or a directory.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a base model on a dataset and publish it as challenger.

    'rag-fti train bundle OUT' writes a directory that trains on another machine.
    """

    def work(progress: Progress) -> Mapping[str, Any]:
        from pipelines import training

        settings = settings_from(
            config, overrides, {"training.dataset": dataset, "training.base_model": base_model}
        )
        return training.run(settings, resume=resume, progress=progress, dry_run=dry_run).to_dict()

    run_command(work, as_json=as_json, render=_render_training)


def models_list(
    overrides: Overrides = None, config: ConfigFiles = None, as_json: Json = False
) -> None:
    """List all versions with their aliases."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        return {
            "models": [
                _describe(registry, version)
                for name in registry.names()
                for version in registry.versions(name)
            ]
        }

    run_command(work, as_json=as_json, render=_render_models)


def _registry(settings: Settings) -> Registry:
    from rag_fti.registry import Registry

    return Registry.open(settings.storage.registry_uri)


def _describe(registry: Registry, version: ModelVersion) -> dict[str, Any]:
    aliases = registry.aliases(version.name)
    manifest = version.manifest
    return {
        "ref": version.ref,
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
        "created_at": manifest["created_at"],
        "dataset": manifest.get("dataset", ""),
        "base_model": (manifest.get("base_model") or {}).get("reference", ""),
        "path": str(version.path),
    }


def _render_training(summary: Mapping[str, Any]) -> str:
    if summary["version"] is None:
        return f"Would train {summary['model']} on {summary['dataset']}: {summary['metrics']}"
    metrics = summary["metrics"]
    return (
        f"Published {summary['model']}@{summary['version']} as challenger: {summary['path']}\n"
        f"  {metrics['steps']} steps on {summary['dataset']}, validation loss "
        f"{metrics['validation_loss']}, {summary['tokens_per_second']:,.0f} tokens/s, "
        f"{summary['seconds']:.0f} s\n"
        f"Next: rag-fti evaluate {summary['model']}@{summary['version']}"
    )


def _render_models(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{model['ref']:24} {','.join(model['aliases']) or '-':24} {model['created_at'][:19]}  "
        f"{model['dataset']}"
        for model in summary["models"]
    ]
    return "\n".join(lines) or "The registry is empty. Train a model: rag-fti train"
