"""Bad input: the right exit code, one clear message, no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from pipelines import ingest
from pipelines.cli import app
from pipelines.commands.options import run_command, split_overrides
from rag_fti.contracts import ContractRun


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The command, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, list(words))


CASES = [
    (["ingest", "no/such/path"], 1, "no/such/path"),
    (["ingest"], 2, "Nothing to ingest"),
    (["ingest", ".", "chunking.max_tokns=3"], 2, "did you mean 'max_tokens'"),
    (["ingest", ".", "chunking.max_tokens=many"], 2, "chunking.max_tokens"),
    (["ingest", ".", "--config", "none.yaml"], 2, "none.yaml"),
    (["ingest", ".", "--engine", "spark"], 2, "spark"),
    (["search", "anything"], 1, "rag-fti ingest"),
    (["ask", "anything"], 1, "rag-fti ingest"),
    (["serve", "serving.host=0.0.0.0"], 2, "keys"),
    (["dataset", "build"], 3, "rag-fti ingest"),
    (["validate"], 3, "rag-fti ingest"),
    (["monitor"], 3, "rag-fti ingest"),
    (["dataset", "show", "nothing@latest"], 1, "nothing"),
    (["train"], 1, "rag-fti dataset build"),
    (["train", "--dataset", "handbook@latest", "training.epochs=1"], 1, "handbook@latest"),
    (["train", "training.epoks=1"], 2, "did you mean 'epochs'"),
    (["train", "bundel"], 2, "bundel"),
    (["train", "bundle", "out", "--dataset", "handbook@latest"], 1, "handbook@latest"),
    (["models", "shew"], 2, "shew"),
    (["evaluate", "assistant@7"], 1, "assistant"),
    (["evaluate", "a@7", "evaluation.gates=[{name: g, metric: bleu, minimum: 0}]"], 2, "bleu"),
    (["promote", "assistant@7"], 1, "assistant"),
    (["contracts", "baking"], 2, "baking"),
    (["lineage", "unknown"], 1, "rag-fti ingest"),
    (["replay", "unknown"], 1, "rag-fti ingest"),
    (["bake"], 2, "bake"),
    (["status", "--colour"], 2, "--colour"),
    (["status", f"storage.root={__file__}"], 2, "expected a directory"),
]


@pytest.mark.parametrize(("words", "code", "named"), CASES, ids=lambda v: str(v))
def test_bad_input_exits_with_one_clear_message(
    invoke: object, words: list[str], code: int, named: str
) -> None:
    result: Result = invoke(*words)  # type: ignore[operator]
    assert result.exit_code == code, result.output
    assert named in result.output
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_an_error_as_json_is_one_object_on_stdout(invoke: object) -> None:
    result: Result = invoke("ask", "anything", "--json")  # type: ignore[operator]
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert set(error) == {"type", "message", "next_step"}


@pytest.mark.parametrize(
    "words", [["bake"], ["status", "--colour"], ["search", "x", "-k", "many"], ["train", "bundel"]]
)
def test_wrong_usage_as_json_is_one_object_on_stdout(invoke: object, words: list[str]) -> None:
    result: Result = invoke(*words, "--json")  # type: ignore[operator]
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"
    assert result.stderr == ""


def test_a_fault_of_the_program_as_json_is_one_object_and_a_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda _: {"x": 1 / 0}, as_json=True, render=str)
    assert "ZeroDivisionError" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_place_that_cannot_be_written_is_one_clear_message(
    invoke: object, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" / "data"
    result: Result = invoke("validate", f"storage.root={root}", "--json")  # type: ignore[operator]
    assert result.exit_code == 1, result.output
    assert str(tmp_path / "file") in json.loads(result.stdout)["error"]["message"]


def test_an_interruption_as_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        run_command(stop, as_json=True, render=str)
    assert caught.value.exit_code == 130
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "Interrupted"


@pytest.mark.parametrize(
    ("shell", "code", "told"),
    [
        ("status --json > /dev/full", 1, "refused access"),
        ("status >&-", 0, ""),
        ("PYTHONIOENCODING=latin-1 contracts ingest", 0, ""),
        ("PYTHONIOENCODING=latin-1 lineage 日本.md --json", 1, ""),
    ],
)
def test_a_stdout_that_cannot_take_everything_is_no_fault(
    tmp_path: Path, repository: Path, shell: str, code: int, told: str
) -> None:
    command = re.sub(r"^(\w+=\S+ )?", rf"\1{sys.executable} -m pipelines.cli ", shell)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        check=False,
    )
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == code, errors
    assert told in errors and "Traceback" not in errors


def test_a_log_level_that_is_none_is_one_clear_message(
    invoke: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_FTI_LOG_LEVEL", "loud")
    result: Result = invoke("status", "--json")  # type: ignore[operator]
    assert result.exit_code == 2, result.output
    assert "LOUD" in json.loads(result.stdout)["error"]["message"]


def test_a_log_line_in_a_file_is_one_line() -> None:
    program = (
        "import logging; from pipelines.console import set_up_logging; set_up_logging(); "
        "logging.warning('word ' * 60)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert "WARNING" in line


def test_a_port_in_use_is_one_clear_message(invoke: object) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result: Result = invoke("serve", f"serving.port={port}")  # type: ignore[operator]
    assert result.exit_code in (1, 2)
    assert str(port) in result.output
    assert "Traceback" not in result.output


def test_status_and_contracts_work_on_an_empty_folder(invoke: object) -> None:
    status: Result = invoke("status", "--json")  # type: ignore[operator]
    assert status.exit_code == 0, status.output
    assert json.loads(status.stdout)["features"]["exists"] is False
    shown: Result = invoke("contracts", "--json")  # type: ignore[operator]
    assert shown.exit_code == 0
    declared = {c["pipeline"] for c in json.loads(shown.stdout)["contracts"]}
    assert declared >= {"ingest", "instruction_dataset", "training", "model_validation"}
    readable: Result = invoke("contracts", "training")  # type: ignore[operator]
    assert "precondition" in readable.output
    assert invoke("contracts", "storage.root=elsewhere").exit_code == 0  # type: ignore[operator]


def test_status_tells_a_run_that_stopped_from_one_that_ended(
    invoke: object, tmp_path: Path
) -> None:
    report = tmp_path / "data" / "reports" / "ingest" / "r1.json"
    started = ContractRun(ingest.CONTRACT, run_id="r1", report_path=report)
    started.require({"paths_given": True, "embedder_mismatch": ""})
    assert "stopped before its end" in invoke("status").output  # type: ignore[operator]
    started.finish({"seconds_over_allowance": 0.0})
    assert "contract kept" in invoke("status").output  # type: ignore[operator]


def test_help_names_every_command(invoke: object) -> None:
    result: Result = invoke("--help")  # type: ignore[operator]
    assert result.exit_code == 0
    daily = ["ingest", "delete", "search", "serve", "ask", "batch", "status", "demo"]
    building = ["dataset", "train", "evaluate", "promote", "rollback", "models"]
    watching = ["validate", "monitor", "contracts", "lineage", "replay"]
    for command in daily + building + watching:
        assert command in result.output


def test_a_group_that_is_a_command_shows_its_options_and_keeps_its_commands(
    invoke: object,
) -> None:
    train: Result = invoke("train", "--help")  # type: ignore[operator]
    assert "rag-fti train [OPTIONS] [KEY=VALUE]" in train.output
    assert all(text in train.output for text in ("--dataset", "--resume", "train bundle OUT"))
    bundle: Result = invoke("train", "bundle", "--help")  # type: ignore[operator]
    assert "--include-base-model" in bundle.output
    models: Result = invoke("models", "--help")  # type: ignore[operator]
    assert "merge" in models.output and "rollback" in models.output
    assert invoke("models").output == invoke("models", "list").output  # type: ignore[operator]


def test_overrides_are_told_from_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.b=c").touch()
    assert split_overrides(["docs", "retrieval.k=3", "a.b=c", "x=y"]) == (
        ["docs", "a.b=c", "x=y"],
        ["retrieval.k=3"],
    )
