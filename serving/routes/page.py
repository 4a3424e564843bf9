"""The chat page: files of ``serving/web``, as they are."""

from __future__ import annotations

import mimetypes
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from serving.access import ServicesDep
from serving.errors import ApiError, json_response

router = APIRouter(include_in_schema=False)

WEB = Path(__file__).resolve().parents[1] / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_HIDDEN = {".md"}


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/web/examples.json")
async def examples(services: ServicesDep) -> Response:
    """The questions that the empty page offers."""
    offered = services.settings.serving.examples
    made = json_response([example.model_dump() for example in offered])
    made.headers.update(_HEADERS)
    return made


@router.get("/web/{name}")
async def asset(name: str) -> Response:
    """A script, style or picture of the page."""
    return _file(name)


def _file(name: str) -> Response:
    content = files().get(name)
    if content is None:
        raise ApiError("There is no such file.", status=404, code="not_found")
    suffix = Path(name).suffix
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(content, media_type=kind, headers=_HEADERS)


@lru_cache(maxsize=1)
def files() -> dict[str, bytes]:
    """Every file of the page by name; only these can be asked for."""
    return {
        path.name: path.read_bytes()
        for path in sorted(WEB.iterdir())
        if path.is_file() and path.suffix not in _HIDDEN
    }
