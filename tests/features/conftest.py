from __future__ import annotations

from pathlib import Path

import pytest

from rag_fti.feature_store import FeatureStore


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(str(tmp_path / "features"))


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are named by the path as given, so tests give relative ones."""
    monkeypatch.chdir(tmp_path)
