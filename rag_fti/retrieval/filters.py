"""Filters over chunks: the caller's own, and the collections a key may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag_fti.errors import ConfigError
from rag_fti.retrieval.conditions import check_condition

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore


def restrict(where: str | None, collections: Sequence[str] | None) -> str | None:
    """A filter that holds ``where`` inside the given collections.

    Args:
        where: SQL condition from a caller; may come from an untrusted client.
        collections: Names that may be seen; None means all, an empty sequence none.

    Returns:
        One SQL condition, or None for no condition.

    Raises:
        ConfigError: If ``where`` is not a condition of :mod:`rag_fti.retrieval.conditions`.
    """
    parts = []
    if collections is not None:
        names = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(set(collections)))
        parts.append(f"collection IN ({names})" if names else "collection IS NULL")
    if where and where.strip():
        check_condition(where)
        parts.append(f"({where.strip()})")
    return " AND ".join(parts) or None


def require_collections(store: FeatureStore, wanted: Sequence[str] | None, *, at: str) -> None:
    """Refuse names that no document has: a slip of the pen must not look like "not found".

    Args:
        store: The feature store.
        wanted: Names that were asked for; None or none means all.
        at: Snapshot or tag to read; "" is the newest.

    Raises:
        ConfigError: If one of them is not there.
        StoreError: If the store cannot be read.
    """
    if not wanted:
        return
    there = store.collections(at=at)
    for name in wanted:
        if name not in there:
            raise ConfigError(
                f"There is no collection {name!r} in the feature store.",
                next_step=f"There are: {', '.join(there) or 'none'}.",
            )
