"""What the documents say is what the program does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipelines.cli import app
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "data/README.md",
    REPOSITORY / "deploy/README.md",
    REPOSITORY / "deploy/vllm/README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def test_reference_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "tools/write_reference.py", "--check"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def tracked_files() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    return listing.stdout.splitlines()


def test_the_tree_in_the_readme_matches_the_disk() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text.split("## The tree")[1].split("```")[1]
    named: set[str] = set()
    parent = ""
    for line in block.strip("\n").splitlines():
        name = line.split()[0]
        parent = name if not line.startswith(" ") else parent
        named.add(name if not line.startswith(" ") else parent + name)
    missing = sorted(name for name in named if not (REPOSITORY / name).exists())
    assert missing == []
    files = tracked_files()
    folders = {f"{f.split('/')[0]}/" for f in files if "/" in f and not f.startswith(".")}
    inside = {f"rag_fti/{f.split('/')[1]}" for f in files if f.startswith("rag_fti/")}
    library = {f"{i}/" if (REPOSITORY / i).is_dir() else i for i in inside}
    library -= {"rag_fti/__init__.py", "rag_fti/py.typed"}
    assert sorted((folders | library) - named) == []


def documented_commands() -> list[str]:
    found = []
    for page in PAGES:
        if page.name == "cli.md":  # generated, see above
            continue
        for line in page.read_text(encoding="utf-8").splitlines():
            match = re.match(r"^(?: {4,}|\$ |\s*)?(rag-fti [a-z].*)$", line)
            if match and "|" not in match[1]:
                found.append(match[1].split("   ")[0].split(" # ")[0].rstrip("\\ ").strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_exists_with_its_options(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = [word for word in shlex.split(line)[1:] if not word.startswith(">")]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command.name != "rag-fti", line
    command = getattr(command, "default", command)
    assert not hasattr(command, "commands") or not words, line
    known = {name for p in command.params for name in [*p.opts, *p.secondary_opts]}
    used = {word.split("=")[0] for word in words if word.startswith("-")}
    assert used - known - {"--help"} == set(), line


def anchors_of(page: Path) -> set[str]:
    """Names that headings of a page have, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors_of(target)):
                broken.append(f"{page.name} → {link}")
    assert broken == []


def test_tests_that_pages_name_exist() -> None:
    missing = []
    for page in PAGES:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
        for file, function in named:
            path = REPOSITORY / file
            if not path.exists() or f"def {function}(" not in path.read_text(encoding="utf-8"):
                missing.append(f"{page.name} → {file}::{function}")
    assert missing == []


def test_no_tracked_file_names_a_machine_path() -> None:
    pattern = re.compile(r"/(?:root|home|Users)/[a-z]")
    found = [
        name
        for name in tracked_files()
        if Path(name).suffix in {".py", ".md", ".yaml", ".toml", ".js", ".json", ".html"}
        and (REPOSITORY / name).is_file()
        and not name.startswith(("data/sample/corpus", "tests/guards"))
        and pattern.search((REPOSITORY / name).read_text(encoding="utf-8"))
    ]
    assert found == []
