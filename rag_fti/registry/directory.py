"""The registry in a directory: renames publish, a lock file guards the aliases."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rag_fti.errors import RegistryError
from rag_fti.files import locked, write_bytes_atomic, write_json_atomic
from rag_fti.registry.aliases import HISTORY, AliasChange, alias_view, parse_history
from rag_fti.registry.versions import (
    MANIFEST,
    ModelVersion,
    Step,
    check_files,
    commit,
    left_out_if_damaged,
    read_version,
    remove_directory,
    stage_files,
    sync_directory,
)

_STAGING = ".staging"
_TRASH = ".trash"
_RETIRED = "retired"


class DirectoryShelf:
    """A :class:`~rag_fti.registry.shelf.Shelf` on one file system.

    Args:
        root: Directory of the registry; made on first publication.
        step: Called with the name of every durable step; tests crash there.
    """

    def __init__(self, root: Path, step: Step) -> None:
        self._root = root
        self._step = step

    def names(self) -> list[str]:
        """Directories of the root."""
        if not self._root.is_dir():
            return []
        return sorted(entry.name for entry in self._root.iterdir() if entry.is_dir())

    def numbers(self, name: str) -> list[int]:
        """Version directories with a manifest."""
        directory = self._root / name / "versions"
        if not directory.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in directory.iterdir()
            if entry.name.isdecimal() and (entry / MANIFEST).is_file()
        )

    def versions(self, name: str) -> list[ModelVersion]:
        """Complete versions, oldest first."""
        found = []
        for number in self.numbers(name):
            with left_out_if_damaged(name, number):
                found.append(self.find(name, number))
        return [version for version in found if version is not None]

    def find(self, name: str, number: int) -> ModelVersion | None:
        """One version, or None if it is not there."""
        return read_version(name, number, self._version(name, number))

    def verify(self, version: ModelVersion) -> None:
        """Check the files in place."""
        check_files(version.path, version.manifest, what=version.ref)

    def publish(self, name: str, files: Path, manifest: Mapping[str, Any]) -> ModelVersion:
        """Copy into a hidden directory, then rename it to the next free number."""
        model = self._root / name
        staged = model / _STAGING / f"{os.getpid()}-{os.urandom(6).hex()}"
        try:
            staged.mkdir(parents=True)
            (model / "versions").mkdir(exist_ok=True)
            self._step("staging made")
            entries = stage_files(files, staged)
            self._step("files copied")
            number = commit(
                staged,
                model / "versions",
                {**manifest, "files": entries},
                max([0, *self.numbers(name), *self.retired(name)]) + 1,
                self._step,
            )
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise RegistryError(f"Cannot publish into {model}: {error}.") from error
        except RegistryError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        version = self.find(name, number)
        assert version is not None
        return version

    def history(self, name: str) -> list[AliasChange]:
        """All alias changes, oldest first."""
        path = self._aliases(name) / HISTORY
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RegistryError(f"Cannot read {path}: {error}.") from error
        return parse_history(data, where=str(path))

    @contextmanager
    def changing(self, name: str) -> Iterator[DirectoryLog]:
        """The history, while a lock keeps other writers out."""
        directory = self._aliases(name)
        with locked(directory / ".lock"):
            yield DirectoryLog(directory, self.history(name), self._step)

    def retired(self, name: str) -> dict[int, dict[str, Any]]:
        """Tombstones by number."""
        return {
            int(path.stem): json.loads(path.read_text(encoding="utf-8"))
            for path in (self._root / name / _RETIRED).glob("*.json")
            if path.stem.isdecimal()
        }

    def remove(self, name: str, number: int) -> None:
        """Write the tombstone, rename the version out of sight, delete it."""
        model, path = self._root / name, self._version(name, number)
        (model / _RETIRED).mkdir(exist_ok=True)
        write_bytes_atomic(model / _RETIRED / f"{number}.json", (path / MANIFEST).read_bytes())
        self._step("tombstone written")
        remove_directory(path, model / _TRASH)

    def leftovers(self, name: str, *, older_than: float) -> list[str]:
        """Directories of crashed publications and removals."""
        model = self._root / name
        return [
            f"{hidden}/{path.name}"
            for hidden in (_STAGING, _TRASH)
            for path in sorted((model / hidden).glob("*"))
            if _unchanged_seconds(path) >= older_than
        ]

    def sweep(self, name: str, leftovers: Sequence[str]) -> None:
        """Delete such directories."""
        for leftover in leftovers:
            shutil.rmtree(self._root / name / leftover)

    def _version(self, name: str, number: int) -> Path:
        return self._root / name / "versions" / str(number)

    def _aliases(self, name: str) -> Path:
        return self._root / name / "aliases"


class DirectoryLog:
    """An alias history that is appended to; its lock is held."""

    def __init__(self, directory: Path, changes: Sequence[AliasChange], step: Step) -> None:
        self.changes = changes
        self._directory = directory
        self._step = step

    def append(self, new: Sequence[AliasChange]) -> bool:
        """Add lines durably."""
        path = self._directory / HISTORY
        created = not path.exists()
        data = "".join(change.line() + "\n" for change in new).encode("utf-8")
        middle = len(data) // 2
        with path.open("ab") as stream:
            _cut_torn_line(path)
            stream.write(data[:middle])
            stream.flush()
            self._step("history half written")
            stream.write(data[middle:])
            stream.flush()
            os.fsync(stream.fileno())
        self._step("history written")
        if created:
            sync_directory(self._directory)
        self.changes = [*self.changes, *new]
        for alias in dict.fromkeys(change.alias for change in new if change.alias):
            write_json_atomic(self._directory / f"{alias}.json", alias_view(self.changes, alias))
        return True


def _unchanged_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its publisher has just moved it into place
        return -math.inf


def _cut_torn_line(path: Path) -> None:
    """A line without its newline never counted: the next writer cuts it off."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
