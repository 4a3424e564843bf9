"""Aliases and their history.

``history.jsonl`` is the truth: an alias points where its last line says. One appended and
flushed line is the whole commit, so a crash leaves the old state or the new one. A line that
was torn by a crash has no newline; it never counted, and the next writer cuts it off. Every line
carries the digest of the line before it, so that a change to the past shows.

``<alias>.json`` beside it is a copy for people and other programs, renewed after each change.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rag_fti import ids
from rag_fti.errors import RegistryError
from rag_fti.files import write_json_atomic
from rag_fti.registry.versions import Step, no_step

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class AliasChange:
    """One line of the history."""

    sequence: int
    """Counts from 1."""
    at: str
    """UTC time, ISO 8601."""
    who: str
    action: Literal["set", "rollback"]
    alias: str
    from_version: int | None
    to_version: int
    why: str
    report: str
    """Path of the report the decision rests on; may be empty."""
    previous: str
    """SHA-256 of the line before, empty for the first."""

    def line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Exclusive right to move aliases or collect garbage; freed by the kernel on a crash."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_history(directory: Path) -> list[AliasChange]:
    """All changes, oldest first.

    Raises:
        RegistryError: If a finished line is damaged or the chain of digests is broken.
    """
    path = directory / HISTORY
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RegistryError(f"Cannot read {path}: {error}.") from error
    changes: list[AliasChange] = []
    previous = ""
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            change = AliasChange(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RegistryError(
                f"Line {number} of {path} is damaged: {error}.",
                next_step="Restore the file from a backup.",
            ) from error
        if change.previous != previous or change.sequence != number:
            raise RegistryError(
                f"The history {path} was changed before line {number}; it is append-only.",
                next_step="Restore the file from a backup.",
            )
        changes.append(change)
        previous = ids.digest_text(line)
    return changes


def targets(changes: Sequence[AliasChange]) -> dict[str, int]:
    """Where each alias points."""
    return {change.alias: change.to_version for change in changes}


def stack(changes: Sequence[AliasChange], alias: str) -> list[int]:
    """Versions an alias can be rolled back through, the current one last."""
    versions: list[int] = []
    for change in changes:
        if change.alias != alias:
            continue
        if change.action == "rollback":
            versions = versions[:-1]
        elif not versions or versions[-1] != change.to_version:
            versions.append(change.to_version)
    return versions


def append_change(
    directory: Path,
    changes: Sequence[AliasChange],
    *,
    action: Literal["set", "rollback"],
    alias: str,
    version: int,
    who: str,
    why: str,
    report: str,
    step: Step = no_step,
) -> AliasChange:
    """Add one line. The caller holds the lock and has just read ``changes``."""
    change = AliasChange(
        sequence=len(changes) + 1,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        who=who,
        action=action,
        alias=alias,
        from_version=targets(changes).get(alias),
        to_version=version,
        why=why,
        report=report,
        previous=ids.digest_text(changes[-1].line()) if changes else "",
    )
    path = directory / HISTORY
    created = not path.exists()
    with path.open("ab") as stream:
        _cut_torn_line(path)
        data = (change.line() + "\n").encode("utf-8")
        middle = len(data) // 2
        stream.write(data[:middle])
        stream.flush()
        step("history half written")
        stream.write(data[middle:])
        stream.flush()
        os.fsync(stream.fileno())
    step("history written")
    if created:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    write_json_atomic(
        directory / f"{alias}.json", {"alias": alias, "version": version, "since": change.at}
    )
    return change


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)
