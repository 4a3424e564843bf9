"""Usage errors as JSON, where JSON was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

UsageError: Any = typer.BadParameter.__base__
"""An unknown command or option, a missing argument."""


class JsonErrorsGroup(TyperGroup):
    """A group whose ``--json`` holds for wrong usage too: one object on stdout, exit code 2."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run a command; see :meth:`typer.core.TyperGroup.main`."""
        if "--json" not in (sys.argv[1:] if args is None else args):
            return super().main(args, *more, **options)
        try:
            code = super().main(args, *more, **{**options, "standalone_mode": False})
        except UsageError as error:
            command = error.ctx.command_path if error.ctx is not None else "rag-fti"
            shown = {
                "type": "UsageError",
                "message": error.format_message(),
                "next_step": f"{command} --help lists what there is.",
            }
            sys.stdout.write(json.dumps({"error": shown}, ensure_ascii=False) + "\n")
            sys.exit(error.exit_code)
        sys.exit(code)
