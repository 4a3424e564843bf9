"""Who is asking, and what they may do: FastAPI dependencies.

They are coroutines because FastAPI sends plain functions to its 40 threads, which costs a request
more time than they take, and would let two threads spend the same allowance.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from fastapi import Depends, Request

from serving.auth import LOCAL, Principal, Scope
from serving.errors import ApiError
from serving.services import Services


async def services_of(request: Request) -> Services:
    """The server's parts."""
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(services_of)]


def identify(request: Request, services: Services) -> Principal:
    """Who a request comes from.

    Raises:
        ApiError: With 401 where the server has keys and none of them was presented.
    """
    if services.keys is None:
        return LOCAL
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    found = services.keys.find(presented.strip()) if scheme.lower() == "bearer" else None
    if found is None:
        raise ApiError(
            "Give a valid API key as: Authorization: Bearer KEY.",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found


def requires(*scopes: Scope) -> Callable[[Request, Services], Awaitable[Principal]]:
    """A dependency that lets keys with one of ``scopes`` pass and counts their requests."""

    async def dependency(request: Request, services: ServicesDep) -> Principal:
        principal = identify(request, services)
        if not any(principal.may(scope) for scope in scopes):
            raise ApiError(
                f"This key lacks the scope {' or '.join(scopes)}.",
                status=403,
                kind="permission_error",
                code="missing_scope",
            )
        wait = services.limiter.wait_seconds(principal)
        if wait:
            raise ApiError(
                "This key's requests per minute are used up.",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(math.ceil(wait))},
            )
        return principal

    return dependency


Chatting = Annotated[Principal, Depends(requires("chat"))]
Searching = Annotated[Principal, Depends(requires("search"))]
Reading = Annotated[Principal, Depends(requires("chat", "search"))]
Ingesting = Annotated[Principal, Depends(requires("ingest"))]
Administering = Annotated[Principal, Depends(requires("admin"))]
