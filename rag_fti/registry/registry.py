"""The registry's operations."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag_fti.errors import ModelNotFound, RegistryError
from rag_fti.files import write_bytes_atomic
from rag_fti.registry import aliases as alias_log
from rag_fti.registry.aliases import AliasChange
from rag_fti.registry.versions import (
    ALIAS,
    MANIFEST,
    NAME,
    ModelVersion,
    Step,
    check_files,
    commit,
    manifest_digest,
    no_step,
    parse_reference,
    read_version,
    remove_directory,
    stage_files,
    sync_directory,
)

_STAGING = ".staging"
_TRASH = ".trash"
_RETIRED = "retired"
_URI = re.compile(r"^[a-z][a-z0-9+.-]*://")
_STALE_SECONDS = 24 * 3600.0
_MIN_AGE_SECONDS = 3600.0
"""Age up to which garbage collection keeps a version."""


@dataclass(frozen=True)
class Garbage:
    """What :meth:`Registry.gc` removed or would remove."""

    versions: tuple[str, ...]
    """References of versions."""
    leftovers: int
    """Unfinished publications of crashed processes."""


class Registry:
    """Model versions under one directory.

    Safe for any number of processes on one file system: publishing needs no lock, moving
    aliases and collecting garbage take one that dies with its process.

    Args:
        root: Directory of the registry; made on first publication.
        step: Called with the name of every durable step; tests crash there.
    """

    def __init__(self, root: Path, *, step: Step = no_step) -> None:
        self.root = root
        self._step = step

    @classmethod
    def open(cls, uri: str) -> Registry:
        """The registry at a directory or ``file://`` URI; it may not exist yet.

        Raises:
            RegistryError: For object-store URIs: those are mounted or copied with
                :meth:`export_version` and :meth:`import_version`.
        """
        if uri.startswith("file://"):
            return cls(Path(uri.removeprefix("file://")))
        if _URI.match(uri):
            raise RegistryError(
                f"The registry cannot be opened at {uri}: atomic renames need a file system.",
                next_step="Mount the bucket, or keep the registry in a directory and move "
                "versions with models export and models import.",
            )
        return cls(Path(uri))

    # Reading

    def names(self) -> list[str]:
        """Model names with at least one complete version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.root.iterdir()
            if entry.is_dir() and NAME.match(entry.name) and self._numbers(entry.name)
        )

    def versions(self, name: str) -> list[ModelVersion]:
        """Complete versions of a model, oldest first; empty for an unknown name."""
        found = (
            read_version(name, number, self._version_path(name, number))
            for number in self._numbers(name)
        )
        return [version for version in found if version is not None]

    def version(self, name: str, number: int) -> ModelVersion:
        """One version.

        Raises:
            ModelNotFound: If there is no such version.
        """
        found = read_version(name, number, self._version_path(name, number))
        if found is None:
            known = ", ".join(map(str, self._numbers(name))) or "none"
            retired = (self._model(name) / _RETIRED / f"{number}.json").exists()
            raise ModelNotFound(
                f"The registry at {self.root} has no {name}@{number}"
                f"{' (it was removed by gc)' if retired else ''}; versions there: {known}.",
                next_step="List them with: rag-fti models list.",
            )
        return found

    def resolve(self, ref: str) -> ModelVersion:
        """The version that ``name@3``, ``name@champion`` or ``champion`` means.

        A bare alias works while exactly one model has it.

        Raises:
            ModelNotFound: If nothing, or more than one model, fits.
            RegistryError: If ``ref`` has another form.
        """
        parsed = parse_reference(ref)
        if parsed.version is not None:
            return self.version(parsed.name, parsed.version)
        names = [parsed.name] if parsed.name else self.names()
        found = {
            name: table[parsed.alias]
            for name in names
            if parsed.alias in (table := self.aliases(name))
        }
        if len(found) == 1:
            ((name, number),) = found.items()
            return self.version(name, number)
        if found:
            raise ModelNotFound(
                f"{ref!r} is an alias of several models: {', '.join(sorted(found))}.",
                next_step=f"Write the model's name too, for example {min(found)}@{parsed.alias}.",
            )
        known = sorted({f"{name}@{a}" for name in self.names() for a in self.aliases(name)})
        raise ModelNotFound(
            f"No model in the registry at {self.root} has the alias {ref!r}; "
            f"aliases there: {', '.join(known) or 'none'}.",
            next_step="Train and promote one: rag-fti train, then rag-fti evaluate VERSION.",
        )

    def aliases(self, name: str) -> dict[str, int]:
        """Alias to version number; empty for an unknown name."""
        return alias_log.targets(self.history(name))

    def history(self, name: str) -> list[AliasChange]:
        """All alias changes of a model, oldest first."""
        return alias_log.read_history(self._model(name) / "aliases")

    def verify(self, version: ModelVersion) -> None:
        """Check every file against the digests in the manifest.

        Raises:
            RegistryError: If a file is missing, changed or unknown.
        """
        files = version.manifest.get("files")
        if not isinstance(files, Mapping):
            raise RegistryError(f"The manifest of {version.ref} lists no files.")
        check_files(version.path, files, what=version.ref)

    # Publishing

    def publish(self, model_name: str, files: Path, manifest: Mapping[str, Any]) -> ModelVersion:
        """Make a new version out of a directory of files, all at once or not at all.

        Args:
            model_name: Name in the registry.
            files: Directory that is copied; it stays as it is.
            manifest: What the version was made from; ``model``, ``version``, ``created_at``
                and ``files`` are set here.

        Raises:
            RegistryError: If the files are not fit for a registry or cannot be written.
        """
        model = self._model(model_name)
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
                {**manifest, "model": model_name, "files": entries},
                self._next_number(model_name),
                self._step,
            )
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise RegistryError(f"Cannot publish into {model}: {error}.") from error
        except RegistryError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return self.version(model_name, number)

    def import_version(self, source: Path, *, model_name: str = "") -> ModelVersion:
        """Publish a version that was made elsewhere; importing it again changes nothing.

        Args:
            source: A version directory, as :meth:`export_version` or a training bundle made it.
            model_name: Name here; empty keeps the name in its manifest.

        Raises:
            RegistryError: If it is no version directory or its files do not match its manifest.
        """
        foreign = read_version("imported", 0, source)
        if foreign is None:
            raise RegistryError(
                f"{source} holds no {MANIFEST}, so it is no complete model version.",
                next_step="Give the directory registry/<model>/versions/<n>.",
            )
        self.verify(foreign)
        manifest = dict(foreign.manifest)
        name = model_name or str(manifest.get("model", ""))
        digest = manifest_digest(manifest)
        for version in self.versions(name):
            origin = version.manifest.get("imported_from") or {}
            if digest in (origin.get("manifest_digest"), manifest_digest(version.manifest)):
                return version
        manifest["imported_from"] = {
            "model": manifest.get("model"),
            "version": manifest.get("version"),
            "created_at": manifest.get("created_at"),
            "manifest_digest": digest,
        }
        return self.publish(name, source, manifest)

    def export_version(self, version: ModelVersion, target: Path) -> Path:
        """Copy a verified version, manifest last, into a new directory.

        Raises:
            RegistryError: If ``target`` exists or the version is damaged.
        """
        if target.exists():
            raise RegistryError(
                f"{target} exists already.", next_step="Give a directory that does not exist."
            )
        self.verify(version)
        building = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        try:
            building.mkdir(parents=True)
            stage_files(version.path, building)
            shutil.copyfile(version.path / MANIFEST, building / MANIFEST)
            building.rename(target)
            sync_directory(target.parent)
        except OSError as error:
            raise RegistryError(f"Cannot export to {target}: {error}.") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return target

    # Aliases

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int,
        *,
        who: str = "",
        why: str,
        report: str = "",
    ) -> AliasChange:
        """Point an alias at a version and write down who, when, from, to, why.

        Raises:
            ModelNotFound: If the version does not exist.
            RegistryError: If the alias is no valid name.
        """
        if not ALIAS.match(alias) or alias == "base":
            raise RegistryError(
                f"{alias!r} cannot be an alias.",
                next_step="Use lower-case letters, digits, - and _; 'base' is taken.",
            )
        directory = self._model(name) / "aliases"
        self.version(name, version)
        with alias_log.locked(directory):
            self.version(name, version)
            return alias_log.append_change(
                directory,
                alias_log.read_history(directory),
                action="set",
                alias=alias,
                version=version,
                who=who or user_name(),
                why=why,
                report=report,
                step=self._step,
            )

    def rollback(
        self,
        name: str,
        alias: str = "champion",
        *,
        who: str = "",
        why: str = "rollback",
        report: str = "",
    ) -> AliasChange:
        """Point an alias back at the version it had before; again goes back further.

        Raises:
            ModelNotFound: If there is no earlier version.
        """
        directory = self._model(name) / "aliases"
        if not self._numbers(name):
            raise ModelNotFound(f"The registry at {self.root} has no model {name!r}.")
        with alias_log.locked(directory):
            changes = alias_log.read_history(directory)
            versions = alias_log.stack(changes, alias)
            if len(versions) < 2:
                raise ModelNotFound(
                    f"{name}@{alias} has no earlier version to go back to.",
                    next_step="Point it at a version yourself: rag-fti promote NAME@VERSION.",
                )
            self.version(name, versions[-2])
            return alias_log.append_change(
                directory,
                changes,
                action="rollback",
                alias=alias,
                version=versions[-2],
                who=who or user_name(),
                why=why,
                report=report,
                step=self._step,
            )

    # Garbage

    def gc(
        self,
        name: str,
        *,
        keep_last: int = 3,
        referenced: Collection[str] = (),
        rollback_aliases: Collection[str] = ("champion",),
        dry_run: bool = False,
        min_age_seconds: float = _MIN_AGE_SECONDS,
        stale_seconds: float = _STALE_SECONDS,
    ) -> Garbage:
        """Remove versions that nothing refers to, and leftovers of crashed publishers.

        Kept are: the newest ``keep_last``, those younger than ``min_age_seconds``, every version
        an alias points at, every version that ``rollback_aliases`` can be rolled back to, and
        ``referenced``. A removed number is never given out again, and its manifest stays under
        ``retired/`` for lineage.

        Args:
            name: Model name.
            keep_last: Newest versions to keep in any case.
            referenced: ``name@version`` strings that something else refers to (logged answers,
                predictions).
            rollback_aliases: Aliases whose whole rollback path is kept.
            dry_run: Only say what would go.
            min_age_seconds: Age up to which a version stays in any case: whoever published it
                has yet to point an alias at it.
            stale_seconds: Age from which an unfinished publication counts as abandoned.
        """
        model = self._model(name)
        with alias_log.locked(model / "aliases"):
            history = self.history(name)
            numbers = self._numbers(name)
            keep = set(numbers[-keep_last:] if keep_last else [])
            keep.update(alias_log.targets(history).values())
            for alias in rollback_aliases:
                keep.update(alias_log.stack(history, alias))
            doomed = [
                version.version
                for version in self.versions(name)
                if version.version not in keep
                and version.ref not in referenced
                and _age_seconds(version) >= min_age_seconds
            ]
            leftovers = [
                path
                for hidden in (_STAGING, _TRASH)
                for path in sorted((model / hidden).glob("*"))
                if _unchanged_seconds(path) >= stale_seconds
            ]
            if not dry_run:
                for number in doomed:
                    self._retire(name, number)
                for path in leftovers:
                    shutil.rmtree(path)
        return Garbage(tuple(f"{name}@{n}" for n in doomed), len(leftovers))

    def _retire(self, name: str, number: int) -> None:
        model = self._model(name)
        path = self._version_path(name, number)
        retired = model / _RETIRED
        retired.mkdir(exist_ok=True)
        write_bytes_atomic(retired / f"{number}.json", (path / MANIFEST).read_bytes())
        self._step("tombstone written")
        remove_directory(path, model / _TRASH)

    def retired(self, name: str) -> dict[int, dict[str, Any]]:
        """Manifests of versions that gc removed, by number."""
        return {
            int(path.stem): json.loads(path.read_text(encoding="utf-8"))
            for path in (self._model(name) / _RETIRED).glob("*.json")
            if path.stem.isdecimal()
        }

    # Paths

    def _model(self, name: str) -> Path:
        if not NAME.match(name):
            raise RegistryError(
                f"{name!r} cannot be a model name.",
                next_step="Use letters, digits, '.', '-' and '_', at most 64 characters.",
            )
        return self.root / name

    def _version_path(self, name: str, number: int) -> Path:
        return self._model(name) / "versions" / str(number)

    def _numbers(self, name: str) -> list[int]:
        directory = self._model(name) / "versions"
        if not directory.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in directory.iterdir()
            if entry.name.isdecimal() and (entry / MANIFEST).is_file()
        )

    def _next_number(self, name: str) -> int:
        used = [*self._numbers(name)]
        retired = self._model(name) / _RETIRED
        if retired.is_dir():
            used += [int(p.stem) for p in retired.glob("*.json") if p.stem.isdecimal()]
        return max(used, default=0) + 1


def _unchanged_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its publisher has just moved it into place
        return -math.inf


def _age_seconds(version: ModelVersion) -> float:
    created = datetime.fromisoformat(str(version.manifest["created_at"]))
    return (datetime.now(UTC) - created).total_seconds()


def user_name() -> str:
    """The name of the user who runs this, for the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
