"""The error statuses that routes declare in the OpenAPI schema."""

from __future__ import annotations

from typing import Any

from serving.wire import ErrorBody

_WHEN = {
    400: "The request does not fit.",
    401: "No valid key was given.",
    403: "The key, host or origin may not do this.",
    404: "There is no such thing, or it is not visible to this key.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is of a kind that is not read.",
    422: "The document cannot be read.",
    429: "Too many requests; see Retry-After.",
    500: "The server failed.",
    503: "The store, the registry or the model is not available.",
    504: "It took too long.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route: these statuses and those that any route may give."""
    return {
        status: {"model": ErrorBody, "description": _WHEN[status]}
        for status in sorted({400, 401, 403, 408, 413, 429, 500, 503, *statuses})
    }
