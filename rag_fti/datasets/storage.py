"""Reading and writing dataset versions.

``<root>/<name>/<version>/`` holds one parquet file per split, a card and ``manifest.json``. In a
directory a version is built under a hidden name and renamed into place, in an object store its
files are created and the manifest last, so it is there as a whole or not at all; its name is a
hash of its rows and of what they were made from, so the same inputs give the same version and
building again changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag_fti import ids
from rag_fti.bucket import MANIFEST, Bucket, Entry, open_root
from rag_fti.errors import DatasetError
from rag_fti.files import write_bytes_atomic, write_json_atomic
from rag_fti.schemas import SCHEMA_VERSION

SPLITS = ("train", "validation", "test")
PREFERENCES = "preferences"
VERSION_LENGTH = 12
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
_PLACE = re.compile(rf"^[^/]+/[^/]+/{re.escape(MANIFEST)}$")
_STAGED = re.compile(r"^\.[0-9a-f]+-\d+-[0-9a-f]{8}$")
_ABANDONED_SECONDS = 24 * 3600.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetVersion:
    """A complete version."""

    name: str
    version: str
    """The first hex digits of the content hash."""
    path: Path
    """Its directory. Of one in an object store it is a local copy, which :meth:`fetch` makes."""
    manifest: Mapping[str, Any]
    location: str
    """Where it is published: a directory or a URI."""
    bucket: Bucket | None = None
    """The object store it is in."""

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def manifest_digest(self) -> str:
        """Digest of the manifest as canonical JSON; models record it."""
        return ids.digest_json(dict(self.manifest))

    def rows(self, split: str) -> pa.Table:
        """The rows of one split (schema :func:`rag_fti.schemas.instructions_schema`).

        Raises:
            DatasetError: If the split is missing or unreadable.
        """
        path = self.fetch() / f"{split}.parquet"
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DatasetError(f"Cannot read {path}: {error}.") from error

    def has(self, split: str) -> bool:
        """Whether there is a file for this split (``preferences`` is optional)."""
        return f"{split}.parquet" in self.manifest["files"]

    def fetch(self) -> Path:
        """The directory with the files, fetched from an object store where needed.

        Raises:
            DatasetError: If a file in the object store is not what was written.
            StoreError: If the object store cannot be read.
        """
        if not self.path.is_dir():
            self.verify()
        return self.path

    def verify(self) -> None:
        """Check every file against its digest in the manifest, fetching what is elsewhere.

        Raises:
            DatasetError: If one is missing or changed.
            StoreError: If the object store cannot be read.
        """
        if self.bucket is None:
            self._check(self.path)
            return
        folder = f"{self.name}/{self.version}"
        manifest = self.bucket.constant(f"{folder}/{MANIFEST}") or b""
        self.bucket.fetch(
            folder,
            self.manifest["files"],
            label=f"{self.name}-{self.version}",
            manifest=manifest,
            check=self._check,
        )

    def _check(self, directory: Path) -> None:
        for name, entry in self.manifest["files"].items():
            path = directory / name
            if not path.is_file() or ids.digest_file(path) != entry["sha256"]:
                raise DatasetError(
                    f"{self.location}/{name} is "
                    f"{'missing' if not path.is_file() else 'not what was written'}.",
                    next_step="Build the dataset again, or copy it again from its source.",
                )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a version directory.

    Raises:
        DatasetError: If it is missing (the version is incomplete) or damaged.
    """
    try:
        data = (path / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} has no {MANIFEST}, so it is no complete dataset version."
        ) from error
    except OSError as error:
        raise DatasetError(f"Cannot read {path / MANIFEST}: {error}.") from error
    return _parse_manifest(data, where=str(path))


