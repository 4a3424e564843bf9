"""Telling a client's bad filter from a store that is down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rag_fti.errors import ConfigError, SnapshotNotFound, StoreError
from rag_fti.retrieval.conditions import check_condition
from serving.errors import ApiError
from serving.services import Services

_RAISED_AT = re.compile(r",? ?/\S+\.rs:\d+:\d+")
"""Where in the database's source an error comes from."""


@contextmanager
def explained(services: Services, where: str | None) -> Iterator[None]:
    """Answer 400 to a filter that is no condition, and to one that alone makes reading fail.

    Args:
        services: The server's parts.
        where: The filter that the client sent.
    """
    if where and where.strip():
        try:
            check_condition(where)
        except ConfigError as error:
            raise _refused(str(error)) from error
    try:
        yield
    except SnapshotNotFound:
        raise
    except StoreError as error:
        if not where or not where.strip():
            raise
        services.store.count_chunks()  # raises if the store itself is the trouble
        reason = _RAISED_AT.sub("", error.message)[:500]
        raise _refused(f"The filter cannot be used: {reason}") from error


def _refused(message: str) -> ApiError:
    return ApiError(message, param="filter", code="bad_filter")
