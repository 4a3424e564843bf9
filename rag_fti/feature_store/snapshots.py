"""States of the store: a pair of table versions, named by id or by tag."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rag_fti.errors import SnapshotNotFound, StoreError
from rag_fti.feature_store.tables import Tables, mapped_errors

_ID = re.compile(r"^d(\d{1,18})c(\d{1,18})\Z")
_ANSWERED = re.compile(r"^answered-(d\d{1,18}c\d{1,18})\Z")
_TABLES = ("documents", "chunks")


def current(tables: Tables) -> str:
    """Id of the newest consistent state, such as ``d12c15``.

    Raises:
        StoreError: If nothing was ever ingested.
    """
    for name in _TABLES:
        tables.get(name)
    return tables.settled(lambda: _newest(tables))


@contextmanager
def changing(tables: Tables) -> Iterator[None]:
    """Commit to both tables while readers go on seeing the state before."""
    with tables.locked(before=lambda: _newest(tables)):
        yield


def _newest(tables: Tables) -> str:
    documents, chunks = (tables.newest(name) for name in _TABLES)
    return f"d{documents}c{chunks}"


def resolve(tables: Tables, at: str) -> str:
    """The snapshot id that ``at`` (an id, a tag, or empty for the newest) names.

    Raises:
        SnapshotNotFound: If there is no such tag or the snapshot was cleaned up.
    """
    if not at:
        return current(tables)
    snapshot = at if _ID.match(at) else tags(tables).get(at)
    if snapshot is None:
        known = ", ".join(t for t in tags(tables) if not _ANSWERED.match(t)) or "none"
        raise SnapshotNotFound(
            f"No snapshot or tag {at!r} in {tables.uri}; tags: {known}.",
            next_step="Give a snapshot id such as d12c15, a tag, or nothing for the newest.",
        )
    for name, version in zip(_TABLES, versions(snapshot), strict=True):
        tables.at(name, version)
    return snapshot


def version_of(tables: Tables, name: str, at: str) -> int:
    """The version of a table in a state; an id is taken as it is, a tag looked up."""
    documents, chunks = versions(at if _ID.match(at) else resolve(tables, at))
    return documents if name == "documents" else chunks


def versions(snapshot: str) -> tuple[int, int]:
    """Versions of ``documents`` and ``chunks`` in a snapshot id.

    Raises:
        SnapshotNotFound: If it is none.
    """
    match = _ID.match(snapshot)
    if match is None:
        raise SnapshotNotFound(f"{snapshot!r} is no snapshot id; they look like d12c15.")
    return int(match[1]), int(match[2])


def tag(tables: Tables, name: str, snapshot: str) -> None:
    """Pin a snapshot (empty: the newest) under a name; an existing tag moves.

    Raises:
        StoreError: If the name is not allowed.
        SnapshotNotFound: If the snapshot is not there.
    """
    if _ID.match(name) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StoreError(
            f"{name!r} cannot be a tag.", next_step="Use letters, digits, '.', '_' and '-'."
        )
    pinned = versions(resolve(tables, snapshot))
    with mapped_errors(f"tag {name}"):
        for table_name, version in zip(_TABLES, pinned, strict=True):
            present = tables.get(table_name).tags
            if name in present.list():
                present.update(name, version)
            else:
                present.create(name, version)


def untag(tables: Tables, name: str) -> None:
    """Remove a tag; its snapshot may be cleaned up from now on.

    Raises:
        SnapshotNotFound: If there is no such tag.
    """
    if name not in tags(tables):
        raise SnapshotNotFound(f"No tag {name!r} in {tables.uri}.")
    with mapped_errors(f"remove the tag {name}"):
        for table_name in _TABLES:
            tables.get(table_name).tags.delete(name)


def pin_answered(tables: Tables, wanted: Collection[str]) -> None:
    """Pin the states that answers were made on, as ``answered-<snapshot>``, and let others go.

    Args:
        tables: The tables.
        wanted: Snapshot ids; those that are gone already are left out.
    """
    if tables.find("documents") is None or tables.find("chunks") is None:
        return
    wanted = {snapshot for snapshot in wanted if _ID.match(snapshot)}
    # The lock keeps other processes from pinning the same states at the same time.
    with tables.locked(), mapped_errors("pin the states of answers"):
        for position, name in enumerate(_TABLES):
            table = tables.get(name)
            held = {found[1]: tag for tag in table.tags.list() if (found := _ANSWERED.match(tag))}
            present = {entry["version"] for entry in table.list_versions()}
            for snapshot in held.keys() - wanted:
                table.tags.delete(held[snapshot])
            for snapshot in wanted - held.keys():
                if (version := versions(snapshot)[position]) in present:
                    table.tags.create(f"answered-{snapshot}", version)


def tags(tables: Tables) -> dict[str, str]:
    """All tags with the snapshot ids they pin."""
    documents, chunks = (tables.find(name) for name in _TABLES)
    if documents is None or chunks is None:
        return {}
    with mapped_errors("list tags"):
        left, right = documents.tags.list(), chunks.tags.list()
    return {
        name: f"d{left[name]['version']}c{right[name]['version']}"
        for name in sorted(left.keys() & right.keys())
    }


def oldest(tables: Tables) -> str:
    """Id of the oldest state that still can be read and holds chunks."""
    first = []
    for name in _TABLES:
        table = tables.get(name)
        with mapped_errors("list versions"):
            known = sorted(entry["version"] for entry in table.list_versions())
        filled = (v for v in known if tables.at(name, v).count_rows())
        first.append(next(filled, known[-1]))
    return f"d{first[0]}c{first[1]}"
