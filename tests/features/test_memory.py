"""Peak memory of an ingest hardly grows with the corpus.

Measured without an embedding model, whose own memory would hide growth: benchmarks/feature.py
--memory measures the whole pipeline.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.features.made_up import write_corpus

_PROGRAM = """
import resource, sys
from rag_fti.feature_store import FeatureStore
from tests.features.made_up import make_ingestor
store = FeatureStore.open(sys.argv[2])
make_ingestor(store, batch_documents=32).ingest([sys.argv[1]])
store.optimize()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder: str, store: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, folder, str(store)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_times_the_documents_need_little_more_memory(tmp_path: Path) -> None:
    write_corpus(Path("small"), documents=100, paragraphs=40)
    write_corpus(Path("large"), documents=1000, paragraphs=40)
    small = peak("small", tmp_path / "small-store")
    large = peak("large", tmp_path / "large-store")
    assert large / small < 1.6, f"{small / 1024:.0f} MB, then {large / 1024:.0f} MB"
