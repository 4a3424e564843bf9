"""``POST /v1/feedback`` and ``GET /v1/lineage/{response_id}``."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rag_fti.feature_store import sql_string
from rag_fti.roots import datasets_root, open_registry
from serving.access import Chatting, ServicesDep
from serving.auth import Principal
from serving.errors import ApiError, json_response
from serving.exchange import run_blocking
from serving.routes.responses import errors
from serving.services import Services
from serving.wire import FeedbackRequest

router = APIRouter()


@router.post("/v1/feedback", status_code=201, responses=errors(404), response_class=Response)
async def give_feedback(
    body: FeedbackRequest, request: Request, principal: Chatting, services: ServicesDep
) -> Response:
    """Rate an answer of this key (1, 0 or -1), correct it, or comment on it."""
    await run_blocking(request, lambda: require_own(services, principal, body.response_id))
    row = {
        "feedback_id": f"fb-{uuid.uuid4().hex}",
        "response_id": body.response_id,
        "created_at": datetime.now(UTC),
        "key_id": principal.key_id,
        "rating": body.rating,
        "correction": body.correction,
        "comment": body.comment,
    }
    services.log.feedback(row)
    services.metrics.observe_feedback(body.rating)
    return json_response({"id": row["feedback_id"], "object": "feedback"}, status=201)


@router.get("/v1/lineage/{response_id}", responses=errors(404), response_class=Response)
async def answer_lineage(
    response_id: str, request: Request, principal: Chatting, services: ServicesDep
) -> Response:
    """Where an answer of this key came from: chunks, snapshot, model, dataset, feedback."""

    def work() -> dict[str, Any]:
        from rag_fti.lineage import Stores, trace

        require_own(services, principal, response_id)
        services.log.flush()
        if logged(services, response_id) is None:
            raise not_logged(response_id)
        storage = services.settings.storage
        stores = Stores(
            features=services.store,
            datasets=datasets_root(storage),
            registry=open_registry(storage),
        )
        found = trace(response_id, stores=stores)
        del found["model"]["manifest"]  # a path of this machine
        return found

    return json_response(await run_blocking(request, work))


def require_own(services: Services, principal: Principal, response_id: str) -> None:
    """Check that an answer was given to this key, or that this admin sees all it was made from.

    Raises:
        ApiError: With 404 otherwise, whether it exists or not.
    """
    owner = services.owners.get(response_id)
    if owner is not None and owner == principal.key_id:
        return
    services.log.flush()
    row = logged(services, response_id)
    if row is not None and (
        row["key_id"] == principal.key_id
        or (principal.may("admin") and principal.sees(row["collections"]))
    ):
        return
    raise not_logged(response_id)


def logged(services: Services, response_id: str) -> dict[str, Any] | None:
    """Key and collections of a logged answer."""
    found = services.store.rows(
        "inference_log",
        where=f"response_id = {sql_string(response_id)}",
        columns=["key_id", "collections"],
        limit=1,
    )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows[0] if rows else None


def not_logged(response_id: str) -> ApiError:
    """The error for an answer that is not known to this key."""
    return ApiError(
        f"There is no answer {response_id[:100]!r}.",
        status=404,
        code="answer_not_found",
        param="response_id",
    )
