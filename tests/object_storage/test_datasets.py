from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from rag_fti.bucket import MANIFEST
from rag_fti.datasets import DatasetVersion, dataset_versions, open_dataset
from rag_fti.errors import DatasetError, StoreError
from tests.object_storage.conftest import ObjectStore
from tests.training.tiny import build_dataset


def build(store: ObjectStore, train: int = 32) -> DatasetVersion:
    return build_dataset(store.bucket("datasets"), train=train)


def test_the_same_rows_are_the_same_version(store: ObjectStore, tmp_path: Path) -> None:
    first = build(store)
    before = store.bucket("datasets").entries()
    assert build(store).ref == first.ref
    assert store.bucket("datasets").entries() == before
    assert first.version == build_dataset(tmp_path).version
    assert first.location == f"{store.uri}/datasets/colours/{first.version}"
    larger = build(store, train=33)
    listed = dataset_versions(store.bucket("datasets"), "colours")
    assert [version.ref for version in listed] == [first.ref, larger.ref]
    assert not list(store.cache.glob("colours-*"))  # manifests alone were read
    assert open_dataset(store.bucket("datasets"), "colours@latest").rows("train").num_rows == 33
    assert len(list(store.cache.glob("colours-*"))) == 1


def test_changed_objects_are_refused_and_damaged_copies_fetched_again(store: ObjectStore) -> None:
    ref = build(store).ref
    version = open_dataset(store.bucket("datasets"), ref)
    version.verify()
    copied = version.path / "train.parquet"
    content = copied.read_bytes()
    copied.write_bytes(b"x" + content[1:])
    version.verify()
    assert copied.read_bytes() == content
    path = f"colours/{version.version}/train.parquet"
    store.bucket("datasets").write(path, b"x" + content[1:])
    version.verify()  # the copy is still good
    copied.unlink()
    with pytest.raises(DatasetError, match=r"train\.parquet is not what was written"):
        version.verify()
    store.bucket("datasets").delete([path])
    with pytest.raises(StoreError, match="no such object"):
        version.rows("train")


def test_unfinished_versions_are_not_there_and_are_completed(store: ObjectStore) -> None:
    version = build(store)
    bucket, folder = store.bucket("datasets"), f"colours/{version.version}"
    manifest = bucket.read(f"{folder}/{MANIFEST}")
    assert manifest is not None
    # As if its builder had been killed before the end.
    other = ObjectStore(f"{store.uri}/killed", store.options, store.cache).bucket("datasets")
    for name in ("train", "validation"):
        stored = bucket.read(f"{folder}/{name}.parquet")
        assert stored is not None
        other.write(f"{folder}/{name}.parquet", stored.data)
    assert dataset_versions(other) == []
    with pytest.raises(DatasetError, match="versions of 'colours' there: none"):
        open_dataset(other, "colours@latest")
    assert build_dataset(other).ref == version.ref
    open_dataset(other, version.ref).verify()
    # Bytes of another writer are not mixed with ours.
    foreign = ObjectStore(f"{store.uri}/foreign", store.options, store.cache).bucket("datasets")
    foreign.write(f"{folder}/train.parquet", b"other bytes")
    with pytest.raises(DatasetError, match=r"holds another train\.parquet and no manifest"):
        build_dataset(foreign)
    assert dataset_versions(foreign) == []


def build_ref(store: ObjectStore) -> str:
    return build(store).ref


def test_concurrent_builders_agree(store: ObjectStore) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        refs = pool.map(build_ref, [store] * 2)
    assert len(set(refs)) == 1
    open_dataset(store.bucket("datasets"), refs[0]).verify()
