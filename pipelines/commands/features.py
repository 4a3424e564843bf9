"""Commands of the feature pipelines: ingest, delete, search, validate, monitor."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    COMMITTED,
    At,
    Collections,
    ConfigFiles,
    DryRun,
    Filter,
    Hits,
    Json,
    Overrides,
    run_command,
    settings_from,
    split_overrides,
)
from rag_fti.errors import ConfigError
from rag_fti.progress import Progress

_SNIPPET_CHARS = 240
_MOST_NAMED = 3

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH... [KEY=VALUE]...",
        help="Files, directories, glob patterns, archives, URLs, or - for stdin; then settings.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    app.command()(ingest)
    app.command()(delete)
    app.command()(search)
    app.command()(validate)
    app.command()(monitor)


def ingest(
    words: Words = None,
    collection: Annotated[
        str | None, typer.Option(help="Collection that documents go into.")
    ] = None,
    prune: Annotated[
        bool | None, typer.Option("--prune/--no-prune", help="Remove documents that are gone.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Then follow changes of the files until Ctrl-C.")
    ] = False,
    engine: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    stdin_name: Annotated[
        str, typer.Option(help="Name of the document on stdin; its suffix tells the format.")
    ] = "stdin",
    config: ConfigFiles = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Bring documents into the feature store: load, clean, chunk, embed, upsert."""
    paths, overrides = split_overrides(words or [])
    values = {"ingest.collection": collection, "ingest.prune": prune, "ingest.engine": engine}
    strict = True

    def work(progress: Progress) -> dict[str, Any]:
        nonlocal strict
        settings = settings_from(config, overrides, values)
        strict = settings.ingest.fail_on_quarantine
        if not paths:
            raise ConfigError(
                "Nothing to ingest.",
                next_step="Name files or directories: rag-fti ingest docs/ notes.md",
            )
        from pipelines import ingest as pipeline

        if watch and not dry_run:
            stop = stop_on_signals()
            return pipeline.watch(settings, paths, stop=stop, progress=progress).to_dict()
        summary = pipeline.run(
            settings, paths, stdin_name=stdin_name, progress=progress, dry_run=dry_run
        )
        return summary.to_dict()

    run_command(
        work,
        as_json=as_json,
        render=render_ingest,
        interrupted=COMMITTED,
        failed=lambda summary: strict and bool(summary["failures"]),
    )


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; the second one interrupts at once."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def render_ingest(summary: Mapping[str, Any]) -> str:
    """An ingest's summary for people."""
    documents, chunks = summary["documents"], summary["chunks"]
    lines = [
        "Documents: " + ", ".join(f"{n} {name}" for name, n in documents.items()),
        "Chunks: " + ", ".join(f"{n} {name}" for name, n in chunks.items()),
    ]
    if summary["skipped"]:
        named = [f"{f['source']} ({f['reason']})" for f in summary["skipped_files"][:_MOST_NAMED]]
        more = "; more are in --json" if summary["skipped"] > len(named) else ""
        lines.append(f"Skipped: {summary['skipped']} files: {', '.join(named)}{more}")
    lines += [f"Failed: {f['source']}: {f['reason']}" for f in summary["failures"]]
    if alike := summary["near_duplicates"]:
        most = alike[0]
        lines.append(
            f"Near duplicates: {len(alike)}, such as {most['source']} of {most['like']} "
            f"({most['similarity']:.0%} alike); all are in --json"
        )
    if summary["dry_run"]:
        lines.append("Nothing was written (--dry-run).")
    else:
        kept = "kept" if summary["contract"]["ok"] else "BROKEN"
        lines.append(
            f"Snapshot {summary['snapshot']} in {summary['seconds']:.1f} s; contract {kept} "
            f"({summary['contract']['report']})"
        )
    return "\n".join(lines)