def _parse_manifest(data: bytes, *, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise DatasetError(f"Cannot read {where}/{MANIFEST}: {error}.") from error
    if not isinstance(manifest, dict):
        raise DatasetError(f"{where}/{MANIFEST} holds no JSON object.")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DatasetError(
            f"{where} has schema version {manifest.get('schema_version')}, this release reads "
            f"{SCHEMA_VERSION}.",
            next_step="Build the dataset again with this release.",
        )
    return manifest


def dataset_versions(root: str | Path | Bucket, name: str = "") -> list[DatasetVersion]:
    """Complete versions, oldest first; of all names when ``name`` is empty.

    One whose manifest cannot be read is left out with a warning. Of an object store only the
    manifests are read.

    Raises:
        StoreError: If the object store cannot be read.
    """
    root = root if isinstance(root, Bucket) else open_root(root)
    if isinstance(root, Bucket):
        places = [entry.path.split("/")[:2] for entry in manifests(root, name)]
    else:
        paths = [path.parent for path in root.glob(f"{name or '*'}/*/{MANIFEST}")]
        places = [[p.parent.name, p.name] for p in paths if not p.name.startswith(".")]
    found = []
    for place in places:
        try:
            found.append(_read(root, *place))
        except DatasetError as error:
            logger.warning("A dataset version is left out: %s", error)
    return sorted(found, key=lambda v: (v.manifest["created_at"], v.ref))


def manifests(bucket: Bucket, name: str = "") -> list[Entry]:
    """The manifests of all dataset versions in a bucket, by path."""
    return [entry for entry in bucket.entries(name) if _PLACE.match(entry.path)]


def _read(root: Path | Bucket, name: str, version: str) -> DatasetVersion:
    if isinstance(root, Bucket):
        return _in_bucket(root, name, version)
    return _in_directory(root / name / version)


def _in_directory(path: Path) -> DatasetVersion:
    return DatasetVersion(path.parent.name, path.name, path, read_manifest(path), str(path))


def _in_bucket(bucket: Bucket, name: str, version: str) -> DatasetVersion:
    """A version of a bucket that is known to be there."""
    location = f"{bucket.uri}/{name}/{version}"
    data = bucket.constant(f"{name}/{version}/{MANIFEST}")
    if data is None:
        raise DatasetError(f"{location} was removed meanwhile.")
    manifest = _parse_manifest(data, where=location)
    path = bucket.cached(f"{name}-{version}", data)
    return DatasetVersion(name, version, path, manifest, location, bucket)


def open_dataset(root: str | Path | Bucket, ref: str) -> DatasetVersion:
    """The version that ``name@version`` or ``name@latest`` means, or that lies in a directory.

    Args:
        root: Datasets root: directory, URI or bucket.
        ref: Reference, or the path of a version directory (as in a training bundle).

    Raises:
        DatasetError: If there is none.
        StoreError: If the object store cannot be read.
    """
    name, separator, version = ref.rpartition("@")
    if not separator or not _NAME.match(name):
        path = Path(ref)
        if (path / MANIFEST).is_file():
            manifest = read_manifest(path)
            return DatasetVersion(manifest["name"], manifest["version"], path, manifest, str(path))
        raise DatasetError(
            f"{ref!r} is neither a dataset reference nor a dataset directory.",
            next_step="Write name@version or name@latest.",
        )
    root = root if isinstance(root, Bucket) else open_root(root)
    if version != "latest" and _NAME.match(version) and _is_there(root, name, version):
        return _read(root, name, version)
    known = dataset_versions(root, name)
    if version == "latest" and known:
        return known[-1]
    versions = ", ".join(v.version for v in known) or "none"
    raise DatasetError(
        f"There is no dataset {ref} under {root}; versions of {name!r} there: {versions}.",
        next_step="Build one: rag-fti dataset build.",
    )


def _is_there(root: Path | Bucket, name: str, version: str) -> bool:
    if isinstance(root, Bucket):
        return root.constant(f"{name}/{version}/{MANIFEST}") is not None
    return (root / name / version / MANIFEST).is_file()


def content_version(splits: Mapping[str, pa.Table], origin: Mapping[str, Any]) -> str:
    """The version name of these rows made from this origin."""
    rows = {name: ids.digest_json(table.to_pylist()) for name, table in splits.items()}
    return ids.digest_json({"rows": rows, "origin": dict(origin)})[:VERSION_LENGTH]


def write_dataset(
    root: str | Path | Bucket,
    name: str,
    splits: Mapping[str, pa.Table],
    *,
    origin: Mapping[str, Any],
    details: Mapping[str, Any],
    card: str,
    extra_files: Mapping[str, Any] | None = None,
) -> DatasetVersion:
    """Write a version, or find that it is there already.

    In a directory, one that is there and damaged is put aside under a hidden name.

    Args:
        root: Datasets root: directory, URI or bucket.
        name: Dataset name.
        splits: Rows of ``train``, ``validation``, ``test`` and perhaps ``preferences``.
        origin: What the rows were made from (snapshot, digests, settings); part of the version.
        details: Further manifest entries (counts); not part of the version.
        card: Dataset card; ``{version}`` in it is replaced.
        extra_files: File names to JSON values that are written beside the manifest and are no
            part of the version (contract report).

    Raises:
        DatasetError: If it cannot be written.
        StoreError: If the object store cannot be written.
    """
    if not _NAME.match(name):
        raise DatasetError(f"{name!r} cannot be a dataset name.")
    version = content_version(splits, origin)
    root = root if isinstance(root, Bucket) else open_root(root)
    entries = {**origin, **details}
    if isinstance(root, Bucket):
        if not _is_there(root, name, version):
            with root.staging() as staged:
                _stage(staged, name, version, splits, entries, card, extra_files or {})
                _create(root, f"{name}/{version}", staged)
        return _in_bucket(root, name, version)
    folder = root / name
    _remove_abandoned(folder)
    target = folder / version
    with contextlib.suppress(DatasetError):
        return _intact(target)
    staged = folder / f".{version}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        staged.mkdir(parents=True)
        _stage(staged, name, version, splits, entries, card, extra_files or {})
        _publish(staged, target)
    except OSError as error:
        raise DatasetError(f"Cannot write the dataset into {folder}: {error}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _in_directory(target)


def _stage(
    staged: Path,
    name: str,
    version: str,
    splits: Mapping[str, pa.Table],
    entries: Mapping[str, Any],
    card: str,
    extra_files: Mapping[str, Any],
) -> None:
    """Write all files of a version into a directory, the manifest last."""
    for split, table in splits.items():
        _write_parquet(staged / f"{split}.parquet", table)
    write_bytes_atomic(staged / "README.md", card.replace("{version}", version).encode())
    files = {
        path.name: {"sha256": ids.digest_file(path), "bytes": path.stat().st_size}
        for path in sorted(staged.iterdir())
    }
    for file, value in extra_files.items():
        write_json_atomic(staged / file, value)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "version": version,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **entries,
        "splits": {split: table.num_rows for split, table in splits.items()},
        "files": files,
    }
    write_json_atomic(staged / MANIFEST, manifest)


def _create(bucket: Bucket, folder: str, staged: Path) -> None:
    """Create the objects of a version, the manifest last.

    Nothing is overwritten, so what two builders of the same version write at the same time, or
    one after a crash of the other, cannot be mixed.

    Raises:
        DatasetError: If an unfinished version with other bytes is there.
    """
    digested = read_manifest(staged)["files"]
    extra = [path.name for path in staged.iterdir() if path.name not in (*digested, MANIFEST)]
    for name in (*digested, *extra, MANIFEST):
        created = bucket.create(f"{folder}/{name}", (staged / name).read_bytes())
        if created or name not in digested:
            continue
        if bucket.constant(f"{folder}/{MANIFEST}") is not None:
            return  # somebody else has built it meanwhile: theirs is as good
        raise DatasetError(
            f"{bucket.uri}/{folder} holds another {name} and no manifest: a build by another "
            "release is writing it, or was killed.",
            next_step="Wait for it, or remove what is there and build again.",
        )


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed builds left: staging folders in which nothing changed for a day."""
    for staged in folder.glob(".*"):
        if not _STAGED.match(staged.name):
            continue
        # Another build may be quicker to remove it.
        with contextlib.suppress(FileNotFoundError):
            newest = max(path.stat().st_mtime for path in (staged, *staged.iterdir()))
            if time.time() - newest > _ABANDONED_SECONDS:
                shutil.rmtree(staged)


def _intact(path: Path) -> DatasetVersion:
    version = _in_directory(path)
    version.verify()
    return version


def _publish(staged: Path, target: Path) -> None:
    while True:
        try:
            staged.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _intact(target)
            break  # somebody else built the same content at the same time: theirs is as good
        except DatasetError as error:
            aside = target.with_name(f".{target.name}-damaged-{os.urandom(4).hex()}")
            logger.warning("%s is put aside as %s: %s", target, aside.name, error)
        with contextlib.suppress(FileNotFoundError):  # another builder was quicker
            target.rename(aside)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_parquet(path: Path, table: pa.Table) -> None:
    with path.open("wb") as stream:
        pq.write_table(table, stream, compression="zstd")
        stream.flush()
        os.fsync(stream.fileno())
