from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rag_fti.datasets import dataset_versions, open_dataset, read_manifest, write_dataset
from rag_fti.errors import ConfigError, DatasetError
from tests.training.tiny import build_dataset


def test_the_same_rows_are_the_same_version(tmp_path: Path) -> None:
    first = build_dataset(tmp_path)
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    again = build_dataset(tmp_path)
    assert again.version == first.version
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    assert build_dataset(tmp_path, train=33).version != first.version
    assert len(dataset_versions(tmp_path, "colours")) == 2
    assert open_dataset(tmp_path, "colours@latest").manifest["splits"]["train"] == 33
    assert open_dataset(tmp_path, first.ref).rows("train").num_rows == 32
    assert open_dataset(tmp_path / "elsewhere", str(first.path)).ref == first.ref


def test_changed_files_are_found(tmp_path: Path) -> None:
    version = build_dataset(tmp_path)
    version.verify()
    path = version.path / "train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DatasetError, match="not what was written"):
        version.verify()
    path.unlink()
    with pytest.raises(DatasetError, match="missing"):
        version.verify()
    with pytest.raises(DatasetError, match="Cannot read"):
        version.rows("train")


def test_unknown_datasets_say_what_exists(tmp_path: Path) -> None:
    version = build_dataset(tmp_path)
    with pytest.raises(DatasetError, match=f"versions of 'colours' there: {version.version}"):
        open_dataset(tmp_path, "colours@nope")
    with pytest.raises(DatasetError, match="neither a dataset reference"):
        open_dataset(tmp_path, "colours")
    with pytest.raises(ConfigError, match="begins with one of: s3://"):
        open_dataset("ftp://host/datasets", "colours@latest")
    with pytest.raises(DatasetError, match="no complete dataset version"):
        read_manifest(tmp_path)


def test_other_schema_versions_are_refused(tmp_path: Path) -> None:
    version = build_dataset(tmp_path)
    path = version.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(DatasetError, match="schema version 99"):
        open_dataset(tmp_path, version.ref)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 99}'])
def test_a_manifest_that_cannot_be_read_hides_its_own_version_only(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = build_dataset(tmp_path), build_dataset(tmp_path, train=33)
    (bad.path / "manifest.json").write_text(text)
    assert open_dataset(tmp_path, good.ref).ref == good.ref
    assert open_dataset(tmp_path, "colours@latest").ref == good.ref
    assert [version.ref for version in dataset_versions(tmp_path)] == [good.ref]
    assert bad.version in caplog.text
    with pytest.raises(DatasetError, match=bad.version):
        open_dataset(tmp_path, bad.ref)


def test_a_damaged_version_is_put_aside_by_building_it_again(tmp_path: Path) -> None:
    version = build_dataset(tmp_path)
    for name in ("train.parquet", "manifest.json"):
        (version.path / name).write_bytes(b"x")
        build_dataset(tmp_path).verify()
    (version.path / "manifest.json").unlink()
    build_dataset(tmp_path).verify()
    assert [v.ref for v in dataset_versions(tmp_path)] == [version.ref]
    assert len(list((tmp_path / "colours").glob(f".{version.version}-damaged-*"))) == 3


def build(root: str) -> str:
    return build_dataset(Path(root), train=200).ref


def test_concurrent_builders_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        refs = pool.map(build, [str(tmp_path)] * 3)
    assert len(set(refs)) == 1
    open_dataset(tmp_path, refs[0]).verify()
    assert [p.name for p in (tmp_path / "colours").iterdir()] == [refs[0].partition("@")[2]]


class Deadly(dict[str, int]):
    """Kills the process that writes it."""

    def items(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def build_and_die(root: str) -> None:
    table = build_dataset(Path(root)).rows("train")
    write_dataset(
        root, "colours", {"train": table}, origin={"again": 1}, details={}, card="",
        extra_files={"contract.json": Deadly(x=1)},
    )  # fmt: skip


def test_what_a_killed_build_left_goes_and_what_a_live_one_works_on_stays(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("spawn").Process(
        target=build_and_die, args=(str(tmp_path),)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (left,) = (tmp_path / "colours").glob(".*")
    assert (left / "train.parquet").is_file()
    build_dataset(tmp_path)
    assert left.is_dir()  # it could be alive
    yesterday = time.time() - 25 * 3600
    for path in (*left.iterdir(), left):
        os.utime(path, (yesterday, yesterday))
    os.utime(left / "train.parquet")
    build_dataset(tmp_path)
    assert left.is_dir()  # a large file is still being written
    os.utime(left / "train.parquet", (yesterday, yesterday))
    ref = build_dataset(tmp_path).ref
    assert [p.name for p in (tmp_path / "colours").iterdir()] == [ref.partition("@")[2]]
