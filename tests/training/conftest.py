from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny import build_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("llama"))
