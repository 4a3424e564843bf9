"""``/v1/documents``: reading a cited document, pushing one, deleting one."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from rag_fti.feature_store import sql_string
from rag_fti.features.loading import LoadTask
from rag_fti.features.loading.formats import Format, format_of
from rag_fti.retrieval import restrict
from serving.access import Ingesting, Reading, ServicesDep
from serving.auth import Principal
from serving.errors import ApiError, json_response
from serving.exchange import run_blocking
from serving.routes.responses import errors
from serving.services import Services
from serving.wire import DocumentRequest

router = APIRouter()

_READ = ("document_id", "collection", "source", "title", "media_type", "text", "version")
_MAX_FORM_FILES = 20
_MAX_FORM_FIELDS = 20
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")
_PLAIN = Format("text/plain", "text")

_PUSH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DocumentRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "collection": {"type": "string"},
                    },
                    "required": ["file"],
                }
            },
        },
    }
}


@router.get("/v1/documents/{document_id}", responses=errors(404), response_class=Response)
async def read_document(
    document_id: str,
    request: Request,
    principal: Reading,
    services: ServicesDep,
    at: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """A document's cleaned text, which the offsets of citations count characters of."""
    found = await run_blocking(
        request, lambda: visible_document(services, principal, document_id, at=at)
    )
    return json_response({key: found[key] for key in _READ})


@router.post(
    "/v1/documents",
    responses=errors(404, 415, 422),
    response_class=Response,
    openapi_extra=_PUSH_BODY,
)
async def push_document(request: Request, principal: Ingesting, services: ServicesDep) -> Response:
    """Ingest a document, pushed as a file (multipart) or as JSON ``{"source", "text"}``.

    A file is read by its kind; what JSON carries is text already, whatever the source ends in.
    The answer has the keys of ``rag-fti ingest --json``. A document with the same source in the
    same collection is replaced.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        documents, wanted = await _from_json(request)
    elif kind == "multipart/form-data":
        documents, wanted = await _from_form(request)
    else:
        raise ApiError(
            "Send a document as multipart/form-data with a part 'file', or as application/json.",
            status=415,
            code="unsupported_media_type",
        )
    collection = target_collection(services, principal, wanted)

    def work() -> dict[str, Any]:
        from serving.ingestion import push

        return push(services, documents, collection=collection)

    summary = await run_blocking(request, work, lane="writes")
    return json_response(summary)


@router.delete("/v1/documents/{document_id}", responses=errors(404), response_class=Response)
async def delete_document(
    document_id: str, request: Request, principal: Ingesting, services: ServicesDep
) -> Response:
    """Delete a document with its chunks; says which datasets, models and answers it went into."""

    def work() -> dict[str, Any]:
        from serving.ingestion import remove

        visible_document(services, principal, document_id)
        return remove(services, document_id)

    return json_response(await run_blocking(request, work, lane="writes"))


def visible_document(
    services: Services, principal: Principal, document_id: str, *, at: str = ""
) -> dict[str, Any]:
    """A document's row, where it is in a collection of the key.

    Raises:
        ApiError: With 404 otherwise, whether it exists or not.
    """
    missing = ApiError(
        "There is no such document.", status=404, code="document_not_found", param="document_id"
    )
    if not services.store.exists():
        raise missing
    where = restrict(None, principal.visible(None))
    condition = f"document_id = {sql_string(document_id)}"
    rows: list[dict[str, Any]] = services.store.documents(
        where=f"{condition} AND {where}" if where else condition, at=at
    ).to_pylist()
    if not rows:
        raise missing
    return rows[0]


def target_collection(services: Services, principal: Principal, wanted: str | None) -> str:
    """The collection that a pushed document goes into.

    Raises:
        ApiError: With 403 where the key is not bound to it.
    """
    default = services.settings.ingest.collection
    if principal.collections is None:
        name = wanted or default
    elif wanted is None and default not in principal.collections:
        name = next(iter(principal.collections), default)
    else:
        name = wanted or default
    if principal.collections is not None and name not in principal.collections:
        raise ApiError(
            "This key may not write into that collection.",
            status=403,
            kind="permission_error",
            code="collection_not_allowed",
            param="collection",
        )
    if not _is_name(name):
        raise ApiError(
            "A collection's name has 1 to 64 letters, digits, '.', '_' or '-'.",
            param="collection",
        )
    return name


async def _from_json(request: Request) -> tuple[list[LoadTask], str | None]:
    try:
        body = DocumentRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error
    source = clean_source(body.source)
    if not body.text.strip():
        raise ApiError(
            "The document has no text.", status=422, code="unreadable_document", param="text"
        )
    if not _ADDRESS.match(source) and not PurePosixPath(source).suffix:
        source += ".txt"
    named = format_of(source)
    task = LoadTask(
        source,
        data=body.text.encode("utf-8", errors="replace"),
        format=named if named and named.parser == _PLAIN.parser else _PLAIN,
    )
    return [task], body.collection


async def _from_form(request: Request) -> tuple[list[LoadTask], str | None]:
    documents = []
    collection: str | None = None
    async with request.form(
        max_files=_MAX_FORM_FILES,
        max_fields=_MAX_FORM_FIELDS,
        max_part_size=services_limit(request),
    ) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                source = clean_source(value.filename or "")
                documents.append(LoadTask(source, data=await value.read()))
            elif name == "collection" and value:
                collection = value
    if not documents:
        raise ApiError("There is no part 'file' with a file name in the form.", param="file")
    return documents, collection


def services_limit(request: Request) -> int:
    """Largest part of a form: the largest body, as the whole has been read already."""
    services: Services = request.app.state.services
    return services.settings.serving.max_request_bytes


def clean_source(name: str) -> str:
    """A pushed document's source: a relative path without tricks, or an address as it is.

    Raises:
        ApiError: If nothing is left of it.
    """
    visible = "".join(c for c in name if unicodedata.category(c)[0] != "C")
    if _ADDRESS.match(visible):
        return visible[:500]
    parts = [part for part in visible.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    source = "/".join(parts)[:500]
    if not source:
        raise ApiError("The document needs a file name.", param="source")
    return source


def _is_name(text: str) -> bool:
    return (
        0 < len(text) <= 64
        and text[0].isascii()
        and text[0].isalnum()
        and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    )
