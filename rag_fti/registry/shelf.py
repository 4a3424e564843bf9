"""What the registry needs of the place where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from rag_fti.registry.aliases import AliasChange
from rag_fti.registry.versions import ModelVersion


class AliasLog(Protocol):
    """The history of a model's aliases as somebody who wants to add to it found it."""

    changes: Sequence[AliasChange]
    """All changes, oldest first."""

    def append(self, new: Sequence[AliasChange]) -> bool:
        """Add lines; False, and nothing added, if somebody else added some meanwhile."""
        ...


class Shelf(Protocol):
    """Versions, alias history and tombstones in a directory or in an object store.

    A version is on the shelf as a whole or not at all, also for those who look while it is put
    there and after a crash.
    """

    def names(self) -> list[str]:
        """Names of models, sorted; perhaps also of some without a complete version."""
        ...

    def numbers(self, name: str) -> list[int]:
        """Complete versions of a model, ascending."""
        ...

    def versions(self, name: str) -> list[ModelVersion]:
        """Complete versions of a model, oldest first; damaged ones are left out with a warning."""
        ...

    def find(self, name: str, number: int) -> ModelVersion | None:
        """One version, or None if it is not there."""
        ...

    def verify(self, version: ModelVersion) -> None:
        """Check the files in ``version.path``, which are fetched if they are elsewhere.

        Raises:
            RegistryError: If one does not match its digest in the manifest.
        """
        ...

    def publish(self, name: str, files: Path, manifest: Mapping[str, Any]) -> ModelVersion:
        """Put a copy of a directory on the shelf under the next free number."""
        ...

    def history(self, name: str) -> list[AliasChange]:
        """All alias changes of a model, oldest first."""
        ...

    def changing(self, name: str) -> AbstractContextManager[AliasLog]:
        """The history for adding to it; within the block nobody else does, where locks exist."""
        ...

    def retired(self, name: str) -> dict[int, dict[str, Any]]:
        """Manifests of removed versions by number."""
        ...

    def remove(self, name: str, number: int) -> None:
        """Keep a version's manifest as a tombstone, then take the version away."""
        ...

    def leftovers(self, name: str, *, older_than: float) -> list[str]:
        """Names of unfinished publications and removals, untouched for so many seconds."""
        ...

    def sweep(self, name: str, leftovers: Sequence[str]) -> None:
        """Delete leftovers."""
        ...
