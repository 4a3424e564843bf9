"""An ingest that is killed at any moment, or runs out of disk, and is then run again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rag_fti import schemas
from rag_fti.errors import StoreError
from rag_fti.feature_store import FeatureStore
from tests.conftest import REPOSITORY
from tests.features.made_up import contents, make_ingestor, write_corpus

KILLS = int(os.environ.get("RAG_FTI_KILLS", "100"))

_PROGRAM = """
import sys
from rag_fti.feature_store import FeatureStore
from tests.features.made_up import make_ingestor
store = FeatureStore.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
make_ingestor(store, batch_documents=2).ingest(["docs"], prune=True)
store.optimize()
print("done", flush=True)
"""


def start(store: Path, directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(store)],
        cwd=directory,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def change(round_number: int) -> None:
    """A new state of the corpus: one document changed, one gone, one new."""
    file = Path(f"docs/doc-{round_number % 6}.md")
    file.write_text(file.read_text() + f"\n\nAdded in round {round_number}.\n")
    Path(f"docs/gone-{round_number - 1}.md").unlink(missing_ok=True)
    Path(f"docs/gone-{round_number}.md").write_text(f"# Short\n\nlived {round_number}\n")


def kill_many_times(tmp_path: Path, *, rounds: int, writers: int) -> None:
    write_corpus(Path("docs"), documents=6)
    uri = tmp_path / "killed"
    process = start(uri, tmp_path)
    started = time.monotonic()
    go(process)
    process.communicate(timeout=120)
    duration = time.monotonic() - started
    generator = random.Random(17)
    for number in range(rounds):
        change(number)
        processes = [start(uri, tmp_path) for _ in range(writers)]
        for process in processes:
            go(process)
        time.sleep(generator.uniform(0.0, duration))
        for process in processes:
            end(process)
    store = FeatureStore.open(str(uri))
    make_ingestor(store).ingest(["docs"], prune=True)
    undisturbed = FeatureStore.open(str(tmp_path / "undisturbed"))
    make_ingestor(undisturbed).ingest(["docs"], prune=True)
    assert contents(store) == contents(undisturbed)
    assert store.incomplete_documents() == frozenset()
    assert store.repeated_chunks() == 0
    store.optimize()
    store.purge()
    assert contents(store) == contents(undisturbed)


def test_killed_a_few_times(tmp_path: Path) -> None:
    kill_many_times(tmp_path, rounds=4, writers=1)


def test_chunks_of_a_killed_run_go_though_their_source_is_gone(tmp_path: Path) -> None:
    """A kill between the commit of the chunks and that of their document; then the file goes."""
    write_corpus(Path("docs"), documents=1)
    Path("gone.md").write_text("# Gone\n\nnobody lists this\n")
    whole = FeatureStore.open(str(tmp_path / "whole"))
    make_ingestor(whole).ingest(["gone.md"])
    store = FeatureStore.open(str(tmp_path / "killed"))
    ingestor = make_ingestor(store)
    store.write_documents(schemas.documents_schema().empty_table(), whole.chunks())
    assert store.search_text("nobody", k=1)
    Path("gone.md").unlink()
    assert ingestor.ingest(["docs"]).chunks_deleted == 1
    assert not store.search_text("nobody", k=1)
    assert store.incomplete_documents() == frozenset()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("writers", [1, 2])
def test_killed_at_many_random_moments(tmp_path: Path, writers: int) -> None:
    kill_many_times(tmp_path, rounds=KILLS, writers=writers)


def test_a_full_disk_stops_the_run_and_a_rerun_completes_it(tmp_path: Path) -> None:
    """The store lies on a small tmpfs, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        write_corpus(Path("docs"), documents=12, paragraphs=40)
        store = FeatureStore.open(str(disk / "features"))
        with pytest.raises(StoreError):
            make_ingestor(store, batch_documents=1).ingest(["docs"])
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        store = FeatureStore.open(str(disk / "features"))
        make_ingestor(store).ingest(["docs"])
        undisturbed = FeatureStore.open(str(tmp_path / "undisturbed"))
        make_ingestor(undisturbed).ingest(["docs"])
        assert contents(store) == contents(undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
