"""One immutable model version: a directory that exists as a whole or not at all.

A version is built under a hidden name, flushed to disk, its manifest written last, and then
moved to ``versions/<n>`` by one rename. A rename onto a directory that holds anything fails,
so of two publishers that want the same number exactly one gets it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rag_fti import ids
from rag_fti.errors import RegistryError
from rag_fti.files import write_json_atomic

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
ALIAS = re.compile(r"^[a-z][a-z0-9_-]{0,63}$")

UNSAFE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so"})
"""Files that can run code when they are loaded; weights travel as safetensors."""

_BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)

Step = Callable[[str], None]
"""Called with the name of every durable step; tests use it to crash there."""


def no_step(_: str) -> None:
    """A step hook that does nothing."""


@dataclass(frozen=True)
class ModelVersion:
    """A complete version."""

    name: str
    version: int
    path: Path
    """Directory that transformers, peft and vLLM can load. Of a registry in an object store it is
    a local copy, which :meth:`Registry.verify` fetches."""
    manifest: Mapping[str, Any]
    location: str
    """Where the version is published: a directory or a URI."""

    @property
    def ref(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Reference:
    """A parsed ``name@version``, ``name@alias`` or ``alias``."""

    name: str
    """Empty when only an alias was given."""
    version: int | None
    alias: str


def parse_reference(text: str) -> Reference:
    """Read ``name@3``, ``name@champion`` or ``champion``.

    Raises:
        RegistryError: If it has none of these forms.
    """
    name, separator, rest = text.strip().rpartition("@")
    if not separator:
        name, rest = "", text.strip()
    if (name and not NAME.match(name)) or (separator and not name):
        raise _bad_reference(text)
    if rest.isdecimal() and name:
        return Reference(name, int(rest), "")
    if ALIAS.match(rest):
        return Reference(name, None, rest)
    raise _bad_reference(text)


def _bad_reference(text: str) -> RegistryError:
    return RegistryError(
        f"{text!r} is no model reference.",
        next_step="Write name@version, name@alias or an alias, for example assistant@3.",
    )


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Digest of a manifest as canonical JSON."""
    return ids.digest_json(dict(manifest))


def read_version(name: str, number: int, path: Path) -> ModelVersion | None:
    """The version in ``path``, or None while there is none.

    Raises:
        RegistryError: If the manifest is there but cannot be read.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryError(f"Cannot read {path / MANIFEST}: {error}.") from error
    return ModelVersion(name, number, path, parse_manifest(text, where=str(path)), str(path))


def parse_manifest(data: str | bytes, *, where: str) -> dict[str, Any]:
    """The manifest of the version at ``where``.

    Raises:
        RegistryError: If it is damaged.
    """
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise RegistryError(
            f"The manifest {where}/{MANIFEST} is damaged: {error}.",
            next_step="Remove the version's files and import or train it again.",
        ) from error
    return manifest


@contextmanager
def left_out_if_damaged(name: str, number: int) -> Iterator[None]:
    """Reading one version of a list: a damaged one hides no other."""
    try:
        yield
    except RegistryError as error:
        logger.warning("%s@%d is left out: %s", name, number, error)


def finished_manifest(manifest: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A manifest with what is known only when it is published."""
    return {
        "schema": MANIFEST_SCHEMA,
        **manifest,
        "version": number,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def stage_files(source: Path, target: Path) -> dict[str, dict[str, Any]]:
    """Copy a directory durably and digest it on the way.

    Args:
        source: Directory with the version's files; ``manifest.json`` at its top is left out.
        target: New directory.

    Returns:
        ``{relative name: {"sha256", "bytes"}}``.

    Raises:
        RegistryError: If there is nothing to copy, or a link or code-carrying file is among it.
    """
    if not source.is_dir():
        raise RegistryError(f"{source} is no directory of model files.")
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_symlink():
            raise RegistryError(f"{path} is a link; a version holds plain files only.")
        if path.is_dir() or name == MANIFEST:
            continue
        if path.suffix.lower() in UNSAFE_SUFFIXES:
            raise RegistryError(
                f"{name} can run code when loaded and is not taken into the registry.",
                next_step="Save weights as safetensors.",
            )
        entries[name] = _copy(path, target / name)
    if not entries:
        raise RegistryError(f"{source} holds no model files.")
    for directory in [target, *(p for p in target.rglob("*") if p.is_dir())]:
        sync_directory(directory)
    return entries


def commit(
    staged: Path, versions: Path, manifest: Mapping[str, Any], first: int, step: Step
) -> int:
    """Give a staged directory the next free number.

    Args:
        staged: Directory with the files, on the same file system as ``versions``.
        versions: Directory of all versions.
        manifest: Manifest without ``version`` and ``created_at``.
        first: Number to try first.
        step: Called at every durable step.

    Returns:
        The number it got.
    """
    number = first
    while True:
        write_json_atomic(staged / MANIFEST, finished_manifest(manifest, number))
        step("manifest written")
        try:
            staged.rename(versions / str(number))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise RegistryError(f"Cannot publish into {versions}: {error}.") from error
            number += 1
            continue
        step("version renamed")
        sync_directory(versions)
        return number


def check_files(path: Path, manifest: Mapping[str, Any], *, what: str) -> None:
    """Compare the files in ``path`` with the digests in a manifest.

    Raises:
        RegistryError: If one is missing, changed or not in the manifest.
    """
    files = listed_files(manifest, what=what)
    present = {
        p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() or p.is_symlink()
    } - {MANIFEST}
    missing = sorted(set(files) - present)
    extra = sorted(present - set(files))
    changed = sorted(
        name
        for name in set(files) & present
        if (path / name).is_symlink()
        or (path / name).stat().st_size != files[name]["bytes"]
        or ids.digest_file(path / name) != files[name]["sha256"]
    )
    if missing or extra or changed:
        parts = [
            f"{label} {', '.join(names[:5])}"
            for label, names in (("missing", missing), ("changed", changed), ("unknown", extra))
            if names
        ]
        raise RegistryError(
            f"The files of {what} do not match its manifest: {'; '.join(parts)}.",
            next_step="Roll back to another version, or import this one again from its source.",
        )


def listed_files(manifest: Mapping[str, Any], *, what: str) -> Mapping[str, Mapping[str, Any]]:
    """Names, digests and sizes of a version's files.

    Raises:
        RegistryError: If the manifest lists none, or not with size and digest.
    """
    files = manifest.get("files")
    if not isinstance(files, Mapping) or not all(
        isinstance(entry, Mapping) and {"bytes", "sha256"} <= entry.keys()
        for entry in files.values()
    ):
        raise RegistryError(
            f"The manifest of {what} lists no files with their bytes and sha256.",
            next_step="Import or copy the version again from its source.",
        )
    return files


def remove_directory(path: Path, trash: Path) -> None:
    """Take a directory out of sight in one rename, then delete it."""
    trash.mkdir(parents=True, exist_ok=True)
    doomed = trash / f"{path.name}-{os.urandom(6).hex()}"
    path.rename(doomed)
    sync_directory(path.parent)
    shutil.rmtree(doomed)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(source: Path, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    state, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_BLOCK_BYTES):
            state.update(block)
            size += len(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    target.chmod(0o444)
    return {"sha256": state.hexdigest(), "bytes": size}
