from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from rag_fti.config import load_settings
from rag_fti.errors import ConfigError
from rag_fti.feature_store import FeatureStore
from rag_fti.features.engines import EmbedBatch, load_batch
from rag_fti.features.ingestion import build_ingestor
from rag_fti.features.loading import Limits, Loaded, LoadFailure, LoadTask
from tests.features.made_up import HashEmbedder

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_a_missing_ray_says_how_to_install_it(store: FeatureStore) -> None:
    settings = load_settings(
        values={"ingest.engine": "ray", "chunking.max_tokens": 40, "chunking.min_tokens": 8}
    )
    with pytest.raises(ConfigError, match=r"rag-fti\[ray\]"):
        build_ingestor(settings, store=store, embedder=HashEmbedder(), run_id="run")


def test_what_runs_on_a_node_loads_and_reports(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("words")
    tasks = np.empty(2, dtype=object)
    tasks[:] = [LoadTask("a.md", path=tmp_path / "a.md"), LoadTask("b.json", data=b"{")]
    done = load_batch({"number": np.arange(2), "task": tasks}, Limits())
    assert [type(result) for result in done["result"]] == [Loaded, LoadFailure]


def test_what_runs_on_a_node_embeds_with_the_drivers_model() -> None:
    driver = HashEmbedder()
    node = EmbedBatch(HashEmbedder, driver.fingerprint)
    done = node({"number": np.arange(2), "text": np.array(["one", "two"])})
    np.testing.assert_array_equal(done["vector"], driver.encode_documents(["one", "two"]))
    with pytest.raises(ConfigError, match="another embedding model"):
        EmbedBatch(lambda: HashEmbedder(max_tokens=9), driver.fingerprint)
