"""Deployment files start commands that exist, with options that exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from pipelines.cli import app
from rag_fti.config import load_settings
from rag_fti.registry import Registry
from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


def lists_of_words(node: Any) -> Iterator[list[str]]:
    """Every list of strings in a YAML document, wherever it stands."""
    if isinstance(node, list) and node and all(isinstance(item, str) for item in node):
        yield node
    elif isinstance(node, list | dict):
        for value in node.values() if isinstance(node, dict) else node:
            yield from lists_of_words(value)


def started_commands() -> Iterator[tuple[str, list[str]]]:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for path in sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.service")]):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".service":
            found = [shlex.split(line) for line in re.findall(r"(?m)^ExecStart=\S+ (.*)$", text)]
        else:
            documents = yaml.safe_load_all(text)
            found = [words for document in documents for words in lists_of_words(document)]
        for words in found:
            if words[0] in commands:
                yield path.relative_to(DEPLOY).as_posix(), words
    dockerfile = (DEPLOY / "compose/Dockerfile").read_text(encoding="utf-8")
    yield "compose/Dockerfile", json.loads(re.findall(r"(?m)^CMD (.*)$", dockerfile)[0])


STARTED = list(started_commands())


def test_every_kind_of_deployment_starts_something() -> None:
    assert {name.split("/")[0] for name, _ in STARTED} == {"compose", "kubernetes", "systemd"}


@pytest.mark.parametrize(("name", "words"), STARTED, ids=lambda value: str(value)[:40])
def test_started_commands_parse(name: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    arguments = list(words[1:])
    context = command.make_context(words[0], arguments, resilient_parsing=False)
    overrides = dict(
        word.split("=", 1) for word in words[1:] if "=" in word and not word.startswith("-")
    )
    assert context.params
    values = {key: yaml.safe_load(value) for key, value in overrides.items()}
    assert load_settings(values=values, environment={})


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    dockerfile = (DEPLOY / "compose/Dockerfile").read_text(encoding="utf-8")
    kept = (DEPLOY / "compose/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sources = [
        word for line in re.findall(r"(?m)^COPY (.*)$", dockerfile) for word in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in kept, source


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_unit_files_are_accepted(tmp_path: Path) -> None:
    units = []
    for path in sorted((DEPLOY / "systemd").iterdir()):
        text = path.read_text(encoding="utf-8").replace(
            "/opt/rag-fti/.venv/bin/rag-fti", "/bin/true"
        )
        (tmp_path / path.name).write_text(text, encoding="utf-8")
        units.append(str(tmp_path / path.name))
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Unknown" not in done.stderr


def serve_with_vllm(tmp_path: Path, reference: str) -> subprocess.CompletedProcess[str]:
    """Run ``serve.sh`` with a ``vllm`` that prints its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (programs / "rag-fti").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m pipelines.cli "$@"\n', encoding="utf-8"
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    return subprocess.run(
        ["sh", str(DEPLOY / "vllm/serve.sh"), reference, "some/base", "--seed", "1"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAG_FTI_ROOT": str(tmp_path / "data"),
        },
        check=False,
    )


def test_what_keeps_vllm_from_starting_is_said(tmp_path: Path) -> None:
    done = serve_with_vllm(tmp_path, "assistant@champion")
    assert done.returncode == 1
    assert "champion" in done.stderr and "rag-fti train" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [({"r": 12}, "16"), ({"r": 4}, "8"), ({"r": 64}, "64"), ({"r": 8, "use_dora": True}, None)],
)
def test_vllm_is_started_with_a_rank_that_it_takes(
    tmp_path: Path, adapter: dict[str, Any], expected: str | None
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    (files / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    registry = Registry.open(str(tmp_path / "data" / "registry"))
    version = registry.publish("assistant", files, {})
    registry.set_alias("assistant", "champion", 1, who="t", why="t")
    done = serve_with_vllm(tmp_path, "assistant@champion")
    if expected is None:
        assert done.returncode == 1
        assert "models merge" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["serve", "some/base"]
    assert words[words.index("--max-lora-rank") + 1] == expected
    assert words[words.index("--lora-modules") + 1] == f"assistant@1={version.path}"
    assert words[-2:] == ["--seed", "1"]
