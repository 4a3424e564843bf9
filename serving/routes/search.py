"""``POST /v1/search`` and ``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from rag_fti.retrieval import Retrieved
from serving.access import Searching, ServicesDep
from serving.errors import ApiError, json_response
from serving.exchange import run_blocking
from serving.filters import explained
from serving.routes.responses import errors
from serving.wire import EmbeddingsRequest, SearchRequest

router = APIRouter()

HIT_KEYS = (
    "chunk_id",
    "document_id",
    "source",
    "title",
    "heading",
    "page",
    "start",
    "end",
    "text",
    "score",
)


@router.post("/v1/search", responses=errors(404), response_class=Response)
async def search(
    body: SearchRequest, request: Request, principal: Searching, services: ServicesDep
) -> Response:
    """Search the collections that the key may see."""

    def work() -> Retrieved:
        with explained(services, body.filter):
            return services.retriever.retrieve(
                body.query,
                k=body.k,
                mode=body.mode,
                where=body.filter,
                at=body.at or services.settings.inference.follow,
                collections=principal.visible(body.collection),
                asker=principal.key_id,
            )

    found = await run_blocking(request, work)
    hits = [{key: getattr(hit, key) for key in HIT_KEYS} for hit in found.hits]
    return json_response({"snapshot": found.snapshot, "hits": hits})


@router.post("/v1/embeddings", responses=errors(404), response_class=Response)
async def create_embeddings(
    body: EmbeddingsRequest, request: Request, principal: Searching, services: ServicesDep
) -> Response:
    """Vectors as the store uses them; ``input_type`` picks the query or document side."""
    embedder = services.retriever.embedder
    if body.model not in ("", embedder.fingerprint.model):
        raise ApiError(
            f"This server embeds with {embedder.fingerprint.model!r} only.",
            status=404,
            code="model_not_found",
            param="model",
        )
    if body.dimensions not in (None, embedder.fingerprint.dimension):
        raise ApiError(
            f"{embedder.fingerprint.model} makes vectors of {embedder.fingerprint.dimension} "
            "dimensions only.",
            param="dimensions",
        )
    texts = [body.input] if isinstance(body.input, str) else body.input

    def work() -> tuple[Any, int]:
        encode = (
            embedder.encode_queries if body.input_type == "query" else embedder.encode_documents
        )
        return encode(texts), sum(embedder.count_tokens(texts))

    vectors, tokens = await run_blocking(request, work)
    return json_response(
        {
            "object": "list",
            "model": embedder.fingerprint.model,
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _encoded(vector, body.encoding_format),
                }
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _encoded(vector: Any, form: str) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return [float(value) for value in vector]
