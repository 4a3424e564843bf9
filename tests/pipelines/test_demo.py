"""The main job as a user runs it, killed on the way; minutes long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "demo", "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "RAG_FTI_ROOT": str(root), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output[-2000:]
    summary: dict[str, Any] = json.loads(output)
    return summary


def test_a_killed_demo_goes_on_and_finishes(tmp_path: Path) -> None:
    for seconds in (3, 12, 30, 60):
        process = start(tmp_path)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    summary = finish(start(tmp_path))
    assert summary["ok"]
    assert set(summary["pipelines"]) == {
        "ingest",
        "instruction_dataset",
        "training",
        "model_validation",
    }
    assert all(p["contract"]["ok"] for p in summary["pipelines"].values())
    chunks = summary["pipelines"]["ingest"]["chunks"]["total"]
    version = summary["pipelines"]["training"]["version"]
    assert len(summary["questions"]) == 3
    for item in summary["questions"]:
        assert item["abstained"] or item["citations"]
        assert {"question", "answer", "matched", "citations", "model"} <= set(item)
        for citation in item["citations"]:
            assert {"document", "heading", "span", "text"} <= set(citation)

    again = finish(start(tmp_path))
    assert again["pipelines"]["ingest"]["documents"]["added"] == 0
    assert again["pipelines"]["ingest"]["chunks"]["total"] == chunks
    assert again["pipelines"]["training"]["version"] == version
