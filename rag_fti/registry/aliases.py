"""Aliases and their history.

``history.jsonl`` is the truth: an alias points where its last line says. One line is the whole
commit, so a crash leaves the old state or the new one; a line that a crash tore has no newline
and never counted. Every line carries the digest of the line before it, so that a change to the
past shows.

Garbage collection writes a line before it removes a version. So of two that remove a version and
point an alias at it at once, the later sees the line of the earlier, also where there are no locks.

``<alias>.json`` beside it is a copy for people and other programs, renewed after each change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rag_fti import ids
from rag_fti.errors import RegistryError

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class AliasChange:
    """One line of the history."""

    sequence: int
    """Counts from 1."""
    at: str
    """UTC time, ISO 8601."""
    who: str
    action: Literal["set", "rollback", "remove"]
    alias: str
    """Empty where a version was removed."""
    from_version: int | None
    to_version: int
    """Where the alias points, or the version that was removed."""
    why: str
    report: str
    """Path of the report the decision rests on; may be empty."""
    previous: str
    """SHA-256 of the line before, empty for the first."""

    def line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)


def parse_history(data: bytes, *, where: str) -> list[AliasChange]:
    """All changes in a history file, oldest first; a torn last line does not count.

    Args:
        data: The file.
        where: Its name, for messages.

    Raises:
        RegistryError: If a finished line is damaged or the chain of digests is broken.
    """
    changes: list[AliasChange] = []
    previous = ""
    text = data.decode("utf-8", errors="replace")
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            change = AliasChange(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RegistryError(
                f"Line {number} of {where} is damaged: {error}.",
                next_step="Restore the file from a backup.",
            ) from error
        if change.previous != previous or change.sequence != number:
            raise RegistryError(
                f"The history {where} was changed before line {number}; it is append-only.",
                next_step="Restore the file from a backup.",
            )
        changes.append(change)
        previous = ids.digest_text(line)
    return changes


def targets(changes: Sequence[AliasChange]) -> dict[str, int]:
    """Where each alias points."""
    return {change.alias: change.to_version for change in changes if change.alias}


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


def removed(changes: Sequence[AliasChange]) -> set[int]:
    """Versions that garbage collection has removed or is removing."""
    return {change.to_version for change in changes if change.action == "remove"}


def next_change(
    changes: Sequence[AliasChange],
    *,
    action: Literal["set", "rollback", "remove"],
    alias: str = "",
    version: int,
    who: str,
    why: str,
    report: str = "",
) -> AliasChange:
    """The line that follows these changes; what is no Unicode text in it becomes "?"."""
    return AliasChange(
        sequence=len(changes) + 1,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        who=_writable(who),
        action=action,
        alias=alias,
        from_version=targets(changes).get(alias),
        to_version=version,
        why=_writable(why),
        report=_writable(report),
        previous=ids.digest_text(changes[-1].line()) if changes else "",
    )


def _writable(text: str) -> str:
    """Bytes of an argument that are not UTF-8 come as lone surrogates."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def alias_view(changes: Sequence[AliasChange], alias: str) -> dict[str, Any]:
    """What ``<alias>.json`` says after these changes."""
    last = next(change for change in reversed(changes) if change.alias == alias)
    return {"alias": alias, "version": last.to_version, "since": last.at}
