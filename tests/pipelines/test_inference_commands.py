"""``ask``, ``batch``, ``serve`` and ``keys`` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from rag_fti.feature_store import FeatureStore
from tests.inference.tiny import save_tiny

SOURCE = "notes/lantern.md"
TEXT = "# Lantern\n\nThe attic lantern is lit by Cem Arslan every evening at seven.\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with one document and a tiny base model, made by the commands."""
    directory = tmp_path_factory.mktemp("root")
    (directory / "notes").mkdir()
    (directory / SOURCE).write_text(TEXT, encoding="utf-8")
    save_tiny(directory / "model", context=2048)
    (directory / "config.yaml").write_text(
        json.dumps(
            {
                "storage": {"root": str(directory / "data")},
                "generator": {"base_model": str(directory / "model"), "dtype": "float32"},
                "inference": {"max_tokens": 8},
                "embedder": {"dtype": "float32"},
            }
        ),
        encoding="utf-8",
    )
    made = run("ingest", str(directory / "notes"), "--config", str(directory / "config.yaml"))
    assert made.exit_code == 0, made.output
    return directory


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_ask_prints_the_promised_json_and_logs(root: Path) -> None:
    made = run("ask", "Who lights the lantern?", "--config", str(root / "config.yaml"), "--json")
    assert made.exit_code == 0, made.output
    body = json.loads(made.stdout)
    assert set(body) >= {"id", "answer", "abstained", "citations", "model", "snapshot"}
    assert body["model"] == str(root / "model")
    store = FeatureStore.open(str(root / "data" / "features"))
    assert body["id"] in store.rows("inference_log")["response_id"].to_pylist()
    text = run("ask", "Who lights it?", "-k", "1", "--config", str(root / "config.yaml"))
    assert text.exit_code == 0
    assert body["snapshot"] in text.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["ask", "Who?", "--model", "nobody"], 1, "nobody"),
        (["ask", "Who?", "--model", "assistant@4"], 1, "assistant@4"),
        (["ask", " "], 2, "empty"),
        (["ask", "Who?", "--at", "d77c77"], 1, "77"),
        (["ask", "Who?", "--filter", "x; y"], 2, "semicolons"),
        (["ask", "Who?", "retrieval.kk=3"], 2, "did you mean"),
        (["batch", "missing.csv", "--out", "x.jsonl"], 1, "missing.csv"),
        (["batch", "missing.csv", "--out", "x.doc"], 2, "format"),
        (["serve", "--host", "0.0.0.0"], 2, "keys add"),
        (["serve", "--host", "203.0.113.7", "--keys-file", "/dev/null"], 2, "Cannot listen"),
        (["serve", "--model", "assistant@4", "--port", "0"], 1, "assistant@4"),
        (["serve", "--keys-file", "missing.yaml", "--port", "0"], 2, "keys add"),
        (["keys", "remove", "nobody"], 2, "nobody"),
    ],
)
def test_mistakes_get_one_clear_message_and_the_right_exit_code(
    root: Path, arguments: list[str], code: int, word: str
) -> None:
    made = run(*arguments, "--config", str(root / "config.yaml"))
    assert made.exit_code == code, made.output
    assert word in made.output.replace("\n", " ")
    assert "Traceback" not in made.output


def test_keys_are_added_listed_and_removed(root: Path) -> None:
    config = ("--config", str(root / "config.yaml"))
    added = json.loads(run("keys", "add", "ada", "--scope", "chat", "--json", *config).stdout)
    assert added["key"].startswith("rag-")
    listed = json.loads(run("keys", "list", "--json", *config).stdout)
    assert [key["name"] for key in listed["keys"]] == ["ada"]
    assert "sha256" not in json.dumps(listed)
    assert run("keys", "add", "ada", *config).exit_code == 2
    assert run("keys", "remove", "ada", *config).exit_code == 0
    assert json.loads(run("keys", "list", "--json", *config).stdout)["keys"] == []


@pytest.fixture(scope="module")
def server(root: Path, repository_root: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "serve", "--config", str(root / "config.yaml"),
         "--port", str(port)],
        cwd=repository_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.2)
    yield process, url
    if process.poll() is None:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def repository_root() -> Path:
    return Path(__file__).resolve().parents[2]


def test_a_served_process_answers_and_a_second_one_says_the_port_is_taken(
    root: Path, server: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, url = server
    assert process.poll() is None, process.stdout.read() if process.stdout else ""
    body = httpx.post(
        f"{url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Who lights the lantern?"}]},
        timeout=60,
    ).json()
    assert body["choices"][0]["finish_reason"] in ("stop", "length")
    port = url.rpartition(":")[2]
    second = run("serve", "--config", str(root / "config.yaml"), "--port", port)
    assert second.exit_code == 1
    assert f"Port {port}" in second.output


def test_a_signal_stops_it_cleanly_and_the_log_is_complete(
    root: Path, server: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, url = server
    ids = []
    for _ in range(3):
        body = httpx.post(
            f"{url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Who lights the lantern?"}]},
            timeout=60,
        ).json()
        ids.append(body["id"])
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    output = process.stdout.read().decode()
    assert process.wait(timeout=60) == 0
    assert "Stopped." in output
    assert "Traceback" not in output
    store = FeatureStore.open(str(root / "data" / "features"))
    assert set(ids) <= set(store.rows("inference_log")["response_id"].to_pylist())
