"""The ``rag-fti`` command."""

from __future__ import annotations

import io
import sys

import typer

from pipelines.commands import datasets, features, inference, operations, training
from pipelines.commands.json_errors import JsonErrorsGroup

app = typer.Typer(
    name="rag-fti",
    cls=JsonErrorsGroup,
    help="Feature, training and inference pipelines for retrieval-augmented LLMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for group in (features, datasets, training, inference, operations):
    group.register(app)


def main() -> None:
    """Entry point of the ``rag-fti`` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or file that lacks a character shows its code instead.
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
