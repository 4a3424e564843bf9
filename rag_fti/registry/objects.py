"""The registry in an object store: create-only writes publish and give out numbers.

The layout is that of the directory, so either can be copied to the other. There are no locks and
no renames. Instead:

- ``claims/<n>.json`` can be created once, so a number is given to one publisher; it stays, so a
  number is never given out again.
- The manifest is created after all files; a version is there when its manifest is.
- The history is replaced on condition that it is still the one that was read.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag_fti.bucket import Bucket, Stored
from rag_fti.errors import RegistryError
from rag_fti.files import json_bytes
from rag_fti.registry.aliases import HISTORY, AliasChange, alias_view, parse_history
from rag_fti.registry.versions import (
    MANIFEST,
    ModelVersion,
    Step,
    check_files,
    finished_manifest,
    left_out_if_damaged,
    listed_files,
    parse_manifest,
    stage_files,
)


class ObjectShelf:
    """A :class:`~rag_fti.registry.shelf.Shelf` in a bucket.

    Args:
        bucket: Where the registry is.
        step: Called with the name of every durable step; tests crash there.
    """

    def __init__(self, bucket: Bucket, step: Step) -> None:
        self._bucket = bucket
        self._step = step

    def names(self) -> list[str]:
        """First parts of all paths."""
        return self._bucket.folders()

    def numbers(self, name: str) -> list[int]:
        """Numbers with a manifest."""
        return self._numbered(name, "versions", MANIFEST)

    def versions(self, name: str) -> list[ModelVersion]:
        """Complete versions, oldest first; manifests never change and are read once."""
        found = []
        for number in self.numbers(name):
            manifest = self._bucket.constant(f"{_folder(name, number)}/{MANIFEST}")
            if manifest is not None:
                with left_out_if_damaged(name, number):
                    found.append(self._version(name, number, manifest))
        return found

    def find(self, name: str, number: int) -> ModelVersion | None:
        """One version, or None if it is not there."""
        stored = self._bucket.read(f"{_folder(name, number)}/{MANIFEST}")
        return self._version(name, number, stored.data) if stored is not None else None

    def verify(self, version: ModelVersion) -> None:
        """Fetch the files into ``version.path`` unless they are there, and check them."""
        folder, label = _folder(version.name, version.version), _label(version)
        stored = self._bucket.read(f"{folder}/{MANIFEST}")
        if stored is None or self._bucket.cached(label, stored.data) != version.path:
            raise RegistryError(
                f"{version.location} was {'removed' if stored is None else 'changed'} meanwhile."
            )
        self._bucket.fetch(
            folder,
            listed_files(version.manifest, what=version.ref),
            label=label,
            manifest=stored.data,
            check=lambda path: check_files(path, version.manifest, what=version.ref),
        )

    def publish(self, name: str, files: Path, manifest: Mapping[str, Any]) -> ModelVersion:
        """Claim a number, write the files under it, then the manifest."""
        with self._bucket.staging() as staged:
            entries = stage_files(files, staged)
            number = self._claim(name)
            self._step("number claimed")
            folder = _folder(name, number)
            for entry in entries:
                self._bucket.upload(staged / entry, f"{folder}/{entry}")
                self._step("file written")
        data = json_bytes(finished_manifest({**manifest, "files": entries}, number))
        there = {entry.path: entry.size for entry in self._bucket.entries(folder)}
        if there != {f"{folder}/{entry}": known["bytes"] for entry, known in entries.items()}:
            raise RegistryError(
                f"The files in {self._bucket.uri}/{folder} are not those just written.",
                next_step="Publish again; if it took more than a day, garbage collection may "
                "have taken it for abandoned.",
            )
        if not self._bucket.create(f"{folder}/{MANIFEST}", data):
            raise RegistryError(f"There is a manifest in {self._bucket.uri}/{folder} already.")
        self._step("manifest written")
        return self._version(name, number, data)

    def history(self, name: str) -> list[AliasChange]:
        """All alias changes, oldest first."""
        return list(ObjectLog(self._bucket, f"{name}/aliases").changes)

    @contextmanager
    def changing(self, name: str) -> Iterator[ObjectLog]:
        """The history as it is now; adding to it fails if it has changed."""
        yield ObjectLog(self._bucket, f"{name}/aliases")

    def retired(self, name: str) -> dict[int, dict[str, Any]]:
        """Tombstones by number."""
        found = {}
        for number in self._numbered(name, "retired", ".json"):
            data = self._bucket.constant(f"{name}/retired/{number}.json")
            if data is not None:
                found[number] = dict(json.loads(data))
        return found

    def remove(self, name: str, number: int) -> None:
        """Write the tombstone, delete the manifest, then the files."""
        folder = _folder(name, number)
        manifest = self._bucket.read(f"{folder}/{MANIFEST}")
        if manifest is None:
            return  # somebody else removes it
        self._bucket.create(f"{name}/retired/{number}.json", manifest.data)
        self._step("tombstone written")
        self._bucket.delete([f"{folder}/{MANIFEST}"])
        self._step("manifest removed")
        self.sweep(name, [str(number)])

    def leftovers(self, name: str, *, older_than: float) -> list[str]:
        """Numbers that have files and no manifest."""
        complete = set()
        newest: dict[str, datetime] = {}
        for entry in self._bucket.entries(f"{name}/versions"):
            number = entry.path.split("/")[2]
            newest[number] = max(newest.get(number, entry.modified), entry.modified)
            if entry.path == f"{name}/versions/{number}/{MANIFEST}":
                complete.add(number)
        now = datetime.now(UTC)
        return [
            number
            for number, modified in sorted(newest.items())
            if number not in complete and (now - modified).total_seconds() >= older_than
        ]

    def sweep(self, name: str, leftovers: Sequence[str]) -> None:
        """Delete the files of such numbers."""
        for number in leftovers:
            folder = f"{name}/versions/{number}"
            paths = [entry.path for entry in self._bucket.entries(folder)]
            if f"{folder}/{MANIFEST}" not in paths:  # else it has been published after all
                self._bucket.delete(paths)

    def _claim(self, name: str) -> int:
        claims = self._numbered(name, "claims", ".json")
        taken = [*claims, *self.numbers(name), *self._numbered(name, "retired", ".json")]
        number = max(taken, default=0) + 1
        claim = json_bytes(
            {
                "by": f"{socket.gethostname()}/{os.getpid()}/{os.urandom(6).hex()}",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        while not self._bucket.create(f"{name}/claims/{number}.json", claim):
            number += 1
        return number

    def _numbered(self, name: str, folder: str, ending: str) -> list[int]:
        """The numbers in ``<name>/<folder>/<n>.json`` or ``<name>/<folder>/<n>/<ending>``."""
        prefix = f"{name}/{folder}"
        ending = ending if ending.startswith(".") else f"/{ending}"
        names = [
            entry.path.removeprefix(f"{prefix}/").removesuffix(ending)
            for entry in self._bucket.entries(prefix)
            if entry.path.endswith(ending)
        ]
        return sorted(int(text) for text in names if text.isdecimal())

    def _version(self, name: str, number: int, data: bytes) -> ModelVersion:
        location = f"{self._bucket.uri}/{_folder(name, number)}"
        manifest = parse_manifest(data, where=location)
        path = self._bucket.cached(f"{name}-{number}", data)
        return ModelVersion(name, number, path, manifest, location)


class ObjectLog:
    """An alias history that is replaced as a whole, if it is still what was read."""

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket = bucket
        self._folder = folder
        self._path = f"{folder}/{HISTORY}"
        self._stored: Stored | None = bucket.read(self._path)
        data = self._stored.data if self._stored is not None else b""
        self._lines = data[: data.rfind(b"\n") + 1]
        self.changes: Sequence[AliasChange] = parse_history(
            data, where=f"{bucket.uri}/{self._path}"
        )

    def append(self, new: Sequence[AliasChange]) -> bool:
        """Add lines; False if somebody else did meanwhile."""
        data = self._lines + "".join(change.line() + "\n" for change in new).encode("utf-8")
        if self._stored is None:
            done = self._bucket.create(self._path, data)
        else:
            done = self._bucket.replace(self._path, data, self._stored)
        if done:
            for alias in dict.fromkeys(change.alias for change in new if change.alias):
                self._write_view(alias, [*self.changes, *new])
        return done

    def _write_view(self, alias: str, changes: Sequence[AliasChange]) -> None:
        """Write ``<alias>.json``; whoever is last to do so has seen the last change."""
        written = None
        while (view := alias_view(changes, alias)) != written:
            self._bucket.write(f"{self._folder}/{alias}.json", json_bytes(view))
            written = view
            changes = ObjectLog(self._bucket, self._folder).changes


def _folder(name: str, number: int) -> str:
    return f"{name}/versions/{number}"


def _label(version: ModelVersion) -> str:
    return f"{version.name}-{version.version}"
