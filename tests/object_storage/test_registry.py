from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rag_fti.errors import ModelNotFound, RegistryError
from rag_fti.registry import Registry
from tests.object_storage.conftest import ObjectStore

# The same behaviour, on another shelf: these run here with the registry below.
from tests.registry.test_registry import (
    staged,
    test_export_and_import_keep_the_content,
    test_unknown_references_say_what_exists,
)

__all__ = ["test_export_and_import_keep_the_content", "test_unknown_references_say_what_exists"]


def open_registry(store: ObjectStore, **options: Any) -> Registry:
    return Registry(store.bucket("registry"), **options)


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return open_registry(store)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return staged(tmp_path / "files")


def test_a_version_is_fetched_once_and_checked(
    store: ObjectStore, registry: Registry, files: Path
) -> None:
    first = registry.publish("assistant", files, {"dataset": "d@1"})
    second = registry.publish("assistant", files, {"dataset": "d@2"})
    assert (first.ref, second.ref) == ("assistant@1", "assistant@2")
    assert registry.names() == ["assistant"]
    assert [v.manifest["dataset"] for v in registry.versions("assistant")] == ["d@1", "d@2"]
    version = registry.resolve("assistant@2")
    assert version.location == f"{store.uri}/registry/assistant/versions/2"
    assert not version.path.exists()
    registry.verify(version)
    assert (version.path / "README.md").read_text() == "# card"
    assert json.loads((version.path / "manifest.json").read_text()) == version.manifest
    # What happens to the store afterwards does not reach a copy that is there…
    weights = "assistant/versions/2/adapter_model.safetensors"
    store.bucket("registry").write(weights, b"changed")
    registry.verify(version)
    # … a damaged copy is fetched again, and a damaged object is refused.
    (version.path / "README.md").write_text("# changed")
    with pytest.raises(RegistryError, match=r"changed adapter_model\.safetensors"):
        registry.verify(version)
    assert not version.path.exists()
    store.bucket("registry").delete([weights])
    with pytest.raises(Exception, match="no such object"):
        registry.verify(version)
    (first.path).mkdir(parents=True)
    registry.verify(first)
    assert (first.path / "README.md").is_file()
    assert not list(store.cache.glob(".*-*[!k]"))  # no staging directory stays


