"""Commands of training, model validation and the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.default_group import DEFAULT, DefaultGroup
from pipelines.commands.options import (
    ConfigFiles,
    DryRun,
    Json,
    NewDirectory,
    Overrides,
    QuestionFiles,
    run_command,
    settings_from,
    split_overrides,
)
from rag_fti.progress import Progress

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.registry import ModelVersion, Registry

Dataset = Annotated[
    str | None, typer.Option(help="name@version, name@latest, or a dataset directory.")
]
BaseModel = Annotated[str | None, typer.Option(help="'embedded', a hub id or a directory.")]
Alias = Annotated[str, typer.Option(help="Alias to move.")]
Version = Annotated[str, typer.Argument(help="name@version, name@alias, or an alias.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    training = typer.Typer(cls=DefaultGroup, help="Fine-tune a model on an instruction dataset.")
    training.command(DEFAULT)(train)
    training.command("bundle")(train_bundle)
    app.add_typer(training, name="train")
    models = typer.Typer(
        cls=DefaultGroup, help="Look into and move models of the registry; alone, list them."
    )
    models.command(DEFAULT)(models_list)
    models.command("list")(models_list)
    models.command("show")(models_show)
    models.command("history")(models_history)
    models.command("export")(models_export)
    models.command("import")(models_import)
    models.command("merge")(models_merge)
    models.command("gc")(models_gc)
    app.add_typer(models, name="models")
    app.command()(evaluate)
    app.command()(promote)
    app.command()(rollback)


def train(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    dataset: Dataset = None,
    base_model: BaseModel = None,
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

    run_command(
        work,
        as_json=as_json,
        render=_render_training,
        interrupted="Add --resume to go on from the last checkpoint; without it the run starts "
        "over and its checkpoints go.",
    )


def train_bundle(
    target: NewDirectory,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    dataset: Dataset = None,
    base_model: BaseModel = None,
    include_base_model: Annotated[
        bool, typer.Option(help="Copy the base model in, so that no hub is needed.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write one directory that trains on another machine."""

    def work(progress: Progress) -> Mapping[str, Any]:
        from rag_fti.datasets import open_dataset
        from rag_fti.models.causal import resolve_base_model
        from rag_fti.roots import datasets_root
        from rag_fti.training.bundles import write_bundle

        settings = settings_from(
            config, overrides, {"training.dataset": dataset, "training.base_model": base_model}
        )
        base = resolve_base_model(settings.training.base_model, revision=settings.training.revision)
        progress.note(f"copying into {target}")
        bundle = write_bundle(
            target,
            open_dataset(datasets_root(settings.storage), settings.training.dataset),
            base_location=base.location if include_base_model else None,
            base_model=base.to_dict(),
            training=settings.training.model_dump(mode="json"),
            retrieval=settings.retrieval.model_dump(mode="json"),
            answer_tokens=settings.inference.max_tokens,
        )
        return {**asdict(bundle), "path": str(bundle.path)}

    run_command(
        work,
        as_json=as_json,
        render=lambda s: (
            f"{s['path']} ({s['bytes'] / 1e6:.1f} MB): {s['dataset']} and {s['base_model']}. "
            "Its README.md says how to train and bring the model back."
        ),
    )


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


