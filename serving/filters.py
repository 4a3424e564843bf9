"""Telling a client's bad filter from a store that is down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rag_fti.errors import SnapshotNotFound, StoreError
from serving.errors import ApiError
from serving.services import Services


@contextmanager
def explained(services: Services, where: str | None) -> Iterator[None]:
    """Answer 400 when reading fails with the client's filter and works without it.

    Args:
        services: The server's parts.
        where: The filter that the client sent.
    """
    try:
        yield
    except SnapshotNotFound:
        raise
    except StoreError as error:
        if not where or not where.strip():
            raise
        services.store.count_chunks()  # raises if the store itself is the trouble
        raise ApiError(
            f"The filter cannot be used: {str(error)[:500]}", param="filter", code="bad_filter"
        ) from error
