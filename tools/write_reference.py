"""Write docs/cli.md and docs/configuration.md from the program itself.

With ``--check`` nothing is written and the exit code is 1 when a page is out of date.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipelines.cli import app
from rag_fti.config import Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"


def command_pages(command: Any, path: str) -> Iterator[str]:
    """One section per command, groups first; a group that is also a command is shown as that."""
    shown = getattr(command, "default", command)
    context = shown.make_context(path, [], resilient_parsing=True)
    lines = [f"## {path}", "", (shown.help or "").split("\f")[0].strip(), ""]
    usage = " ".join(shown.collect_usage_pieces(context))
    lines += ["```", f"{path} {usage}".rstrip(), "```", ""]
    rows = []
    for parameter in shown.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            text = (parameter.help or "").replace("|", "\\|")
            rows.append(f"| `{names}` | {text} |")
    if rows:
        lines += ["| option | meaning |", "| --- | --- |", *rows, ""]
    yield "\n".join(lines)
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from command_pages(child, f"{path} {name}")


def cli_page() -> str:
    """docs/cli.md."""
    head = (
        "# Commands\n\nWritten by `make docs` from the program itself; a test keeps it current.\n\n"
        "Every command takes `--config FILE` (again and again, later files win); all but `keys` "
        "take `section.key=value` overrides, all but `serve` take `--json`. Exit codes: 0 done, "
        "1 failed, 2 bad usage or configuration, 3 contract violated, 130 interrupted. "
        "`RAG_FTI_LOG_LEVEL` (DEBUG, INFO, WARNING, ERROR) sets what is logged on stderr.\n\n"
    )
    command = typer.main.get_command(app)
    return head + "\n".join(command_pages(command, "rag-fti"))


def type_name(annotation: Any) -> str:
    """A type as a reader would write it."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    if issubclass(annotation, BaseModel):
        return "mappings"
    return {"NoneType": "nothing", "str": "text", "Path": "path"}.get(
        annotation.__name__, annotation.__name__
    )


def limits(field: FieldInfo) -> str:
    """The bounds of a field, such as ``>= 1``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    )


def shown(value: Any) -> str:
    """A default as it would stand in YAML."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple) and value:
        return "see below" if isinstance(value[0], BaseModel) else ", ".join(map(shown, value))
    if isinstance(value, BaseModel | dict):
        return "empty" if value == {} else "see below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return {"": "empty", "()": "empty", "None": "none"}.get(str(value), f"`{value}`")


def section_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Table rows of a section and the sections inside it."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from section_rows(annotation, f"{prefix}{name}.")
            continue
        kind = type_name(annotation)
        bounds = limits(field)
        text = " ".join((field.description or "").split()).replace("|", "\\|").replace("``", "`")
        default = shown(field.get_default(call_default_factory=True))
        yield f"| `{prefix}{name}` | {kind} {bounds}".rstrip() + f" | {default} | {text} |"
        if kind.startswith("list of "):
            for item in models_of(annotation):
                yield from section_rows(item, f"{prefix}{name}[].")


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The section classes in an annotation, several where a ``type`` picks one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_of(part)]


def configuration_page() -> str:
    """docs/configuration.md."""
    parts = [
        "# Configuration\n\nWritten by `make docs` from the program itself; a test keeps it "
        "current.\n\nValues come from the defaults below, then `--config` files in order, then "
        "`section.key=value` on the command line. Unknown keys are errors. Words and "
        "numbers are read as the type of their key asks (`off` and `007` are text where text is "
        "wanted), and one value may stand for a list of one. `RAG_FTI_ROOT` sets the default of "
        "`storage.root`.\n"
    ]
    for name, field in Settings.model_fields.items():
        models = models_of(field.annotation)
        for model in models:
            kind = model.model_fields.get("type")
            variant = f" ({type_name(kind.annotation)})" if kind and len(models) > 1 else ""
            parts.append(f"## {name}{variant}\n")
            parts.append(" ".join((model.__doc__ or "").split()) + "\n")
            parts.append("| key | type | default | meaning |\n| --- | --- | --- | --- |")
            parts.append("\n".join(section_rows(model, f"{name}.")) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check the pages."""
    check = "--check" in sys.argv[1:]
    stale = []
    for file, text in (("cli.md", cli_page()), ("configuration.md", configuration_page())):
        path = DOCS / file
        text = text.rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(file)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run make docs\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
