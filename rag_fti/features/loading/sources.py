"""From the paths a user gives to the files behind them."""

from __future__ import annotations

import fnmatch
import glob
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rag_fti.errors import SourceError
from rag_fti.features.loading.formats import format_of, is_archive
from rag_fti.features.loading.parsed import Limits
from rag_fti.features.loading.workers import LoadTask

STDIN = "-"
MEMBER = "!/"
"""Between an archive and the name of a member: ``docs.zip!/guide/intro.md``."""


@dataclass
class Found:
    """What the given paths stand for."""

    sources: dict[str, Path] = field(default_factory=dict)
    """Names of documents with their paths, sorted within every given path; archives as a whole.
    A name is not always a path: names of files need not be valid text."""
    roots: list[str] = field(default_factory=list)
    """Given directories, files and patterns; documents below them that are not among the
    sources are gone."""
    failures: dict[str, str] = field(default_factory=dict)
    """Given paths that lead nowhere, with the reason."""
    skipped: int = 0
    """Files in directories whose type is not known."""


def is_url(path: str) -> bool:
    """Whether a given path is a web address."""
    return path.lower().startswith(("http://", "https://"))


def source_name(path: str | Path) -> str:
    """A path as documents are called: POSIX slashes, no leading ``./``, always valid text."""
    text = os.fsencode(os.path.normpath(path)).decode("utf-8", errors="backslashreplace")
    return text.replace(os.sep, "/")


def find_sources(
    paths: Sequence[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Found:
    """The documents behind files, directories, glob patterns, URLs and ``-`` (stdin).

    Args:
        paths: As given by the user.
        include: Glob patterns of file names to take from directories; empty takes known types.
        exclude: Glob patterns of file and directory names to leave out.
    """
    found = Found()
    for given in paths:
        for name, path in _behind(given, found, include, exclude):
            found.sources.setdefault(name, path)
    return found


def _behind(
    given: str, found: Found, include: Sequence[str], exclude: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    path = Path(given)
    if is_url(given) or given == STDIN:
        yield given, path
        return
    root = source_name(path)
    found.roots.append(root)
    if path.is_dir():
        yield from _walk(path, found, include, exclude)
    elif path.exists():
        yield root, path
    elif glob.has_magic(given):
        matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 - keeps names as given
        if not matches:
            found.failures[root] = "no file matches this pattern"
        for match in matches:
            if Path(match).is_dir():
                continue
            yield source_name(match), Path(match)
    else:
        found.failures[root] = "no such file or directory"


def _walk(
    top: Path, found: Found, include: Sequence[str], exclude: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    for directory, names, files in os.walk(top):
        names[:] = sorted(name for name in names if not matches_any(name, exclude))
        for name in sorted(files):
            if matches_any(name, exclude):
                continue
            wanted = matches_any(name, include) if include else format_of(name) or is_archive(name)
            if wanted:
                path = Path(directory) / name
                yield source_name(path), path
            else:
                found.skipped += 1


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name matches one of some glob patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def is_below(source: str, roots: Sequence[str]) -> bool:
    """Whether a document's source lies in, or is, one of the given roots."""
    for root in roots:
        if source == root or source.startswith((f"{root.rstrip('/')}/", f"{root}{MEMBER}")):
            return True
        if root == "." and not source.startswith(("/", "../")):
            return True
        if glob.has_magic(root) and fnmatch.fnmatch(source, root):
            return True
    return False


def read_stdin(limits: Limits, *, name: str) -> LoadTask:
    """The document on standard input."""
    return LoadTask(name, data=sys.stdin.buffer.read(limits.max_file_bytes + 1))


def members(archive: Path, source: str, limits: Limits) -> Iterator[LoadTask | tuple[str, str]]:
    """The documents in an archive, and ``(source, reason)`` for those that are refused.

    Nothing is unpacked to disk. Members of unknown types are left out.

    Raises:
        SourceError: If the archive is damaged, encrypted or unpacks to too much.
    """
    try:
        if zipfile.is_zipfile(archive):
            yield from _zip_members(archive, source, limits)
        else:
            yield from _tar_members(archive, source, limits)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError) as error:
        raise SourceError(f"damaged archive: {error}") from error
    except NotImplementedError as error:
        raise SourceError(f"archive of an unsupported kind: {error}") from error


def _zip_members(
    archive: Path, source: str, limits: Limits
) -> Iterator[LoadTask | tuple[str, str]]:
    budget = _Budget(archive, limits)
    with zipfile.ZipFile(archive) as opened:
        for entry in sorted(opened.infolist(), key=lambda e: e.filename):
            if entry.is_dir() or not _is_document(entry.filename):
                continue
            name = f"{source}{MEMBER}{source_name(entry.filename)}"
            if entry.flag_bits & 1:
                yield name, "password-protected"
                continue
            with opened.open(entry) as stream:
                yield budget.take(name, stream.read(limits.max_file_bytes + 1))


def _tar_members(
    archive: Path, source: str, limits: Limits
) -> Iterator[LoadTask | tuple[str, str]]:
    budget = _Budget(archive, limits)
    with tarfile.open(archive) as opened:
        for entry in opened:
            if not entry.isfile() or not _is_document(entry.name):
                continue
            stream = opened.extractfile(entry)
            if stream is not None:
                name = f"{source}{MEMBER}{source_name(entry.name)}"
                yield budget.take(name, stream.read(limits.max_file_bytes + 1))


def _is_document(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return format_of(name) is not None and not any(part.startswith(".") for part in parts)


class _Budget:
    """Counts what an archive unpacks to."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        packed = archive.stat().st_size
        self._left = max(4 * 1024 * 1024, int(packed * limits.max_expansion))
        self._limits = limits

    def take(self, name: str, data: bytes) -> LoadTask | tuple[str, str]:
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(
                f"archive unpacks to more than {self._limits.max_expansion:g} times its size"
            )
        if len(data) > self._limits.max_file_bytes:
            return name, f"larger than {self._limits.max_file_bytes} bytes"
        return LoadTask(name, data=data)
