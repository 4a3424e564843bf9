"""Liveness, readiness, version, metrics."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rag_fti.errors import RagFtiError
from rag_fti.inference.model_pool import DEFAULT
from rag_fti.schemas import SCHEMA_VERSION
from serving.access import Administering, ServicesDep, identify
from serving.errors import ApiError, json_response
from serving.exchange import run_blocking
from serving.routes.responses import errors
from serving.services import Services

router = APIRouter()


@router.get("/health/live", response_class=Response)
async def live() -> Response:
    """Whether the process runs."""
    return json_response({"status": "ok"})


@router.get("/health/ready", responses=errors(), response_class=Response)
async def ready(request: Request, services: ServicesDep) -> Response:
    """Whether questions can be answered: ``ready``, ``degraded`` (200) or ``not ready`` (503).

    Reasons are shown to admins, and to everybody on a server without keys.
    """
    state, status = await run_blocking(request, lambda: readiness(services), lane="probes")
    try:
        trusted = identify(request, services).may("admin")
    except ApiError:
        trusted = False
    if not trusted:
        state["problems"] = sorted(state["problems"])
    return json_response(state, status=status)


def readiness(services: Services) -> tuple[dict[str, Any], int]:
    """The readiness report and its status."""
    problems = dict(services.problems())
    snapshot = ""
    status = 200
    try:
        if services.store.exists():
            snapshot = services.store.snapshot()
        else:
            problems["store"] = "It holds no documents yet."
    except RagFtiError as error:
        problems["store"] = str(error)
        status = 503
    word = "not ready" if status == 503 else "degraded" if problems else "ready"
    return {
        "status": word,
        "model": services.pool.current().get(DEFAULT, ""),
        "snapshot": snapshot,
        "problems": problems,
    }, status


@router.get("/version", response_class=Response)
async def version(services: ServicesDep) -> Response:
    """The release and the model that answers now."""
    return json_response(
        {
            "version": metadata.version("rag-fti"),
            "schema_version": SCHEMA_VERSION,
            "model": services.pool.current().get(DEFAULT, ""),
        }
    )


@router.get("/metrics", responses=errors(), response_class=Response)
async def metrics(request: Request, principal: Administering, services: ServicesDep) -> Response:
    """Prometheus metrics (scope ``admin`` where the server has keys)."""
    text = await run_blocking(request, services.metrics.render, lane="probes")
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
