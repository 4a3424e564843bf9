from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rag_fti import bucket as module
from rag_fti.bucket import Bucket, open_root
from rag_fti.errors import ConfigError, StoreError
from tests.object_storage.conftest import ObjectStore


def test_conditional_writes(store: ObjectStore) -> None:
    bucket = store.bucket("x")
    assert bucket.read("a/b") is None
    assert bucket.create("a/b", b"1")
    assert not bucket.create("a/b", b"2")
    assert bucket.create("a/b", b"1")  # what a repeated request finds
    first = bucket.read("a/b")
    assert first is not None and first.data == b"1"
    assert bucket.replace("a/b", b"3", first)
    assert not bucket.replace("a/b", b"4", first)
    bucket.write("c", b"")
    assert [(entry.path, entry.size) for entry in bucket.entries()] == [("a/b", 1), ("c", 0)]
    assert bucket.folders() == ["a"]
    bucket.delete(["a/b", "never/there"])
    assert [entry.path for entry in bucket.entries()] == ["c"]


def test_of_many_writers_at_once_one_creates(store: ObjectStore) -> None:
    won: list[int] = []

    def write(number: int) -> None:
        if store.bucket("race").create("claim", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = store.bucket("race").read("claim")
    assert stored is not None and [int(stored.data)] == won


def test_large_files_travel_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    bucket, file = store.bucket("large"), tmp_path / "file"
    file.write_bytes(os.urandom(17 * 1024**2 + 17))
    bucket.upload(file, "f")
    bucket.download("f", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    with pytest.raises(StoreError, match="no such object"):
        bucket.download("g", tmp_path / "g")


def test_a_manifest_cannot_name_files_outside(store: ObjectStore) -> None:
    bucket = store.bucket("bad")
    for name in ("../escaped", "/etc/passwd"):
        with pytest.raises(StoreError, match="outside"):
            bucket.fetch("v", [name], label="v", manifest=b"{}", check=lambda _: None)


def test_a_store_that_is_down_is_not_an_empty_one(store: ObjectStore) -> None:
    options = {**store.options, "endpoint": "http://127.0.0.1:9"}
    with pytest.raises(StoreError, match="Cannot list"):
        Bucket(store.uri, options=options).entries()
    with pytest.raises(StoreError, match="Cannot read"):
        Bucket(store.uri, options=options).read("a")
    with pytest.raises(StoreError, match="NoSuchBucket"):
        Bucket("s3://nowhere/x", options=store.options).entries()


def test_wrong_addresses_and_options_say_so(store: ObjectStore) -> None:
    with pytest.raises(ConfigError, match="begins with one of: s3://, gs://, az://"):
        open_root("hdfs://host/datasets")
    with pytest.raises(ConfigError, match="'colour' is not valid"):
        Bucket(store.uri, options={**store.options, "colour": "red"})
    assert open_root("file:///srv/registry") == Path("/srv/registry")


def test_without_the_extra_the_message_names_it(store: ObjectStore) -> None:
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "from rag_fti.bucket import open_root\n"
        "from rag_fti.errors import ConfigError\n"
        "assert str(open_root('data/registry')) == 'data/registry'\n"
        "try:\n    open_root('s3://bucket/registry')\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "rag-fti[object-store]" in done.stdout
    assert module.DEFAULT_CACHE.name == "versions"
