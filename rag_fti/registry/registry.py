"""The registry's operations."""

from __future__ import annotations

import getpass
import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag_fti.bucket import DEFAULT_CACHE, Bucket, open_root
from rag_fti.errors import ModelNotFound, RegistryError
from rag_fti.registry import aliases as alias_log
from rag_fti.registry.aliases import AliasChange
from rag_fti.registry.directory import DirectoryShelf
from rag_fti.registry.objects import ObjectShelf
from rag_fti.registry.shelf import AliasLog, Shelf
from rag_fti.registry.versions import (
    ALIAS,
    MANIFEST,
    NAME,
    ModelVersion,
    Step,
    check_files,
    manifest_digest,
    no_step,
    parse_reference,
    read_version,
    stage_files,
    sync_directory,
)

_STALE_SECONDS = 24 * 3600.0
_ATTEMPTS = 40
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
    """Model versions under one directory or one URI of an object store.

    Safe for any number of processes. In a directory publishing needs no lock, moving aliases and
    collecting garbage take one that dies with its process; in an object store there are no locks,
    only writes on condition.

    Args:
        root: Directory or bucket of the registry; made on first publication.
        step: Called with the name of every durable step; tests crash there.
    """

    def __init__(self, root: Path | Bucket, *, step: Step = no_step) -> None:
        self.root = root
        self._shelf: Shelf = (
            DirectoryShelf(root, step) if isinstance(root, Path) else ObjectShelf(root, step)
        )

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        options: Mapping[str, str] | None = None,
        cache: Path = DEFAULT_CACHE,
    ) -> Registry:
        """The registry at a directory or URI; it may not exist yet.

        Args:
            uri: Directory, ``file://``, ``s3://``, ``gs://`` or ``az://``.
            options: Options of the object store.
            cache: Directory for copies of versions in an object store.

        Raises:
            ConfigError: If it cannot be opened.
        """
        return cls(open_root(uri, options=options, cache=cache))

    # Reading

    def names(self) -> list[str]:
        """Model names with at least one complete version, sorted."""
        return [
            name for name in self._shelf.names() if NAME.match(name) and self._shelf.numbers(name)
        ]

    def versions(self, name: str) -> list[ModelVersion]:
        """Complete versions of a model, oldest first; empty for an unknown name.

        One whose manifest is damaged is left out with a warning; garbage collection keeps it.
        """
        return self._shelf.versions(_checked(name))

    def version(self, name: str, number: int) -> ModelVersion:
        """One version.

        Raises:
            ModelNotFound: If there is no such version.
        """
        found = self._shelf.find(_checked(name), number)
        if found is None:
            known = ", ".join(map(str, self._shelf.numbers(name))) or "none"
            retired = number in self._shelf.retired(name)
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
        return self._shelf.history(_checked(name))

    def verify(self, version: ModelVersion) -> None:
        """Check every file in ``version.path`` against the digests in the manifest.

        Of a registry in an object store the files are fetched first, unless they are there.

        Raises:
            RegistryError: If a file is missing, changed or unknown.
            StoreError: If the object store cannot be read.
        """
        self._shelf.verify(version)

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
        return self._shelf.publish(_checked(model_name), files, {**manifest, "model": model_name})

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
        check_files(source, foreign.manifest, what=str(source))
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
        self.version(name, version)

        def decide(changes: Sequence[AliasChange]) -> AliasChange:
            self._require(name, version, changes)
            return alias_log.next_change(
                changes,
                action="set",
                alias=alias,
                version=version,
                who=who or user_name(),
                why=why,
                report=report,
            )

        return self._change(name, decide)

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
        if not self._shelf.numbers(_checked(name)):
            raise ModelNotFound(f"The registry at {self.root} has no model {name!r}.")

        def decide(changes: Sequence[AliasChange]) -> AliasChange:
            versions = alias_log.stack(changes, alias)
            if len(versions) < 2:
                raise ModelNotFound(
                    f"{name}@{alias} has no earlier version to go back to.",
                    next_step="Point it at a version yourself: rag-fti promote NAME@VERSION.",
                )
            self._require(name, versions[-2], changes)
            return alias_log.next_change(
                changes,
                action="rollback",
                alias=alias,
                version=versions[-2],
                who=who or user_name(),
                why=why,
                report=report,
            )

        return self._change(name, decide)

    def _require(self, name: str, number: int, changes: Sequence[AliasChange]) -> None:
        """Check that a version is there and is not being removed."""
        self.version(name, number)
        if number in alias_log.removed(changes):
            raise ModelNotFound(
                f"{name}@{number} is being removed by gc.",
                next_step="Choose another; rag-fti models gc ends a removal that was cut short.",
            )

    def _change(
        self, name: str, decide: Callable[[Sequence[AliasChange]], AliasChange]
    ) -> AliasChange:
        """Add what ``decide`` makes of the history; again if somebody else was quicker."""
        for _ in _attempts(name):
            with self._shelf.changing(name) as log:
                change = decide(log.changes)
                if log.append([change]):
                    return change
        raise AssertionError("the last attempt raises")

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
        for _ in _attempts(_checked(name)):
            with self._shelf.changing(name) as log:
                present = self._shelf.versions(name)
                keep = {version.version for version in (present[-keep_last:] if keep_last else [])}
                keep.update(alias_log.targets(log.changes).values())
                for alias in rollback_aliases:
                    keep.update(alias_log.stack(log.changes, alias))
                begun = alias_log.removed(log.changes)
                doomed = [
                    version.version
                    for version in present
                    if version.version in begun
                    or (
                        version.version not in keep
                        and version.ref not in referenced
                        and _age_seconds(version) >= min_age_seconds
                    )
                ]
                leftovers = self._shelf.leftovers(name, older_than=stale_seconds)
                if not dry_run:
                    if not self._announce(log, [n for n in doomed if n not in begun]):
                        continue  # somebody moved an alias: judge again
                    for number in doomed:
                        self._shelf.remove(name, number)
                    self._shelf.sweep(name, leftovers)
                return Garbage(tuple(f"{name}@{n}" for n in doomed), len(leftovers))
        raise AssertionError("the last attempt raises")

    def _announce(self, log: AliasLog, numbers: Sequence[int]) -> bool:
        """Write down that versions are removed, so that nobody points an alias at them."""
        lines: list[AliasChange] = []
        for number in numbers:
            lines.append(
                alias_log.next_change(
                    [*log.changes, *lines],
                    action="remove",
                    version=number,
                    who=user_name(),
                    why="garbage collection",
                )
            )
        return not lines or log.append(lines)

    def retired(self, name: str) -> dict[int, dict[str, Any]]:
        """Manifests of versions that gc removed, by number."""
        return self._shelf.retired(_checked(name))


def _checked(name: str) -> str:
    """A model name.

    Raises:
        RegistryError: If it cannot be one.
    """
    if not NAME.match(name):
        raise RegistryError(
            f"{name!r} cannot be a model name.",
            next_step="Use letters, digits, '.', '-' and '_', at most 64 characters.",
        )
    return name


def _attempts(name: str) -> Iterator[int]:
    """Turns to try a change in, with growing pauses of random length between them.

    Raises:
        RegistryError: After the last.
    """
    for attempt in range(_ATTEMPTS):
        yield attempt
        time.sleep(random.uniform(0, min(1.0, 0.02 * 2**attempt)))
    raise RegistryError(
        f"Others kept changing the aliases of {name} at the same time.", next_step="Try again."
    )


def _age_seconds(version: ModelVersion) -> float:
    created = datetime.fromisoformat(str(version.manifest["created_at"]))
    return (datetime.now(UTC) - created).total_seconds()


def user_name() -> str:
    """The name of the user who runs this, for the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"
