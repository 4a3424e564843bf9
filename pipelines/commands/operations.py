"""Commands that look across pipelines: status, contracts, lineage, replay, demo."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import (
    ConfigFiles,
    Json,
    Overrides,
    run_command,
    settings_from,
    split_overrides,
)
from rag_fti.contracts import Contract, last_reports, last_verdict
from rag_fti.errors import ConfigError, RagFtiError

if TYPE_CHECKING:
    from rag_fti.config import Settings
    from rag_fti.lineage import Stores

PIPELINES = (
    "ingest",
    "feature_validation",
    "feature_monitoring",
    "instruction_dataset",
    "training",
    "model_validation",
    "batch_inference",
)


def contracts_by_pipeline() -> dict[str, Contract]:
    """Every pipeline's contract, read without loading models or stores."""
    return {name: importlib.import_module(f"pipelines.{name}").CONTRACT for name in PIPELINES}


def open_stores(settings: Settings) -> Stores:
    """The shared storage that status and lineage read."""
    from rag_fti.feature_store import FeatureStore
    from rag_fti.lineage import Stores
    from rag_fti.roots import datasets_root, open_registry

    storage = settings.storage
    if storage.root.exists() and not storage.root.is_dir():
        raise ConfigError(
            f"storage.root is {storage.root}, a file; expected a directory.",
            next_step="Name a directory in storage.root or RAG_FTI_ROOT.",
        )
    return Stores(
        features=FeatureStore.open(storage.features_uri, options=storage.options),
        datasets=datasets_root(storage),
        registry=open_registry(storage),
    )


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(status)
    app.command()(contracts)
    app.command()(lineage)
    app.command()(replay)
    app.command()(demo)


def status(overrides: Overrides = None, config: ConfigFiles = None, as_json: Json = False) -> None:
    """Show what is in the stores and how the last run of each pipeline ended."""
    run_command(
        lambda _: describe_stores(settings_from(config, overrides)),
        as_json=as_json,
        render=render_status,
    )


