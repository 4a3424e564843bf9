"""The walls between the parts, read from the import statements."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def modules_of(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module name imported anywhere in a file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def violations(folder: str, *, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in modules_of(folder)
        for name in sorted(imports_of(path))
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


def test_the_library_imports_no_program() -> None:
    assert violations("rag_fti", forbidden=("pipelines", "serving", "tests")) == []


@pytest.mark.parametrize("part", ["features", "training", "inference"])
def test_the_three_parts_never_import_one_another(part: str) -> None:
    others = tuple(f"rag_fti.{p}" for p in ("features", "training", "inference") if p != part)
    assert violations(f"rag_fti/{part}", forbidden=others) == []


def test_only_the_feature_store_imports_lancedb() -> None:
    found = [
        line
        for folder in ("rag_fti", "pipelines", "serving")
        for line in violations(folder, forbidden=("lancedb", "lance"))
        if not line.startswith("rag_fti/feature_store/")
    ]
    assert found == []


def test_only_models_and_training_import_the_model_libraries() -> None:
    heavy = ("torch", "transformers", "peft", "sentence_transformers", "trl", "accelerate")
    found = [
        line
        for folder in ("rag_fti", "pipelines", "serving")
        for line in violations(folder, forbidden=heavy)
        if not line.startswith(("rag_fti/models/", "rag_fti/training/"))
    ]
    assert found == []


def test_pipelines_do_not_call_one_another() -> None:
    # demo is the composition that a scheduler would be; the commands start one pipeline each.
    names = [p.stem for p in (REPOSITORY / "pipelines").glob("*.py")]
    programs = [n for n in names if n not in ("__init__", "cli", "console", "demo")]
    found = [
        f"{program} imports {name}"
        for program in programs
        for name in sorted(imports_of(REPOSITORY / "pipelines" / f"{program}.py"))
        if name.startswith("pipelines.")
        and name.split(".")[1] in set(programs) - {program} | {"demo"}
    ]
    assert found == []


def test_the_core_needs_only_numpy_and_pyarrow() -> None:
    allowed = {"numpy", "pyarrow", "rag_fti", *sys.stdlib_module_names}
    found = [
        f"{name}.py imports {imported}"
        for name in ("errors", "ids", "schemas", "contracts", "files", "prompts", "protocols")
        for imported in sorted(imports_of(REPOSITORY / "rag_fti" / f"{name}.py"))
        if imported.split(".")[0] not in allowed
    ]
    assert found == []


HEAVY = "{'torch', 'transformers', 'lancedb', 'sentence_transformers', 'fastapi', 'datasets'}"


@pytest.mark.parametrize("module", ["rag_fti.config", "pipelines.cli"])
def test_cheap_modules_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_contract_can_be_read_without_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from pipelines.commands.operations import contracts_by_pipeline\n"
        "assert contracts_by_pipeline()\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
