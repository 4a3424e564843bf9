from __future__ import annotations

from pathlib import Path

import pytest

from rag_fti.config import Settings, load_settings
from rag_fti.feature_store import FeatureStore
from tests.inference.corpus import CORPUS, fill


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(values={"storage.root": str(tmp_path / "data")}, environment={})


@pytest.fixture
def store(settings: Settings) -> FeatureStore:
    opened = FeatureStore.open(settings.storage.features_uri)
    fill(opened, CORPUS)
    return opened