def test_the_layout_is_that_of_a_directory(
    store: ObjectStore, registry: Registry, files: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        registry.publish("m", files, {})
    for number in (1, 2):
        registry.set_alias("m", "champion", number, who="ann", why="better")
    for entry in store.bucket("registry").entries():
        store.bucket("registry").download(entry.path, tmp_path / "copy" / entry.path)
    copy = Registry.open(str(tmp_path / "copy"))
    assert copy.history("m") == registry.history("m")
    assert copy.resolve("champion").ref == "m@2"
    copy.verify(copy.resolve("champion"))
    view = json.loads((tmp_path / "copy/m/aliases/champion.json").read_text())
    assert view["version"] == 2
    assert copy.publish("m", files, {}).ref == "m@3"


def test_aliases_move_and_go_back(registry: Registry, files: Path) -> None:
    for _ in range(3):
        registry.publish("m", files, {})
    for number in (1, 2, 3):
        registry.set_alias("m", "champion", number, why="better", report="r")
    assert registry.rollback("m", why="bad answers").to_version == 2
    assert registry.rollback("m").to_version == 1
    with pytest.raises(ModelNotFound, match="no earlier version"):
        registry.rollback("m")
    moves = [(c.from_version, c.to_version) for c in registry.history("m")]
    assert moves == [(None, 1), (1, 2), (2, 3), (3, 2), (2, 1)]


def test_an_edited_history_is_noticed(store: ObjectStore, registry: Registry, files: Path) -> None:
    registry.publish("m", files, {})
    registry.set_alias("m", "champion", 1, why="good")
    registry.set_alias("m", "challenger", 1, why="good")
    bucket, path = store.bucket("registry"), "m/aliases/history.jsonl"
    stored = bucket.read(path)
    assert stored is not None
    bucket.write(path, stored.data.replace(b"good", b"best", 1))
    with pytest.raises(RegistryError, match="append-only"):
        registry.history("m")


def publish_and_move(store: ObjectStore, files: str, count: int) -> list[int]:
    registry = open_registry(store)
    numbers = []
    for _ in range(count):
        version = registry.publish("m", Path(files), {})
        registry.set_alias("m", "champion", version.version, who=str(os.getpid()), why="w")
        numbers.append(version.version)
    return numbers


def test_concurrent_publishers_and_alias_moves(
    store: ObjectStore, registry: Registry, files: Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(publish_and_move, [(store, str(files), 4)] * 3)
    assert sorted(number for result in results for number in result) == list(range(1, 13))
    history = registry.history("m")
    assert sorted(change.to_version for change in history) == list(range(1, 13))
    for before, after in pairwise(history):
        assert after.from_version == before.to_version
    view = store.bucket("registry").read("m/aliases/champion.json")
    assert view is not None and json.loads(view.data)["version"] == history[-1].to_version
    for version in registry.versions("m"):
        assert version.manifest["version"] == version.version
        registry.verify(version)


class Dying:
    """Kills its process at the n-th of the steps with a name."""

    def __init__(self, name: str, count: int = 1) -> None:
        self.name, self.count = name, count

    def __call__(self, step: str) -> None:
        self.count -= step == self.name
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def publish_and_die(store: ObjectStore, files: str, name: str, count: int) -> None:
    open_registry(store, step=Dying(name, count)).publish("m", Path(files), {})


def collect_and_die(store: ObjectStore, name: str) -> None:
    open_registry(store, step=Dying(name)).gc("m", keep_last=1, min_age_seconds=0)


def run_killed(target: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_publication_is_not_there_and_its_number_is_not_used_again(
    store: ObjectStore, registry: Registry, files: Path
) -> None:
    run_killed(publish_and_die, store, str(files), "file written", 2)
    assert registry.names() == [] and registry.versions("m") == []
    with pytest.raises(ModelNotFound):
        registry.version("m", 1)
    assert registry.publish("m", files, {}).version == 2
    assert registry.gc("m").leftovers == 0  # it could be alive
    assert registry.gc("m", dry_run=True, stale_seconds=0).leftovers == 1
    assert registry.gc("m", stale_seconds=0).leftovers == 1
    paths = [entry.path for entry in store.bucket("registry").entries("m/versions")]
    assert paths and all(path.startswith("m/versions/2/") for path in paths)
    registry.verify(registry.version("m", 2))


def test_a_publisher_whose_files_were_swept_publishes_nothing(
    store: ObjectStore, registry: Registry, files: Path
) -> None:
    def sweep(step: str) -> None:
        if step == "file written":
            registry.gc("m", stale_seconds=0)

    with pytest.raises(RegistryError, match="not those just written"):
        open_registry(store, step=sweep).publish("m", files, {})
    assert registry.versions("m") == []


def test_gc_keeps_what_is_referenced_and_never_reuses_a_number(
    registry: Registry, files: Path
) -> None:
    for _ in range(7):
        registry.publish("m", files, {})
    registry.set_alias("m", "champion", 1, why="w")
    registry.set_alias("m", "champion", 3, why="w")
    plan = registry.gc("m", keep_last=1, referenced={"m@5"}, dry_run=True, min_age_seconds=0)
    assert plan.versions == ("m@2", "m@4", "m@6")
    assert registry.gc("m", keep_last=1, referenced={"m@5"}).versions == ()
    assert registry.gc("m", keep_last=1, referenced={"m@5"}, min_age_seconds=0) == plan
    assert [v.version for v in registry.versions("m")] == [1, 3, 5, 7]
    assert [c.to_version for c in registry.history("m") if c.action == "remove"] == [2, 4, 6]
    assert registry.rollback("m").to_version == 1
    registry.gc("m", keep_last=0, min_age_seconds=0)
    assert registry.retired("m")[7]["version"] == 7
    with pytest.raises(ModelNotFound, match="removed by gc"):
        registry.version("m", 7)
    assert registry.publish("m", files, {}).version == 8


def test_a_killed_removal_is_ended_by_the_next(
    store: ObjectStore, registry: Registry, files: Path
) -> None:
    for _ in range(2):
        registry.publish("m", files, {})
    run_killed(collect_and_die, store, "tombstone written")
    with pytest.raises(ModelNotFound, match="being removed"):
        registry.set_alias("m", "champion", 1, why="w")
    assert registry.gc("m", keep_last=2).versions == ("m@1",)
    run_killed(publish_and_die, store, str(files), "manifest written", 1)  # published it is
    assert [v.version for v in registry.versions("m")] == [2, 3]
    run_killed(collect_and_die, store, "manifest removed")
    assert [v.version for v in registry.versions("m")] == [3]
    assert registry.gc("m", stale_seconds=0).leftovers == 1


def test_gc_and_alias_moves_at_once(store: ObjectStore, registry: Registry, files: Path) -> None:
    for _ in range(6):
        registry.publish("m", files, {})
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            open_registry(store).gc("m", keep_last=1, min_age_seconds=0)

    thread = threading.Thread(target=collect)
    thread.start()
    for number in (5, 4, 3, 2, 1):
        with suppress(ModelNotFound):  # gc was quicker
            registry.set_alias("m", f"a{number}", number, why="w")
    done.set()
    thread.join()
    present = {v.version for v in registry.versions("m")}
    assert set(registry.aliases("m").values()) | {6} == present


def test_code_and_links_are_refused(registry: Registry, files: Path) -> None:
    (files / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(RegistryError, match="safetensors"):
        registry.publish("m", files, {})
    shutil.rmtree(files)
    with pytest.raises(RegistryError, match="no directory"):
        registry.publish("m", files, {})
    assert registry.names() == []
