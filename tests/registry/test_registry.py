from __future__ import annotations

import json
import multiprocessing
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from rag_fti.errors import ModelNotFound, RegistryError
from rag_fti.registry import Registry


def staged(directory: Path, text: str = "weights") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_model.safetensors").write_bytes(text.encode() * 100)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "README.md").write_text("# card")
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(str(tmp_path / "registry"))


def test_published_versions_count_up_and_resolve(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "files")
    first = registry.publish("assistant", files, {"dataset": "d@1"})
    second = registry.publish("assistant", files, {"dataset": "d@2"})
    assert (first.ref, second.ref) == ("assistant@1", "assistant@2")
    assert registry.names() == ["assistant"]
    assert [v.version for v in registry.versions("assistant")] == [1, 2]
    assert registry.resolve("assistant@1").manifest["dataset"] == "d@1"
    manifest = json.loads((second.path / "manifest.json").read_text())
    assert manifest["model"] == "assistant" and manifest["version"] == 2
    assert manifest["files"]["README.md"]["bytes"] == len("# card")
    registry.verify(second)


def test_aliases_move_and_their_history_only_grows(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "files")
    for _ in range(3):
        registry.publish("assistant", files, {})
    for version in (1, 2, 3):
        registry.set_alias("assistant", "champion", version, who="ann", why="better", report="r")
    assert registry.resolve("champion").ref == "assistant@3"
    assert registry.resolve("assistant@champion").ref == "assistant@3"
    assert registry.rollback("assistant", why="bad answers").to_version == 2
    assert registry.rollback("assistant").to_version == 1
    with pytest.raises(ModelNotFound, match="no earlier version"):
        registry.rollback("assistant")
    history = registry.history("assistant")
    assert [(c.from_version, c.to_version) for c in history] == [
        (None, 1),
        (1, 2),
        (2, 3),
        (3, 2),
        (2, 1),
    ]
    assert history[3].why == "bad answers" and history[0].who == "ann"
    view = json.loads((registry.root / "assistant/aliases/champion.json").read_text())
    assert view["version"] == 1


def test_an_edited_history_is_noticed(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "files")
    registry.publish("m", files, {})
    registry.publish("m", files, {})
    for version in (1, 2, 1):
        registry.set_alias("m", "champion", version, why="w")
    path = registry.root / "m/aliases/history.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"why": "w"', '"why": "x"'), *lines[1:]]) + "\n")
    with pytest.raises(RegistryError, match="append-only"):
        registry.history("m")


def test_unknown_references_say_what_exists(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="aliases there: none"):
        registry.resolve("champion")
    registry.publish("a", staged(tmp_path / "f"), {})
    with pytest.raises(ModelNotFound, match="versions there: 1"):
        registry.resolve("a@7")
    for bad in ("", "a@", "@3", "a b@1", "A", "../x@1", "a@-1"):
        with pytest.raises(RegistryError):
            registry.resolve(bad)
    registry.publish("b", staged(tmp_path / "f"), {})
    registry.set_alias("a", "champion", 1, why="w")
    registry.set_alias("b", "champion", 1, why="w")
    with pytest.raises(ModelNotFound, match="several models: a, b"):
        registry.resolve("champion")
    with pytest.raises(ModelNotFound):
        registry.set_alias("a", "champion", 9, why="w")
    with pytest.raises(RegistryError, match="taken"):
        registry.set_alias("a", "base", 1, why="w")


def test_changed_missing_and_added_files_are_found(registry: Registry, tmp_path: Path) -> None:
    version = registry.publish("m", staged(tmp_path / "f"), {})
    weights = version.path / "adapter_model.safetensors"
    original = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(b"x" + original[1:])
    with pytest.raises(RegistryError, match=r"changed adapter_model\.safetensors"):
        registry.verify(version)
    weights.write_bytes(original)
    registry.verify(version)
    (version.path / "extra.txt").write_text("x")
    with pytest.raises(RegistryError, match=r"unknown extra\.txt"):
        registry.verify(version)
    (version.path / "extra.txt").unlink()
    weights.unlink()
    with pytest.raises(RegistryError, match="missing adapter_model"):
        registry.verify(version)


def test_a_manifest_that_lacks_sizes_is_refused(registry: Registry, tmp_path: Path) -> None:
    source = registry.publish("m", staged(tmp_path / "f"), {}).path
    manifest = json.loads((source / "manifest.json").read_text())
    del manifest["files"]["README.md"]["bytes"]
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RegistryError, match="no files with their bytes"):
        registry.import_version(source)


def test_reasons_that_are_no_text_are_written_down(registry: Registry, tmp_path: Path) -> None:
    registry.publish("m", staged(tmp_path / "f"), {})
    registry.set_alias("m", "champion", 1, who="j\udcf6rg", why="\udcff")
    (change,) = registry.history("m")
    assert (change.who, change.why) == ("j?rg", "?")


