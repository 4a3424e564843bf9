"""Commands of the inference pipelines: ``serve``, ``ask``, ``batch``, ``keys``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    ConfigFiles,
    Json,
    run_command,
    settings_from,
    split_overrides,
)
from rag_fti.progress import Progress


def register(app: typer.Typer) -> None:
    """Add this group's commands to ``app``."""
    app.command("ask", no_args_is_help=True)(ask)


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="QUESTION [KEY=VALUE]...", help="What to ask.")
    ],
    config: ConfigFiles = None,
    model: Annotated[str, typer.Option("--model", help="name@version, an alias, or base.")] = "",
    k: Annotated[int | None, typer.Option("-k", help="Passages to retrieve.")] = None,
    where: Annotated[
        str | None, typer.Option("--filter", help="SQL over the chunk columns.")
    ] = None,
    at: Annotated[str, typer.Option("--at", help="Snapshot or tag to read.")] = "",
    collection: Annotated[
        list[str] | None, typer.Option("--collection", help="Only this one; may be repeated.")
    ] = None,
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
