"""Reading settings: defaults < profile or YAML file < ``key=value`` overrides."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rag_fti.config.settings import Settings
from rag_fti.errors import ConfigError

ROOT_VARIABLE = "RAG_FTI_ROOT"


def load_settings(
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from YAML files and overrides.

    Args:
        files: YAML files, later ones win: for example a profile, then your own.
        overrides: ``section.key=value`` strings; the value is read as YAML, its words and numbers
            as the type of the key asks.
        environment: Environment variables; None reads the process's own.
        values: Dotted keys to values set by command options; they win over everything.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value does not fit.
    """
    environment = os.environ if environment is None else environment
    tree: dict[str, Any] = {}
    if root := environment.get(ROOT_VARIABLE):
        tree["storage"] = {"root": root}
    for file in files:
        _merge(tree, read_yaml(file))
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not all(key.strip().split(".")):
            raise ConfigError(
                f"Cannot read the override {item!r}.",
                next_step="Write key=value, for example retrieval.k=8.",
            )
        try:
            value = yaml.load(text, Loader=_Texts)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {item!r} is not valid YAML: {error}.") from error
        _assign(tree, key.strip(), value)
    for key, value in (values or {}).items():
        _assign(tree, key, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        where = f" in {', '.join(map(str, files))}" if files else ""
        raise ConfigError(
            f"Configuration{where} does not fit: {_describe(error)}",
            next_step="All keys are listed in docs/configuration.md.",
        ) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: If it is missing, unreadable, no YAML or no mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read the configuration file {file}: {error}.",
            next_step="Give an existing YAML file to --config.",
        ) from error
    try:
        content = yaml.load(text, Loader=_Texts)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} holds a {type(content).__name__}, expected a mapping of sections.",
            next_step="Start from one of the files in configs/.",
        )
    return {key: {} if value is None else value for key, value in content.items()}


class _Texts(yaml.SafeLoader):
    """A safe loader that leaves words and numbers as they are written, for the settings to read.

    By itself it would make ``off`` and ``no`` false, ``007`` seven and ``1:30`` ninety. A key that
    stands twice is an error (YAML would drop the first), and so is a value that holds itself.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base class has it
        first: [(tag, form) for tag, form in known if tag.endswith((":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # else a value that holds itself would be built

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for key in keys:
            if names.count(key.value) > 1:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


def _merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        current = tree.get(key)
        if isinstance(current, dict) and isinstance(value, Mapping):
            _merge(current, value)
        elif not (isinstance(current, dict) and value is None):
            tree[key] = value


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"{dotted!r} goes through {parent!r}, which is a value.",
                next_step="All keys are listed in docs/configuration.md.",
            )
        node = child
    node[last] = value


def _describe(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        path = [str(step) for step in problem["loc"] if step not in ("local", "openai")]
        dotted = ".".join(path) or "(top level)"
        if problem["type"] == "extra_forbidden":
            parts.append(f"unknown key {dotted!r}{_suggestion(path)}")
        else:
            parts.append(f"{dotted}: {problem['msg']} (got {problem.get('input')!r})")
    return "; ".join(parts) + "."


def _suggestion(path: Sequence[str]) -> str:
    model: type[BaseModel] = Settings
    for step in path[:-1]:
        annotation: Any = (
            model.model_fields[step].annotation if step in model.model_fields else None
        )
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    close = difflib.get_close_matches(path[-1], list(model.model_fields), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
