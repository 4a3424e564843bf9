"""From errors to HTTP: one table, OpenAI-shaped bodies."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from rag_fti.errors import (
    ConfigError,
    ContextTooLong,
    ContractViolation,
    IncompatibleArtifact,
    InferenceError,
    ModelNotFound,
    Overloaded,
    RagFtiError,
    RegistryError,
    SnapshotNotFound,
    SourceError,
    StoreError,
)

logger = logging.getLogger(__name__)


class ApiError(RagFtiError):
    """A request is refused.

    Args:
        message: What is wrong.
        status: HTTP status.
        kind: ``error.type`` of the body.
        code: ``error.code`` of the body.
        param: The offending parameter.
        headers: Extra response headers.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Shape:
    """How a kind of error is answered."""

    status: int
    kind: str
    code: str | None
    message: str = ""
    """Said instead of the error's own words, where those tell of paths or of others' data."""


_NO_SNAPSHOT = (
    "There is no such snapshot or tag; give the snapshot of an answer, a tag, or nothing for the "
    "newest."
)

# The first entry whose class fits counts: special cases stand before their bases.
TABLE: tuple[tuple[type[RagFtiError], Shape], ...] = (
    (ContextTooLong, Shape(400, "invalid_request_error", "context_length_exceeded")),
    (Overloaded, Shape(429, "rate_limit_error", "overloaded")),
    (ModelNotFound, Shape(404, "invalid_request_error", "model_not_found")),
    (SnapshotNotFound, Shape(404, "invalid_request_error", "snapshot_not_found", _NO_SNAPSHOT)),
    (ConfigError, Shape(400, "invalid_request_error", None)),
    (SourceError, Shape(422, "invalid_request_error", "unreadable_document")),
    (IncompatibleArtifact, Shape(503, "server_error", "incompatible_artifact")),
    (RegistryError, Shape(503, "server_error", "registry_unavailable")),
    (StoreError, Shape(503, "server_error", "store_unavailable")),
    (ContractViolation, Shape(500, "server_error", "contract_violated")),
    (InferenceError, Shape(503, "server_error", "generation_failed")),
    (RagFtiError, Shape(500, "server_error", None)),
)

_STATUS_CODES = {401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "bad_method"}
MAX_SHOWN = 500


def body_of(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, object]:
    """An OpenAI-shaped error body."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: RagFtiError) -> tuple[int, dict[str, object], dict[str, str]]:
    """Status, body and extra headers for an error."""
    if isinstance(error, ApiError):
        body = body_of(error.message, kind=error.kind, code=error.code, param=error.param)
        return error.status, body, error.headers
    shape = next(shape for kind, shape in TABLE if isinstance(error, kind))
    headers = {"Retry-After": "1"} if shape.status == 429 else {}
    body = body_of(shape.message or str(error), kind=shape.kind, code=shape.code)
    return shape.status, body, headers


def json_response(
    content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response that can carry any text, also lone surrogates."""
    return Response(
        json.dumps(content, allow_nan=False),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def error_response(error: RagFtiError) -> Response:
    """The response for an error of this project."""
    status, body, headers = describe(error)
    if status >= 500:
        logger.error("%s: %s", type(error).__name__, error)
    return json_response(body, status=status, headers=headers)


def unexpected_body(error: BaseException) -> dict[str, object]:
    """What is said of a bug; its details go to the log only."""
    logger.error("unexpected error", exc_info=error)
    return body_of("The server failed on this request; its log says why.", kind="server_error")


def unexpected(error: BaseException) -> Response:
    """The response for a bug."""
    return json_response(unexpected_body(error), status=500)


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` in one shape."""

    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, RagFtiError)
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # The innermost says most, of equals the one whose type fits: it is only too long. Steps
        # that are no names are the branches of a choice of types.
        problem = max(
            error.errors(), key=lambda problem: (len(problem["loc"]), "too_long" in problem["type"])
        )
        path = [s for s in problem["loc"] if s not in ("body", "query", "path")]
        where = ".".join(str(s) for s in path if isinstance(s, int) or s.isidentifier())
        message = str(problem["msg"]).removeprefix("Value error, ")[:MAX_SHOWN]
        if problem["type"] == "json_invalid":
            where, message = "", "the body is not valid JSON"
        return json_response(
            body_of(
                f"Invalid request: {where or 'body'}: {message}.",
                kind="invalid_request_error",
                param=where or None,
            ),
            status=400,
        )

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code in (404, 405):
            asked = f"{request.method} {request.url.path}"[:MAX_SHOWN]
            message = f"This server has no {asked}; GET /openapi.json lists what it has."
        return json_response(
            body_of(
                message,
                kind="invalid_request_error",
                code=_STATUS_CODES.get(error.status_code),
            ),
            status=error.status_code,
            headers=error.headers,
        )

    app.add_exception_handler(RagFtiError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
