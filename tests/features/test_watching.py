from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipelines import ingest
from rag_fti.config import load_settings
from rag_fti.feature_store import FeatureStore
from tests.features.made_up import HashEmbedder, contents, write_corpus


def wait_for(condition: Callable[[], bool], *, what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_changes_reach_search_and_the_store_equals_a_batch_run(tmp_path: Path) -> None:
    sizes = {"chunking.max_tokens": 40, "chunking.min_tokens": 8}
    settings = load_settings(values={"storage.root": str(tmp_path / "watched"), **sizes})
    write_corpus(Path("docs"), documents=3)
    Path("docs/a-folder").mkdir()
    Path("docs/a-folder/inside.md").write_text("# Inside\n\nperiwinkle\n")
    store = FeatureStore.open(settings.storage.features_uri)
    stop = threading.Event()
    results: list[ingest.Summary] = []

    def follow() -> None:
        results.append(
            ingest.watch(settings, ["docs"], stop=stop, store=store, embedder=HashEmbedder())
        )

    thread = threading.Thread(target=follow)
    thread.start()

    def finds(word: str) -> list[str]:
        return [hit.source for hit in store.search_text(word, k=3)] if store.exists() else []

    wait_for(lambda: finds("periwinkle") != [], what="first run")
    # Before the watch stands: its first round takes what the first run did not see.
    Path("docs/between.md").write_text("# Between\n\nsassafras\n")
    wait_for(lambda: finds("sassafras") != [], what="between")
    time.sleep(1.0)
    Path("docs/new.md").write_text("# New\n\nmarmalade\n")
    wait_for(lambda: finds("marmalade") == ["docs/new.md"], what="create")
    Path("docs/new.md").write_text("# New\n\nvermilion\n")
    wait_for(lambda: finds("vermilion") != [] and finds("marmalade") == [], what="change")
    Path("docs/new.md").rename("docs/moved.md")
    wait_for(lambda: finds("vermilion") == ["docs/moved.md"], what="move")
    Path("docs/moved.md").unlink()
    wait_for(lambda: finds("vermilion") == [], what="delete")
    Path("docs/a-folder").rename("docs/b-folder")
    wait_for(lambda: finds("periwinkle") == ["docs/b-folder/inside.md"], what="folder")
    Path("docs/ignored.bin").write_bytes(b"x")
    Path("docs/last.md").write_text("# Last\n\nquicksilver\n")
    wait_for(lambda: finds("quicksilver") != [], what="last")
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert results[0].contract["ok"]
    assert results[0].failures == []
    assert results[0].documents["added"] >= 7  # four of them by the first run
    other = load_settings(values={"storage.root": str(tmp_path / "batch"), **sizes})
    ingest.run(other, ["docs"], embedder=HashEmbedder())
    assert contents(store) == contents(FeatureStore.open(other.storage.features_uri))
