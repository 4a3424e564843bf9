"""The ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware

from rag_fti.config import Settings
from serving import errors
from serving.middleware import ClientGone, RequestGuard
from serving.routes import chat, documents, feedback, health, models, page, search
from serving.services import Services

TITLE = "rag-fti"


def create_app(settings: Settings, services: Services) -> FastAPI:
    """The application over ready services; it closes them when it stops.

    Args:
        settings: Section ``serving`` is read.
        services: What :func:`serving.services.build_services` made.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services.metrics.watch(services)
        watcher = asyncio.create_task(services.watch())
        try:
            yield
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            await asyncio.to_thread(services.close)

    app = FastAPI(
        title=TITLE,
        summary="Answers from your documents, OpenAI-compatible.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    for module in (chat, models, search, documents, feedback, health, page):
        app.include_router(module.router)
    errors.install(app)
    app.add_exception_handler(ClientGone, _gone)
    serving = settings.serving
    if serving.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(serving.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send their own, such as x-stainless-os
            expose_headers=["X-Request-Id"],
        )
    app.add_middleware(
        RequestGuard,
        allowed_hosts=serving.allowed_hosts,
        cors_origins=serving.cors_origins,
        max_bytes=serving.max_request_bytes,
        body_seconds=serving.body_seconds,
        observe=services.metrics.observe_request,
    )
    return app


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it
