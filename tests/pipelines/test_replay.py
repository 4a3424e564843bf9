"""``rag-fti replay``: answers come back as they were asked, whatever the settings are today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from rag_fti.config import load_settings
from serving.services import build_services
from tests.inference.tiny import save_tiny
from tests.serving.conftest import running

NOTES = {
    "lamp.md": "# Lamp\n\nThe attic lamp is lit by Cem Arslan every evening at seven.\n",
    "boat.md": "# Boat\n\nThe blue boat is rowed by Ida Holm to the lamp on the pier.\n",
    "bell.md": "# Bell\n\nThe bell beside the lamp is rung by Theo Vale at noon.\n",
}
QUESTION = "Who lights the lamp?"


def run(root: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--config", str(root / "config.yaml"), "--json"])
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections of notes and a tiny random model."""
    directory = tmp_path_factory.mktemp("root")
    save_tiny(directory / "model", context=2048)
    configuration = {
        "storage": {"root": str(directory / "data")},
        "generator": {"base_model": str(directory / "model"), "dtype": "float32"},
        "inference": {"max_tokens": 8},
        "embedder": {"dtype": "float32"},
    }
    (directory / "config.yaml").write_text(json.dumps(configuration), encoding="utf-8")
    for collection in ("harbour", "house"):
        notes = directory / collection
        notes.mkdir()
        for name, text in NOTES.items():
            (notes / name).write_text(text.replace("The", f"In the {collection} the"))
        run(directory, "ingest", str(notes), "--collection", collection)
    return directory


def test_unusual_settings_are_replayed_and_so_is_an_old_snapshot(root: Path) -> None:
    unusual = ("retrieval.mode=text", "retrieval.context_tokens=100", "inference.max_tokens=5")
    asked = run(root, "ask", QUESTION, "-k", "1", "--collection", "house", *unusual)
    (root / "house" / "lamp.md").write_text("# Lamp\n\nThe lamp is broken.\n", encoding="utf-8")
    run(root, "ingest", str(root / "house"), "--collection", "house")

    again = run(root, "replay", asked["id"])
    assert again["same"], again
    assert len(again["chunks"]["now"]) == 1
    assert again["answer"]["now"] == asked["answer"]
    assert again["snapshot"] == asked["snapshot"]
    assert again["notes"] == []
    # The same question with today's settings is another answer, so the log made the difference.
    today = run(root, "ask", QUESTION)
    assert today["snapshot"] != asked["snapshot"]
    assert today["answer"] != asked["answer"]


def test_a_conversation_is_replayed_with_its_turns_and_sampling(root: Path) -> None:
    settings = load_settings([root / "config.yaml"], environment={})
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who rows the blue boat?"},
            {"role": "assistant", "content": "Ida Holm. [1]"},
            {"role": "user", "content": "And where to?"},
        ],
        "k": 2,
        "collection": "harbour",
        "filter": "source NOT LIKE '%bell.md'",
        "temperature": 0.9,
        "top_p": 0.8,
        "seed": 11,
        "max_completion_tokens": 6,
    }
    with running(settings, build_services(settings)) as server, server.client() as client:
        asked = _chat(client, body)
        unseeded = _chat(client, {**body, "seed": None})
    again = run(root, "replay", asked["id"])
    assert again["same"], again
    assert again["notes"] == []
    traced = run(root, "lineage", asked["id"])
    assert [turn["role"] for turn in traced["settings"]["history"]] == ["user", "assistant"]
    assert traced["collections"] == ["harbour"]
    sampled = CliRunner().invoke(
        app, ["replay", unseeded["id"], "--config", str(root / "config.yaml")]
    )
    assert "without a seed" in sampled.output


def test_what_cannot_be_asked_again_says_why(root: Path) -> None:
    redacted = run(root, "ask", QUESTION, "inference.log_redact=true")
    error = run(root, "replay", redacted["id"], code=1)["error"]
    assert "without its question" in error["message"]
    assert "log_redact" in error["next_step"]

    with_remote = root / "remote.yaml"
    configuration = {
        "storage": {"root": str(root / "data")},
        "generator": {"type": "openai", "model": "other", "base_url": "http://127.0.0.1:9/v1"},
    }
    with_remote.write_text(json.dumps(configuration), encoding="utf-8")
    asked = run(root, "ask", QUESTION)
    result = CliRunner().invoke(app, ["replay", asked["id"], "--config", str(with_remote)])
    assert result.exit_code == 1
    assert str(root / "model") in result.output.replace("\n", "")
    assert "generator.type" in result.output


def _chat(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())
