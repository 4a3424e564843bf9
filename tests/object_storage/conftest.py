"""A bucket on a real S3 server over HTTP."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rag_fti.bucket import Bucket

BUCKET = "project"


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of its own on the server, and how to reach it."""

    uri: str
    options: dict[str, str]
    cache: Path

    def bucket(self, folder: str) -> Bucket:
        """Objects under a folder."""
        return Bucket(f"{self.uri}/{folder}", options=self.options, cache=self.cache)

    def settings(self) -> dict[str, Any]:
        """Storage settings of a project whose three stores are there."""
        return {
            "storage.features": f"{self.uri}/features",
            "storage.datasets": f"{self.uri}/datasets",
            "storage.registry": f"{self.uri}/registry",
            "storage.options": self.options,
        }


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """The address of the server."""
    server = Path(__file__).parent / "server.py"
    with subprocess.Popen(
        [sys.executable, str(server), BUCKET],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def store(endpoint: str, tmp_path: Path) -> ObjectStore:
    """A place of one test in the bucket."""
    options = {
        "endpoint": endpoint,
        "region": "us-east-1",
        "allow_http": "true",
        "access_key_id": "tester",
        "secret_access_key": "secret",
    }
    return ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}", options, tmp_path / "cache")
