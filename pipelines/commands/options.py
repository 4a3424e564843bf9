"""Options that every command shares, and the one way a command runs, prints and exits."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.console import set_up_logging, stderr, terminal_progress
from rag_fti.config import Settings, load_settings
from rag_fti.errors import ConfigError, RagFtiError
from rag_fti.progress import Progress, Silent

logger = logging.getLogger(__name__)

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="YAML file; may be given again, later files win."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings, for example retrieval.k=8."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")]
Hits = Annotated[int | None, typer.Option("-k", help="Most passages.")]
Filter = Annotated[
    str | None, typer.Option("--filter", help="SQL over chunk columns, e.g. \"source = 'a.md'\"")
]
At = Annotated[str, typer.Option("--at", help="Snapshot or tag to read; empty is the newest.")]
Collections = Annotated[
    list[str] | None,
    typer.Option("--collection", help="Only this collection; may be given again."),
]
Model = Annotated[str, typer.Option("--model", help="name@version, an alias, or base.")]
QuestionFiles = Annotated[
    list[Path] | None, typer.Option(help="Question file; may be given again.")
]
NewDirectory = Annotated[Path, typer.Argument(help="Directory that does not exist yet.")]

COMMITTED = "What was committed is kept; run the command again to go on."
_STDOUT = "stdout"
_OVERRIDE = re.compile(r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)+=")


def split_overrides(items: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional words as (plain arguments, ``section.key=value`` overrides).

    An existing file of that name counts as a plain argument.
    """
    plain: list[str] = []
    overrides: list[str] = []
    for item in items:
        target = overrides if _OVERRIDE.match(item) and not Path(item).exists() else plain
        target.append(item)
    return plain, overrides


def settings_from(
    config: Sequence[Path] | None,
    overrides: Sequence[str] | None,
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings of a command; ``values`` are options that were given (None ones are left out)."""
    given = {key: value for key, value in (values or {}).items() if value is not None}
    return load_settings(tuple(config or ()), tuple(overrides or ()), values=given)


def run_command(
    work: Callable[[Progress], Mapping[str, Any]],
    *,
    as_json: bool,
    render: Callable[[Mapping[str, Any]], str],
    failed: Callable[[Mapping[str, Any]], bool] = lambda _: False,
    interrupted: str = "Run the command again.",
) -> None:
    """Run a command's work, print its result and leave with the right exit code.

    Args:
        work: Does everything, settings included, and returns a JSON-ready summary.
        as_json: Print the summary as JSON instead of text.
        render: The summary as text for people.
        failed: Whether a finished run still counts as failed (exit 1).
        interrupted: What to do after Ctrl-C.

    Raises:
        typer.Exit: With 1, 2 or 3 when the work failed, as the error says.
    """
    try:
        set_up_logging()
        if as_json and not stderr.is_terminal:
            summary = work(Silent())
        else:
            with terminal_progress() as progress:
                summary = work(progress)
        _print_summary(summary, as_json=as_json, render=render)
    except RagFtiError as error:
        _print_error(error, as_json=as_json)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        if as_json:
            shown = {"type": "Interrupted", "message": "Interrupted.", "next_step": interrupted}
            _write_out(json.dumps({"error": shown}))
        else:
            stderr.print(f"Interrupted. {interrupted}")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(1) from None
    except OSError as error:
        # A full disk, a folder that may not be written: no fault of the program's.
        place = f" {error.filename}" if error.filename else ""
        refused = RagFtiError(
            f"The system refused access to{place}: {error.strerror or error}.",
            next_step="Check that the place exists, may be written and has room.",
        )
        on_stdout = as_json and error.filename != _STDOUT
        _print_error(refused, as_json=on_stdout, cause=error)
        raise typer.Exit(refused.exit_code) from error
    except Exception as error:
        if as_json:  # the trace goes to stderr; scripts still get their one object
            fault = RagFtiError(
                f"{type(error).__name__}: {error}",
                next_step="This is a fault of the program; the trace on stderr says where.",
            )
            _print_error(fault, as_json=True, cause=error)
        raise
    if failed(summary):
        raise typer.Exit(1)


def _write_out(text: str) -> None:
    """Write a line to stdout, if there is one.

    Raises:
        OSError: If it cannot be written; what was left of it is dropped, so that Python does not
            try again when it ends.
    """
    if sys.stdout is None:  # closed by who started the program
        return
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, _STDOUT) from error


def _print_summary(
    summary: Mapping[str, Any],
    *,
    as_json: bool,
    render: Callable[[Mapping[str, Any]], str],
) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes that a launcher started, the first speaks
    _write_out(json.dumps(summary, ensure_ascii=False) if as_json else render(summary).rstrip())


def _print_error(error: RagFtiError, *, as_json: bool, cause: BaseException | None = None) -> None:
    logger.debug("the command failed", exc_info=cause or error)
    if as_json:
        _write_out(json.dumps({"error": error.to_dict()}, ensure_ascii=False))
        return
    label = "Configuration error" if isinstance(error, ConfigError) else "Error"
    stderr.print(f"{label}: {error.message}", markup=False, soft_wrap=True)
    if error.next_step:
        stderr.print(f"Next: {error.next_step}", markup=False, soft_wrap=True)
