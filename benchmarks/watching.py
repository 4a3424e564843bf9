"""How long a changed file takes to reach search under ``rag-fti ingest --watch``.

    python benchmarks/watching.py --rounds 10 --documents 100

Watches a folder with the packaged embedder, writes a small file of each kind, and waits until
full-text search finds its new word: notice, parse, embed, commit and index together. The promise
is 2 seconds on an idle machine. Plain text is parsed in place; HTML goes through a worker process
that starts for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from pipelines import ingest
from rag_fti.config import load_settings
from rag_fti.feature_store import FeatureStore

KINDS = {
    ".md": "# News\n\nThe word of the hour is {word}.\n",
    ".html": "<html><body><h1>News</h1><p>The word of the hour is {word}.</p></body></html>",
}
LONGEST_WAIT = 120.0


def wait_for(store: FeatureStore, word: str, *, there: bool = True) -> float:
    """Seconds until search finds a word, or no longer finds it.

    Raises:
        SystemExit: If that takes two minutes.
    """
    started = time.monotonic()
    while not store.exists() or bool(store.search_text(word, k=1)) is not there:
        if time.monotonic() - started > LONGEST_WAIT:
            raise SystemExit(f"{word} did not arrive within {LONGEST_WAIT:g} s.")
        time.sleep(0.01)
    return time.monotonic() - started


def measure(store: FeatureStore, *, rounds: int) -> dict[str, list[float]]:
    """Seconds by kind of change."""
    delays: dict[str, list[float]] = {}
    for number in range(rounds):
        for kind, form in KINDS.items():
            file = Path("docs") / f"news{kind}"
            for change in ("create", "change"):
                word = f"{change}{kind[1:]}{number}x"
                file.write_text(form.format(word=word), encoding="utf-8")
                delays.setdefault(f"{change} {kind}", []).append(wait_for(store, word))
                time.sleep(0.5)
            file.unlink()
            delays.setdefault(f"delete {kind}", []).append(wait_for(store, word, there=False))
            time.sleep(0.5)
    return delays


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--documents", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("docs").mkdir()
        for number in range(options.documents):
            Path(f"docs/{number}.md").write_text(f"# Document {number}\n\nIt says word{number}.\n")
        settings = load_settings(values={"storage.root": "root"})
        store = FeatureStore.open(settings.storage.features_uri)
        stop = threading.Event()
        watcher = threading.Thread(
            target=ingest.watch,
            args=(settings, ["docs"]),
            kwargs={"stop": stop, "store": store},
            daemon=True,
        )
        watcher.start()
        wait_for(store, f"word{options.documents - 1}")
        Path("docs/first.md").write_text("watching now\n")
        wait_for(store, "watching")
        delays = measure(store, rounds=options.rounds)
        stop.set()
        watcher.join()
        os.chdir("/")
    for kind, seconds in delays.items():
        print(f"{kind:14} median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s")
    print(json.dumps({kind: [round(s, 3) for s in seconds] for kind, seconds in delays.items()}))


if __name__ == "__main__":
    main()