def test_code_and_links_are_refused(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "f")
    (files / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(RegistryError, match="safetensors"):
        registry.publish("m", files, {})
    (files / "pytorch_model.bin").unlink()
    (files / "link").symlink_to("/etc/hostname")
    with pytest.raises(RegistryError, match="link"):
        registry.publish("m", files, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="no model files"):
        registry.publish("m", tmp_path / "empty", {})
    assert registry.names() == []
    assert list((registry.root / "m" / ".staging").glob("*")) == []


def publish_many(root: str, files: str, count: int) -> list[int]:
    registry = Registry.open(root)
    return [registry.publish("m", Path(files), {}).version for _ in range(count)]


def test_concurrent_publishers_get_different_numbers(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "f")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.starmap(publish_many, [(str(registry.root), str(files), 10)] * 4)
    numbers = sorted(number for result in results for number in result)
    assert numbers == list(range(1, 41))
    for version in registry.versions("m"):
        assert version.manifest["version"] == version.version
        registry.verify(version)


def move_many(root: str, count: int) -> None:
    registry = Registry.open(root)
    for number in range(count):
        registry.set_alias("m", "champion", 1 + number % 2, why="w")


def test_concurrent_alias_moves_are_all_in_the_history(registry: Registry, tmp_path: Path) -> None:
    files = staged(tmp_path / "f")
    registry.publish("m", files, {})
    registry.publish("m", files, {})
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(move_many, [(str(registry.root), 10)] * 4)
    history = registry.history("m")
    assert len(history) == 40
    for before, after in pairwise(history):
        assert after.from_version == before.to_version


def test_export_and_import_keep_the_content(registry: Registry, tmp_path: Path) -> None:
    version = registry.publish("m", staged(tmp_path / "f"), {"dataset": "d@1"})
    exported = registry.export_version(version, tmp_path / "out" / "m-1")
    with pytest.raises(RegistryError, match="exists already"):
        registry.export_version(version, exported)
    other = Registry.open(str(tmp_path / "other"))
    imported = other.import_version(exported)
    assert imported.ref == "m@1" and imported.manifest["dataset"] == "d@1"
    assert imported.manifest["imported_from"]["version"] == 1
    assert other.import_version(exported).ref == "m@1"
    assert other.import_version(exported, model_name="n").ref == "n@1"
    assert registry.import_version(exported).ref == "m@1"
    damaged = exported / "README.md"
    damaged.chmod(0o644)
    damaged.write_text("# changed")
    with pytest.raises(RegistryError, match=r"changed README\.md"):
        other.import_version(exported, model_name="k")
    with pytest.raises(RegistryError, match="no complete model version"):
        other.import_version(tmp_path)


def test_gc_keeps_what_is_referenced_and_never_reuses_a_number(
    registry: Registry, tmp_path: Path
) -> None:
    files = staged(tmp_path / "f")
    for _ in range(8):
        registry.publish("m", files, {})
    registry.set_alias("m", "champion", 1, why="w")
    registry.set_alias("m", "champion", 3, why="w")
    registry.set_alias("m", "challenger", 4, why="w")
    abandoned = registry.root / "m/.staging/123-dead"
    abandoned.mkdir()
    plan = registry.gc(
        "m", keep_last=1, referenced={"m@6"}, dry_run=True, min_age_seconds=0, stale_seconds=0
    )
    assert plan.versions == ("m@2", "m@5", "m@7") and plan.leftovers == 1
    assert len(registry.versions("m")) == 8
    done = registry.gc("m", keep_last=1, referenced={"m@6"}, min_age_seconds=0, stale_seconds=0)
    assert done == plan
    assert [v.version for v in registry.versions("m")] == [1, 3, 4, 6, 8]
    assert [c.to_version for c in registry.history("m") if c.action == "remove"] == [2, 5, 7]
    assert registry.rollback("m").to_version == 1
    registry.gc("m", keep_last=0, min_age_seconds=0)
    assert 8 not in [v.version for v in registry.versions("m")]
    assert registry.publish("m", files, {}).version == 9
    assert registry.retired("m")[8]["version"] == 8
    with pytest.raises(ModelNotFound, match="removed by gc"):
        registry.version("m", 8)


@pytest.mark.parametrize("text", ["", "[]"])
def test_a_damaged_manifest_hides_its_own_version_only(
    registry: Registry, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        registry.publish("m", staged(tmp_path / "f"), {})
    manifest = registry.root / "m/versions/3/manifest.json"
    manifest.write_text(text)
    assert [v.version for v in registry.versions("m")] == [1, 2]
    assert "m@3 is left out" in caplog.text
    assert registry.resolve("m@2").version == 2
    with pytest.raises(RegistryError, match="is damaged"):
        registry.resolve("m@3")
    with pytest.raises(RegistryError, match="is damaged"):
        registry.import_version(manifest.parent)
    assert registry.gc("m", keep_last=0, min_age_seconds=0).versions == ("m@1", "m@2")
    assert manifest.is_file()
    assert registry.publish("m", staged(tmp_path / "f"), {}).version == 4


def test_gc_leaves_what_was_just_published_to_whoever_points_an_alias_at_it(
    registry: Registry, tmp_path: Path
) -> None:
    files = staged(tmp_path / "f")
    stop = threading.Event()
    collected: list[str] = []

    def collect() -> None:
        while not stop.is_set():
            collected.extend(registry.gc("m", keep_last=0).versions)

    thread = threading.Thread(target=collect)
    thread.start()
    for _ in range(10):
        version = registry.publish("m", files, {})
        time.sleep(0.02)
        registry.set_alias("m", "challenger", version.version, why="trained")
    stop.set()
    thread.join()
    assert collected == []
    assert registry.gc("m", keep_last=0, min_age_seconds=0).versions == tuple(
        f"m@{number}" for number in range(1, 10)
    )