def contracts(
    pipeline: Annotated[str, typer.Argument(help="Pipeline; all when left out.")] = "",
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Show what each pipeline promises and how its last whole run kept it."""

    def work(_: object) -> dict[str, Any]:
        plain, more = split_overrides([pipeline] if pipeline else [])
        known = contracts_by_pipeline()
        for name in plain:
            if name not in known:
                raise ConfigError(
                    f"There is no pipeline {name!r}.",
                    next_step=f"Choose one of: {', '.join(known)}.",
                )
        settings = settings_from(config, [*more, *(overrides or [])])
        shown = []
        for name in plain or known:
            report, newer = last_verdict(settings.storage.reports, known[name])
            shown.append({**known[name].declaration(), "last_report": report, "newer_runs": newer})
        return {"contracts": shown}

    run_command(work, as_json=as_json, render=render_contracts)


def lineage(
    identifier: Annotated[
        str,
        typer.Argument(
            help="Response, prediction, chunk or document id, source, dataset@… or model@…."
        ),
    ],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Show where something came from and what it went into."""

    def work(_: object) -> dict[str, Any]:
        from rag_fti.lineage import trace

        return trace(identifier, stores=open_stores(settings_from(config, overrides)))

    run_command(work, as_json=as_json, render=_render_json)


def replay(
    response_id: Annotated[str, typer.Argument(help="Id of a logged answer.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Answer a logged question again as it was asked, on its snapshot, and compare."""

    def work(_: object) -> dict[str, Any]:
        return answer_again(response_id, settings_from(config, overrides))

    run_command(work, as_json=as_json, render=_render_replay, failed=lambda r: not r["same"])


def demo(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Run the main job on the sample corpus: from documents to cited answers."""

    def work(progress: Any) -> dict[str, Any]:
        from pipelines import demo as program

        return program.run(settings_from(config, overrides), progress=progress).to_dict()

    from pipelines.demo import render

    run_command(work, as_json=as_json, render=render, failed=lambda summary: not summary["ok"])


def describe_stores(settings: Settings) -> dict[str, Any]:
    """What is where, as JSON-ready values."""
    from rag_fti.lineage import dataset_manifests

    stores = open_stores(settings)
    reports = last_reports(settings.storage.reports, PIPELINES)
    features: dict[str, Any] = {"uri": settings.storage.features_uri, "exists": False}
    if stores.features.exists():
        documents = stores.features.documents(columns=["collection"])["collection"].to_pylist()
        recipe = stores.features.recipe()
        features = {
            "uri": settings.storage.features_uri,
            "exists": True,
            "snapshot": stores.features.snapshot(),
            "tags": stores.features.tags(),
            "documents": len(documents),
            "collections": dict(sorted(Counter(documents).items())),
            "chunks": stores.features.count_chunks(),
            "embedder": recipe.embedder.to_dict(),
            "chunker_digest": recipe.chunker_digest,
            "logged_answers": stores.features.count_rows("inference_log"),
        }
    return {
        "features": features,
        "datasets": [
            {
                "dataset": version.ref,
                "snapshot": version.manifest.get("snapshot"),
                "splits": version.manifest.get("splits"),
            }
            for version in dataset_manifests(stores.datasets)
        ],
        "models": [
            {
                "model": version.ref,
                "dataset": version.manifest.get("dataset"),
                "aliases": [
                    alias
                    for alias, number in stores.registry.aliases(name).items()
                    if number == version.version
                ],
            }
            for name in stores.registry.names()
            for version in stores.registry.versions(name)
        ],
        "runs": {
            name: {
                **{key: report[key] for key in ("run_id", "ok", "finished_at", "seconds")},
                "finished": report.get("finished", True),  # earlier releases did not say
            }
            for name, report in reports.items()
        },
    }


def answer_again(response_id: str, settings: Settings) -> dict[str, Any]:
    """Replay one logged answer as it was asked, and compare.

    Raises:
        RagFtiError: If the answer is not in the log or cannot be asked again.
    """
    from rag_fti.inference.replay import replay
    from rag_fti.lineage import trace

    stores = open_stores(settings)
    record = trace(response_id, stores=stores)
    if record["kind"] != "answer":
        raise RagFtiError(
            f"{response_id!r} is a {record['kind']}, not an answer.",
            next_step="Replay takes the id of an answer, as printed by ask or the chat endpoint.",
        )
    logged = {**record, "model": record["model"]["id"]}
    again = replay(logged, settings=settings, store=stores.features)
    then = [chunk["chunk_id"] for chunk in record["chunks"]]
    now = [hit.chunk_id for hit in again.answer.hits]
    return {
        "id": response_id,
        "snapshot": record["snapshot"],
        "model": {"then": logged["model"], "now": again.answer.model},
        "chunks": {"then": then, "now": now},
        "answer": {"then": record["answer"], "now": again.answer.answer},
        "same": again.answer.answer == record["answer"] and then == now,
        "notes": list(again.notes),
    }


def render_status(summary: Mapping[str, Any]) -> str:
    """Status for people."""
    features = summary["features"]
    lines = [f"Feature store  {features['uri']}"]
    if features["exists"]:
        collections = ", ".join(f"{name} ({n})" for name, n in features["collections"].items())
        own = [f"{k} = {v}" for k, v in features["tags"].items() if k != f"answered-{v}"]
        answered = len(features["tags"]) - len(own)
        lines += [
            f"  snapshot {features['snapshot']}: {features['documents']} documents, "
            f"{features['chunks']} chunks; collections: {collections}",
            f"  embedder {features['embedder']['model']} "
            f"({features['embedder']['dimension']} dimensions)",
            f"  tags: {', '.join(own) or 'none'}"
            + (f"; states kept for answers: {answered}" if answered else ""),
            f"  logged answers: {features['logged_answers']}",
        ]
    else:
        lines.append("  empty; fill it with: rag-fti ingest PATH")
    lines.append(
        "Datasets" if summary["datasets"] else "Datasets       none; rag-fti dataset build"
    )
    for entry in summary["datasets"]:
        lines.append(f"  {entry['dataset']}  from snapshot {entry['snapshot']}: {entry['splits']}")
    lines.append("Models" if summary["models"] else "Models         none; rag-fti train")
    for entry in summary["models"]:
        aliases = f"  ← {', '.join(entry['aliases'])}" if entry["aliases"] else ""
        lines.append(f"  {entry['model']}  from {entry['dataset']}{aliases}")
    lines.append("Last runs" if summary["runs"] else "Last runs      none")
    for name, run in summary["runs"].items():
        kept = "contract kept" if run["finished"] else "stopped before its end, or still running"
        kept = kept if run["ok"] else "CONTRACT BROKEN"
        lines.append(f"  {name:<20} {run['finished_at']}  {run['seconds']:.1f} s  {kept}")
    return "\n".join(lines)


def render_contracts(summary: Mapping[str, Any]) -> str:
    """Contracts for people: every promise, with a mark from the last run."""
    lines = []
    for contract in summary["contracts"]:
        report = contract["last_report"]
        results = {r["name"]: r for r in report["results"]} if report else {}
        when = f"run of {report['finished_at']}" if report else "never run here"
        lines += [f"{contract['pipeline']}: {contract['purpose']} ({when})"]
        if contract["newer_runs"]:
            lines += [
                f"  {contract['newer_runs']} newer run(s) ended before the postconditions: "
                "nothing to do, or stopped"
            ]
        lines += [f"  in   {name}: {_shape(value)}" for name, value in contract["inputs"].items()]
        lines += [f"  out  {name}: {_shape(value)}" for name, value in contract["outputs"].items()]
        for kind in ("precondition", "invariant", "postcondition", "service_level"):
            for check in contract[f"{kind}s"]:
                result = results.get(check["name"])
                mark = "·" if result is None else "✓" if result["ok"] else "✗"
                value = f"  [{result['value']}, {result['expected']}]" if result else ""
                lines.append(f"  {mark} {kind.replace('_', ' ')}: {check['promise']}{value}")
        lines.append("")
    return "\n".join(lines)


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {kind}" for name, kind in value.items())
    return str(value)


def _render_replay(summary: Mapping[str, Any]) -> str:
    verdict = "the same answer" if summary["same"] else "a DIFFERENT answer"
    passages = summary["chunks"]
    lines = [
        f"{summary['id']} at snapshot {summary['snapshot']}: {verdict}",
        f"  then ({summary['model']['then']}): {summary['answer']['then']}",
        f"  now  ({summary['model']['now']}): {summary['answer']['now']}",
    ]
    if passages["then"] != passages["now"]:
        lines.append(
            f"  passages then: {', '.join(passages['then']) or 'none'}; "
            f"now: {', '.join(passages['now']) or 'none'}"
        )
    return "\n".join([*lines, *(f"  note: {note}" for note in summary["notes"])])


def _render_json(summary: Mapping[str, Any]) -> str:
    return json.dumps(summary, indent=2, ensure_ascii=False)
