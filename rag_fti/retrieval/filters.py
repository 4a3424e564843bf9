"""Filters over chunks: the caller's own, and the collections a key may see."""

from __future__ import annotations

from collections.abc import Sequence

from rag_fti.retrieval.conditions import check_condition


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
