"""schemathesis over the OpenAPI schema: no 5xx, no status that is not declared."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.conftest import Start

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


@pytest.mark.slow
def test_generated_requests_get_declared_answers(start: Start, tmp_path: Path) -> None:
    program = os.environ.get("RAG_FTI_SCHEMATHESIS") or shutil.which("schemathesis")
    if program is None:
        pytest.skip("schemathesis is not installed: pip install schemathesis")
    server = start()
    made = subprocess.run(
        [
            *(program, "run", f"{server.url}/openapi.json", "--max-examples", "40"),
            *("--checks", CHECKS, "--exclude-path", "/metrics"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stdout[-4000:]


def test_every_route_declares_its_errors(start: Start) -> None:
    with start().client() as client:
        schema = client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        if path in ("/health/live", "/version"):
            continue
        for operation in operations.values():
            declared = set(operation["responses"])
            assert {"400", "401", "403", "413", "429", "500", "503"} <= declared, path
            assert operation.get("description"), path
