"""From the paths a user gives to the files behind them."""

from __future__ import annotations

import fnmatch
import glob
import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

from rag_fti.errors import SourceError
from rag_fti.features.loading.formats import format_of, is_archive, unread_reason
from rag_fti.features.loading.parsed import Limits
from rag_fti.features.loading.workers import LoadTask

STDIN = "-"
MEMBER = "!/"
"""Between an archive and the name of a member: ``docs.zip!/guide/intro.md``."""
_MAX_DEPTH = 3
"""Archives in archives are read to this depth."""


@dataclass
class Found:
    """What the given paths stand for."""

    sources: dict[str, Path] = field(default_factory=dict)
    """Names of documents with their paths, sorted within every given path; archives as a whole.
    A name is not always a path: names of files need not be valid text."""
    roots: list[str] = field(default_factory=list)
    """Given directories and files; documents below them that are not among the sources are
    gone."""
    patterns: list[str] = field(default_factory=list)
    """Given glob patterns; documents that they match and that are not among the sources are
    gone."""
    failures: dict[str, str] = field(default_factory=dict)
    """Given paths that lead nowhere, with the reason."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Directories that exist and cannot be listed, with the reason: what lies below is unknown."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files in directories that are not read, with the reason."""


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
    pattern = glob.has_magic(given) and not path.exists()
    (found.patterns if pattern else found.roots).append(root)
    if path.is_dir():
        yield from _walk(path, found, include, exclude)
    elif path.exists():
        yield root, path
    elif pattern:
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
    def note(error: OSError) -> None:
        reason = f"directory cannot be read: {error.strerror or error}"
        found.unreadable[source_name(error.filename or top)] = reason

    for directory, names, files in os.walk(top, onerror=note):
        names[:] = sorted(name for name in names if not matches_any(name, exclude))
        for name in sorted(files):
            if matches_any(name, exclude):
                continue
            wanted = matches_any(name, include) if include else format_of(name) or is_archive(name)
            path = Path(directory) / name
            if wanted:
                yield source_name(path), path
            else:
                other = "not in loading.include" if include else "unknown type"
                found.skipped[source_name(path)] = unread_reason(name) or other


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name matches one of some glob patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def is_below(source: str, roots: Sequence[str], *, patterns: Sequence[str] = ()) -> bool:
    """Whether a document's source lies in, or is, one of the given roots, or fits a pattern."""
    for root in roots:
        inside = f"{root.rstrip('/')}/"
        if source == root or source.startswith(f"{root}{MEMBER}"):
            return True
        if source.startswith(inside) and not source.startswith(f"{inside}../"):
            return True
        if root == "." and not is_url(source) and not source.startswith(("/", "../")):
            return True
    path = source.partition(MEMBER)[0].split("/")
    return any(_fits(path, pattern.split("/")) for pattern in patterns)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob pattern, part by part: ``*`` crosses no slash, ``**`` does."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def read_stdin(limits: Limits, *, name: str) -> LoadTask:
    """The document on standard input."""
    return LoadTask(name, data=sys.stdin.buffer.read(limits.max_file_bytes + 1))


def members(archive: Path, source: str, limits: Limits) -> Iterator[LoadTask | tuple[str, str]]:
    """The documents in an archive, and ``(source, reason)`` for those that are refused.

    Archives inside it are read too. Nothing is unpacked to disk. Members of unknown types are
    left out.

    Raises:
        SourceError: If the archive is damaged, encrypted or unpacks to too much.
    """
    try:
        budget = _Budget(archive.stat().st_size, limits)
        with archive.open("rb") as stream:
            yield from _members(stream, source, budget, depth=1)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}") from error


def _members(
    archive: BinaryIO, source: str, budget: _Budget, *, depth: int
) -> Iterator[LoadTask | tuple[str, str]]:
    try:
        entries = _zip_entries if zipfile.is_zipfile(archive) else _tar_entries
        archive.seek(0)
        for name, stream in entries(archive):
            member = f"{source}{MEMBER}{source_name(name)}"
            if stream is None:
                yield member, "password-protected"
                continue
            with stream:
                task = budget.take(member, stream.read(budget.limits.max_file_bytes + 1))
            if not is_archive(name) or not isinstance(task, LoadTask):
                yield task
            elif depth == _MAX_DEPTH:
                yield member, f"archives are read to a depth of {_MAX_DEPTH}"
            else:
                try:
                    inner = io.BytesIO(task.read(budget.limits.max_file_bytes))
                    yield from _members(inner, member, budget, depth=depth + 1)
                except SourceError as error:
                    yield member, str(error)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise SourceError(f"damaged archive: {error}") from error
    except (OSError, RuntimeError) as error:
        raise SourceError(f"damaged archive: {error}") from error
    except NotImplementedError as error:
        raise SourceError(f"archive of an unsupported kind: {error}") from error


def _zip_entries(archive: BinaryIO) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names and contents of a zip's documents; None for one that is encrypted."""
    with zipfile.ZipFile(archive) as opened:
        for entry in sorted(opened.infolist(), key=lambda e: e.filename):
            if not entry.is_dir() and _is_wanted(entry.filename):
                yield entry.filename, None if entry.flag_bits & 1 else opened.open(entry)


def _tar_entries(archive: BinaryIO) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names and contents of a tar's documents."""
    with tarfile.open(fileobj=archive) as opened:
        for entry in opened:
            if entry.isfile() and _is_wanted(entry.name):
                yield entry.name, opened.extractfile(entry)


def _is_wanted(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    known = format_of(name) is not None or is_archive(name)
    return known and not any(part.startswith(".") for part in parts)


class _Budget:
    """Counts what an archive, and those inside it, unpack to."""

    def __init__(self, packed: int, limits: Limits) -> None:
        self._left = max(4 * 1024 * 1024, int(packed * limits.max_expansion))
        self.limits = limits

    def take(self, name: str, data: bytes) -> LoadTask | tuple[str, str]:
        self._left -= len(data)
        if self._left < 0:
            raise SourceError(
                f"archive unpacks to more than {self.limits.max_expansion:g} times its size"
            )
        if len(data) > self.limits.max_file_bytes:
            return name, f"larger than {self.limits.max_file_bytes} bytes"
        return LoadTask(name, data=data)
