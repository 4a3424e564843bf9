"""Commands of the inference pipelines: ``serve``, ``ask``, ``batch``, ``keys``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
    Model,
    Overrides,
    run_command,
    settings_from,
    split_overrides,
)
from rag_fti.progress import Progress


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    app.command()(serve)
    app.command(no_args_is_help=True)(ask)
    app.command(no_args_is_help=True)(batch)
    keys = typer.Typer(help="API keys of the server.", no_args_is_help=True)
    keys.command("add", no_args_is_help=True)(add_key)
    keys.command("list")(list_keys)
    keys.command("remove", no_args_is_help=True)(remove_key)
    app.add_typer(keys, name="keys")


def serve(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 picks a free one.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="name@version, an alias, or a base model.")
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(help="File of hashed API keys.")] = None,
) -> None:
    """Serve the chat page and the OpenAI-compatible endpoint."""
    values = {
        "serving.host": host,
        "serving.port": port,
        "generator.model": model,
        "serving.keys_file": keys_file,
    }

    def work(progress: Progress) -> Mapping[str, Any]:
        settings = settings_from(config, overrides, values)
        from serving.server import serve as run_server

        progress.note(f"Loading {settings.generator.model} and {settings.embedder.model} …")
        run_server(
            settings,
            announce=lambda address, name: progress.note(
                f"{name} answers at {address} (chat page) and {address}/v1 (OpenAI-compatible). "
                "Ctrl-C stops."
            ),
        )
        return {}

    run_command(work, as_json=False, render=lambda _: "Stopped.")


def batch(
    questions: Annotated[
        Path, typer.Argument(help="Questions: JSONL, CSV, Parquet, or text lines.")
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write: .jsonl, .parquet or .csv.")],
    overrides: Overrides = None,
    config: ConfigFiles = None,
    model: Model = "",
    at: At = "",
    collection: Collections = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--restart", help="Go on with an interrupted run.")
    ] = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Answer a file of questions; an interrupted run goes on where it stopped."""

    def work(progress: Progress) -> Mapping[str, Any]:
        settings = settings_from(config, overrides, {"batch.resume": resume})
        from pipelines import batch_inference

        return batch_inference.run(
            settings,
            questions,
            out,
            model=model,
            at=at,
            collections=collection,
            progress=progress,
            dry_run=dry_run,
        ).to_dict()

    run_command(
        work,
        as_json=as_json,
        render=render_batch,
        failed=lambda summary: summary["failed"] > 0,
        interrupted=COMMITTED,
    )


def render_batch(summary: Mapping[str, Any]) -> str:
    """A batch run for people."""
    if summary["dry_run"]:
        return f"{summary['questions']} questions would be answered on {summary['snapshot']}."
    return (
        f"{summary['questions']} questions: {summary['answered']} answered, "
        f"{summary['abstained']} abstentions, {summary['failed']} failed\n"
        f"{summary['output']}  ({summary['model']} on {summary['snapshot']}, "
        f"{summary['seconds']:.1f} s)"
    )


KeyFileOption = Annotated[
    Path | None, typer.Option("--file", help="Key file; default <root>/keys.yaml.")
]


def add_key(
    name: Annotated[str, typer.Argument(help="Who the key is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="chat, search, ingest or admin; may be repeated."),
    ] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", help="A collection it may see; default is every one."),
    ] = None,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Limit of this key; 0 takes the server's.")
    ] = 0,
    file: KeyFileOption = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it once; only its hash is stored."""

    def work(_: Progress) -> Mapping[str, Any]:
        from serving import auth

        path = key_file(config, file)
        key, secret = auth.add_key(
            path,
            name=name,
            scopes=scope or ["chat", "search"],
            collections=collection or [],
            requests_per_minute=requests_per_minute,
        )
        return {**shown_key(key), "key": secret, "file": str(path)}

    run_command(
        work,
        as_json=as_json,
        render=lambda s: (
            f"{s['key']}\nThis is shown once. Serve with: rag-fti serve --keys-file {s['file']}"
        ),
    )


def list_keys(
    file: KeyFileOption = None, config: ConfigFiles = None, as_json: Json = False
) -> None:
    """List keys with their scopes and collections."""

    def work(_: Progress) -> Mapping[str, Any]:
        from serving import auth

        path = key_file(config, file)
        return {"file": str(path), "keys": [shown_key(key) for key in auth.read_keys(path)]}

    def render(summary: Mapping[str, Any]) -> str:
        lines = [
            f"{k['id']}  {k['name']}  scopes: {', '.join(k['scopes'])}  "
            f"collections: {', '.join(k['collections'])}"
            for k in summary["keys"]
        ]
        return "\n".join(lines) or f"No keys in {summary['file']}."

    run_command(work, as_json=as_json, render=render)


def remove_key(
    name: Annotated[str, typer.Argument(help="Name or id of the key.")],
    file: KeyFileOption = None,
    config: ConfigFiles = None,
    as_json: Json = False,
) -> None:
    """Revoke a key; running servers refuse it within seconds."""

    def work(_: Progress) -> Mapping[str, Any]:
        from serving import auth

        path = key_file(config, file)
        return {**shown_key(auth.remove_key(path, name)), "file": str(path)}

    run_command(work, as_json=as_json, render=lambda s: f"Removed {s['name']} from {s['file']}.")


def key_file(config: list[Path] | None, file: Path | None) -> Path:
    """The key file in force: the option, the configured one, or ``<root>/keys.yaml``."""
    settings = settings_from(config, None)
    return file or settings.serving.keys_file or settings.storage.root / "keys.yaml"


def shown_key(key: Any) -> dict[str, Any]:
    """A key without its hash."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "collections": list(key.collections),
        "requests_per_minute": key.requests_per_minute,
        "created_at": key.created_at,
    }


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="QUESTION [KEY=VALUE]...", help="What to ask.")
    ],
    config: ConfigFiles = None,
    model: Model = "",
    k: Hits = None,
    where: Filter = None,
    at: At = "",
    collection: Collections = None,
    as_json: Json = False,
) -> None:
    """Answer one question with citations."""

    def work(progress: Progress) -> Mapping[str, Any]:
        from pipelines.asking import ask_once

        plain, overrides = split_overrides(words)
        return ask_once(
            settings_from(config, overrides, {"retrieval.k": k}),
            " ".join(plain),
            model=model,
            where=where,
            at=at,
            collections=collection,
        )

    run_command(work, as_json=as_json, render=render_answer)


def render_answer(summary: Mapping[str, Any]) -> str:
    """An answer and its sources for people."""
    lines = [str(summary["answer"])]
    if summary["citations"]:
        lines.append("")
    for citation in summary["citations"]:
        page = f", page {citation['page']}" if citation["page"] else ""
        heading = f"  {citation['heading']}" if citation["heading"] else ""
        lines.append(
            f"[{citation['marker']}] {citation['source']}{page}{heading}, "
            f"characters {citation['start']} to {citation['end']}"
        )
    lines += ["", f"{summary['model']} on {summary['snapshot']}, {summary['id']}"]
    return "\n".join(lines)
