"""``GET /v1/models``: what can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rag_fti.config.models import RemoteGeneratorConfig
from rag_fti.inference.model_pool import DEFAULT, not_served, open_registry
from rag_fti.inference.models import BASE
from serving.access import Chatting, ServicesDep
from serving.errors import json_response
from serving.exchange import run_blocking
from serving.routes.responses import errors
from serving.services import Services

router = APIRouter()


@router.get("/v1/models", responses=errors(), response_class=Response)
async def list_models(request: Request, principal: Chatting, services: ServicesDep) -> Response:
    """The configured model, registry versions and aliases, and the base model."""
    data = await run_blocking(request, lambda: list(entries(services)))
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model:path}", responses=errors(404), response_class=Response)
async def retrieve_model(
    model: str, request: Request, principal: Chatting, services: ServicesDep
) -> Response:
    """One of them."""
    config = services.settings.generator
    named = model
    if model == BASE:
        named = config.model if isinstance(config, RemoteGeneratorConfig) else config.base_model
    for entry in await run_blocking(request, lambda: list(entries(services))):
        if entry["id"] == named:
            return json_response({**entry, "id": model})
    raise not_served(model)


def entries(services: Services) -> Iterator[dict[str, Any]]:
    """Every model id with what it means now.

    ``root`` is the version that answers, ``parent`` the base model it was trained on.
    """
    config = services.settings.generator
    current = services.pool.current().get(DEFAULT, "")
    if isinstance(config, RemoteGeneratorConfig):
        yield entry(config.model, root=current)
        return
    registry = open_registry(services.settings)
    seen = set()
    parents = {}
    found = []
    for name in registry.names():
        for version in registry.versions(name):
            base = version.manifest.get("base_model") or {}
            parents[version.ref] = str(base.get("reference", "")) or None
            created = version.manifest.get("created_at", "")
            found.append(
                entry(version.ref, root=version.ref, parent=parents[version.ref], created=created)
            )
        for alias, number in sorted(registry.aliases(name).items()):
            root = f"{name}@{number}"
            found.append(entry(f"{name}@{alias}", root=root, parent=parents.get(root)))
    base_name = config.base_model
    found.append(entry(base_name, root=base_name))
    for item in [entry(config.model, root=current, parent=parents.get(current)), *found]:
        if item["id"] not in seen:
            seen.add(item["id"])
            yield item


def entry(
    identifier: str, *, root: str, parent: str | None = None, created: str = ""
) -> dict[str, Any]:
    """One model object."""
    return {
        "id": identifier,
        "object": "model",
        "created": int(datetime.fromisoformat(created).timestamp()) if created else 0,
        "owned_by": "rag-fti",
        "root": root,
        "parent": parent,
    }