def delete(
    words: Annotated[
        list[str],
        typer.Argument(metavar="DOC... [KEY=VALUE]...", help="Document ids or sources."),
    ],
    collection: Annotated[str, typer.Option(help="Only in this collection.")] = "",
    config: ConfigFiles = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Delete documents for good, and list the datasets, models and answers they went into."""
    names, overrides = split_overrides(words)

    def work(_: Progress) -> dict[str, Any]:
        settings = settings_from(config, overrides)
        from pipelines.commands.operations import open_stores
        from rag_fti.feature_store import sql_in
        from rag_fti.features.deletion import delete_documents, find_documents
        from rag_fti.lineage import tainted_by

        stores = open_stores(settings)
        store = stores.features
        found = find_documents(store, names, collection=collection)
        taint = tainted_by(list(found), stores=stores)
        summary: dict[str, Any] = {
            "documents": list(found),
            "sources": sorted(source for some in found.values() for source in some),
            "chunks": store.count_chunks(where=sql_in("document_id", list(found))),
            "pinned_by": [],
            "dry_run": dry_run,
            "tainted": taint.to_dict(),
        }
        if not dry_run:
            done = delete_documents(store, found)
            summary |= {"chunks": done.chunks, "pinned_by": list(done.pinned_by)}
        return {**summary, "snapshot": store.snapshot()}

    run_command(work, as_json=as_json, render=render_delete)


def render_delete(summary: Mapping[str, Any]) -> str:
    """A deletion for people."""
    verb = "Would delete" if summary["dry_run"] else "Deleted"
    lines = [f"{verb} {len(summary['documents'])} documents, {summary['chunks']} chunks:"]
    lines += [f"  {source}" for source in summary["sources"]]
    if summary["pinned_by"]:
        tags = ", ".join(summary["pinned_by"])
        lines.append(f"Older states still hold the bytes, pinned by the tags: {tags}")
    for kind, names in summary["tainted"].items():
        lines.append(f"Tainted {kind}: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Hits = None,
    mode: Annotated[str | None, typer.Option(help="hybrid, vector or text.")] = None,
    where: Filter = None,
    at: At = "",
    collection: Collections = None,
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Look into the feature store."""
    values = {"retrieval.k": k, "retrieval.mode": mode}

    def work(_: Progress) -> dict[str, Any]:
        settings = settings_from(config, overrides, values)
        from rag_fti.feature_store import FeatureStore
        from rag_fti.retrieval import build_retriever
        from rag_fti.retrieval.filters import require_collections

        storage = settings.storage
        store = FeatureStore.open(storage.features_uri, options=storage.options)
        require_collections(store, collection, at=at)
        retriever = build_retriever(settings, store=store)
        found = retriever.retrieve(query, where=where, at=at, collections=collection)
        return {
            "snapshot": found.snapshot,
            "hits": [hit.to_dict() for hit in found.hits],
            "seconds": round(found.seconds, 4),
        }

    run_command(work, as_json=as_json, render=render_search)


def render_search(summary: Mapping[str, Any]) -> str:
    """Hits for people: where each is and how it begins."""
    if not summary["hits"]:
        return f"No hits in snapshot {summary['snapshot']}."
    lines = []
    for number, hit in enumerate(summary["hits"], start=1):
        page = f", page {hit['page']}" if hit["page"] else ""
        label = " > ".join(part for part in (hit["title"], hit["heading"]) if part)
        text = " ".join(hit["text"].split())
        short = text if len(text) <= _SNIPPET_CHARS else text[:_SNIPPET_CHARS].rstrip() + " …"
        lines += [
            f"{number}. {hit['source']}{page} [{hit['start']}:{hit['end']}]  {hit['score']:.3f}",
            f"   {label}",
            f"   {short}",
        ]
    return "\n".join(lines)


def validate(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Judge the newest snapshot of the feature store and tag it as validated."""

    def work(progress: Progress) -> dict[str, Any]:
        settings = settings_from(config, overrides)
        from pipelines import feature_validation

        return feature_validation.run(settings, progress=progress, dry_run=dry_run).to_dict()

    run_command(work, as_json=as_json, render=render_validation)


def render_validation(summary: Mapping[str, Any]) -> str:
    """A validation for people."""
    facts = summary["facts"]
    kind = facts["search_policy"]["kind"]
    searched = "exact search" if kind == "none" else f"{kind} index"
    state = "passed and is tagged validated" if summary["validated"] else "passed (not tagged)"
    lines = [
        f"Snapshot {summary['snapshot']} {state}: {facts['documents']} documents, "
        f"{facts['chunks']} chunks.",
        f"Recall@10 {facts['recall']:.3f} ({searched}), duplicate rate "
        f"{facts['duplicate_rate']:.3f}, newest document {facts['age_hours']:.1f} h old.",
    ]
    lines += [f"Nearly the same: {', '.join(group)}" for group in facts["near_duplicates"]]
    if summary["contract"]["missed"]:
        lines.append(f"Missed: {', '.join(summary['contract']['missed'])}")
    return "\n".join(lines)


def monitor(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Measure counts, freshness and drift of the feature store, and how answers fare."""

    def work(progress: Progress) -> dict[str, Any]:
        settings = settings_from(config, overrides)
        from pipelines import feature_monitoring

        return feature_monitoring.run(settings, progress=progress, dry_run=dry_run).to_dict()

    run_command(work, as_json=as_json, render=render_monitoring)


def render_monitoring(summary: Mapping[str, Any]) -> str:
    """Monitoring for people."""
    metrics = summary["metrics"]
    lines = [
        f"{metrics['documents']} documents, {metrics['chunks']} chunks in {metrics['snapshot']}; "
        f"{metrics['reference_documents']} and {metrics['reference_chunks']} in "
        f"{metrics['reference']}.",
        f"Newest document {metrics['freshness_seconds'] / 3600:.1f} h old.",
        f"Drift (PSI): embeddings {metrics['embedding_psi']:.3f}, lengths "
        f"{metrics['length_psi']:.3f}, languages {metrics['language_psi']:.3f}"
        + (" - above the alarm level" if summary["drift"] else ""),
        f"{metrics['requests']} logged answers, {metrics['abstention_rate']:.0%} abstained.",
    ]
    return "\n".join([*lines, *summary["files"].values()])