def models_show(
    version: Version,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Show what a version was made from, and check its files."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        found = registry.resolve(version)
        registry.verify(found)
        return {**_describe(registry, found), "manifest": dict(found.manifest), "intact": True}

    run_command(work, as_json=as_json, render=_render_version)


def models_history(
    name: Annotated[str, typer.Argument(help="Model name.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Show which version was what, when, and why."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        return {"name": name, "changes": [asdict(c) for c in registry.history(name)]}

    run_command(work, as_json=as_json, render=_render_history)


def models_export(
    version: Version,
    target: NewDirectory,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Copy a version out of the registry, manifest and all."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        found = registry.resolve(version)
        return {"ref": found.ref, "path": str(registry.export_version(found, target))}

    run_command(work, as_json=as_json, render=lambda s: f"{s['ref']} is in {s['path']}")


def models_import(
    source: Annotated[Path, typer.Argument(help="Version directory, as exported or trained.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    name: Annotated[str, typer.Option(help="Name here; the version's own by default.")] = "",
    alias: Annotated[str, typer.Option(help="Alias to point at it; empty for none.")] = (
        "challenger"
    ),
    as_json: Json = False,
) -> None:
    """Bring a version that was trained elsewhere into the registry."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        found = registry.import_version(source, model_name=name)
        if alias and registry.aliases(found.name).get(alias) != found.version:
            registry.set_alias(found.name, alias, found.version, why=f"imported from {source.name}")
        return {"ref": found.ref, "path": found.location, "alias": alias}

    run_command(
        work,
        as_json=as_json,
        render=lambda s: f"Imported as {s['ref']}. Next: rag-fti evaluate {s['ref']}",
    )


def models_merge(
    version: Version,
    target: NewDirectory,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Fold a version's adapter into its base model and write the full weights."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.training.merging import merge_version

        settings = settings_from(config, overrides)
        registry = _registry(settings)
        found = registry.resolve(version)
        registry.verify(found)
        merge_version(found.path, found.manifest, target, base_model=settings.training.base_model)
        return {"ref": found.ref, "path": str(target)}

    run_command(work, as_json=as_json, render=lambda s: f"{s['ref']}, merged, is in {s['path']}")


def models_gc(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    keep_last: Annotated[int, typer.Option(help="Newest versions to keep.", min=0)] = 3,
    min_age_hours: Annotated[
        float, typer.Option(help="Age in hours up to which a version stays in any case.", min=0)
    ] = 1.0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove older versions that no alias, rollback or logged answer refers to."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.feature_store import FeatureStore

        settings = settings_from(config, overrides)
        registry = _registry(settings)
        store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
        referenced = {
            str(model)
            for table in ("inference_log", "predictions")
            for model in store.rows(table, columns=["model"])["model"].unique().to_pylist()
        }
        found = [
            registry.gc(
                name,
                keep_last=keep_last,
                referenced=referenced,
                dry_run=dry_run,
                min_age_seconds=3600 * min_age_hours,
            )
            for name in registry.names()
        ]
        return {
            "removed": [ref for garbage in found for ref in garbage.versions],
            "leftovers": sum(garbage.leftovers for garbage in found),
            "dry_run": dry_run,
        }

    run_command(
        work,
        as_json=as_json,
        render=lambda s: (
            f"{'Would remove' if s['dry_run'] else 'Removed'} "
            f"{', '.join(s['removed']) or 'nothing'}; {s['leftovers']} unfinished publications"
        ),
    )


def evaluate(
    version: Annotated[str, typer.Argument(help="name@version, alias, or number.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    questions: QuestionFiles = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Judge a version against base and champion, and promote it if every gate holds."""

    def work(progress: Progress) -> Mapping[str, Any]:
        from pipelines import model_validation

        settings = settings_from(
            config,
            overrides,
            {"evaluation.questions": [str(path) for path in questions] if questions else None},
        )
        return model_validation.run(settings, version, progress=progress, dry_run=dry_run).to_dict()

    run_command(work, as_json=as_json, render=_render_evaluation)


def promote(
    version: Version,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    alias: Alias = "champion",
    why: Annotated[str, typer.Option(help="Reason, for the history.")] = "promoted by hand",
    as_json: Json = False,
) -> None:
    """Point an alias at a version without judging it."""

    def work(_: Progress) -> Mapping[str, Any]:
        registry = _registry(settings_from(config, overrides))
        found = registry.resolve(version)
        registry.verify(found)
        return asdict(registry.set_alias(found.name, alias, found.version, why=why)) | {
            "name": found.name
        }

    run_command(work, as_json=as_json, render=_render_change)


def rollback(
    name: Annotated[str, typer.Argument(help="Model name; the only one when left out.")] = "",
    overrides: Overrides = None,
    config: ConfigFiles = None,
    alias: Alias = "champion",
    why: Annotated[str, typer.Option(help="Reason, for the history.")] = "rolled back by hand",
    as_json: Json = False,
) -> None:
    """Point an alias back at the version it had before."""

    def work(_: Progress) -> Mapping[str, Any]:
        from rag_fti.errors import ModelNotFound

        plain, more = split_overrides([name] if name else [])
        settings = settings_from(config, [*more, *(overrides or [])])
        registry = _registry(settings)
        names = registry.names()
        only = names[0] if len(names) == 1 else settings.evaluation.model_name
        model = plain[0] if plain else only
        if not registry.versions(model):
            raise ModelNotFound(
                f"The registry has no model {model!r}; it has: {', '.join(names) or 'none'}.",
                next_step="Name one: rag-fti rollback NAME.",
            )
        return asdict(registry.rollback(model, alias, why=why)) | {"name": model}

    run_command(work, as_json=as_json, render=_render_change)


def _registry(settings: Settings) -> Registry:
    from rag_fti.roots import open_registry

    return open_registry(settings.storage)


def _describe(registry: Registry, version: ModelVersion) -> dict[str, Any]:
    aliases = registry.aliases(version.name)
    manifest = version.manifest
    return {
        "ref": version.ref,
        "aliases": sorted(alias for alias, number in aliases.items() if number == version.version),
        "created_at": manifest["created_at"],
        "dataset": manifest.get("dataset", ""),
        "base_model": (manifest.get("base_model") or {}).get("reference", ""),
        "path": version.location,
    }


def _render_training(summary: Mapping[str, Any]) -> str:
    if summary["version"] is None:
        return f"Would train {summary['model']} on {summary['dataset']}: {summary['metrics']}"
    metrics = summary["metrics"]
    best = metrics["best_step"]
    chosen = f" (weights of step {best})" if best < metrics["steps"] else ""
    before = metrics["validation_loss_before"]
    losses = f"validation loss {metrics['validation_loss']}"
    losses += "" if before is None else f" (before: {before})"
    if metrics["validation_loss"] is None:
        losses = "not validated" if metrics["validation_examples"] else "no validation rows"
    # A run that was killed after its last step resumes with no step left to time.
    speed = summary["tokens_per_second"]
    timed = f"{speed:,.0f} tokens/s, " if speed else ""
    return (
        f"Published {summary['model']}@{summary['version']} as challenger: {summary['path']}\n"
        f"  {metrics['steps']} steps{chosen} on {summary['dataset']}, "
        f"{losses}, {timed}{summary['seconds']:.0f} s\n"
        f"Next: rag-fti evaluate {summary['model']}@{summary['version']}"
    )


def _render_version(summary: Mapping[str, Any]) -> str:
    manifest = summary["manifest"]
    lines = [f"{summary['ref']}  {', '.join(summary['aliases'])}", f"  {summary['path']}"]
    for key in ("created_at", "dataset", "base_model", "metrics"):
        lines.append(f"  {key}: {manifest.get(key)}")
    return "\n".join([*lines, "  all files match their digests"])


def _render_history(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{c['at'][:19]}  {c['alias'] or 'removed':12} {c['from_version'] or '-'} -> "
        f"{c['to_version']}  {c['who']}: {c['why']}"
        for c in summary["changes"]
    ]
    return "\n".join(lines) or f"No alias of {summary['name']} was ever set."


def _render_change(summary: Mapping[str, Any]) -> str:
    before = summary["from_version"]
    return (
        f"{summary['name']}@{summary['alias']} is now version {summary['to_version']}"
        f"{f' (was {before})' if before else ''}."
    )


def _render_evaluation(summary: Mapping[str, Any]) -> str:
    shown = ("f1", "exact_match", "citation_precision", "abstention_recall", "false_abstention")
    present = {name: table for name, table in summary["scores"].items() if table}
    lines = [f"{'':22}" + "".join(f"{name:>12}" for name in present)]
    for metric in shown:
        values = (table[metric] for table in present.values())
        lines.append(
            f"{metric:22}" + "".join(f"{'-' if v is None else f'{v:.3f}':>12}" for v in values)
        )
    for other, table in summary["differences"].items():
        i = table["f1"]
        lines.append(
            f"f1 over {other}: {i['mean']:+.3f} (95 %: {i['low']:+.3f} to {i['high']:+.3f})"
        )
    for gate in summary["gates"]:
        lines.append(f"  {'ok ' if gate['ok'] else 'NO '} {gate['name']}: {gate['threshold']}")
    lines.append(summary["verdict"])
    if summary["report"]:
        lines.append(f"Report: {summary['report']}")
    return "\n".join(lines)


def _render_models(summary: Mapping[str, Any]) -> str:
    lines = [
        f"{model['ref']:24} {','.join(model['aliases']) or '-':24} {model['created_at'][:19]}  "
        f"{model['dataset']}"
        for model in summary["models"]
    ]
    return "\n".join(lines) or "The registry is empty. Train a model: rag-fti train"
