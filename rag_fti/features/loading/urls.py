"""Fetching web pages without being sent where nobody meant to go.

A host name is resolved once, every address it has must be public, and the connection goes to
the address that was checked: a name that answers differently the second time gains nothing.
Redirects are followed by hand, each target checked anew.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence

import httpx

from rag_fti.errors import SourceError
from rag_fti.features.loading.formats import Format, format_of
from rag_fti.features.loading.parsed import Limits
from rag_fti.features.loading.workers import LoadTask

_REDIRECTS = 5
_BY_TYPE = {
    "text/html": "page.html",
    "application/xhtml+xml": "page.html",
    "text/markdown": "page.md",
    "text/plain": "page.txt",
    "application/pdf": "page.pdf",
    "application/json": "page.json",
    "text/csv": "page.csv",
    "application/xml": "page.xml",
    "text/xml": "page.xml",
}

Resolve = Callable[[str, int], Sequence[str]]


def resolve_public(host: str, port: int) -> list[str]:
    """Addresses of a host.

    Raises:
        SourceError: If it has none, or one of them is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(f"host {host} cannot be found: {error}") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_public(address):
            raise SourceError(f"host {host} has the address {address}, which is not public")
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is not None:
            parsed = inner
        elif parsed in ipaddress.ip_network("64:ff9b::/96"):
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed.is_global and not parsed.is_multicast


def fetch(url: str, limits: Limits, *, resolve: Resolve = resolve_public) -> LoadTask:
    """The document at a web address.

    Args:
        url: ``http`` or ``https``.
        limits: Size and time it may take.
        resolve: Turns host and port into addresses that may be connected to.

    Raises:
        SourceError: If it cannot or may not be fetched.
    """
    deadline = time.monotonic() + limits.parse_timeout_seconds
    target = url
    with httpx.Client(follow_redirects=False, timeout=10.0, trust_env=False) as client:
        for _ in range(_REDIRECTS + 1):
            try:
                response, body = _get(client, target, limits, resolve, deadline)
            except httpx.InvalidURL as error:
                raise SourceError(f"not a web address: {error}") from error
            except httpx.HTTPError as error:
                raise SourceError(f"cannot be fetched: {error or type(error).__name__}") from error
            if not response.has_redirect_location:
                break
            target = str(httpx.URL(target).join(response.headers["location"]))
        else:
            raise SourceError(f"more than {_REDIRECTS} redirects")
    if response.status_code != httpx.codes.OK:
        raise SourceError(f"the server answered {response.status_code}")
    return LoadTask(url, data=body, format=_format(response, target))


def _get(
    client: httpx.Client, url: str, limits: Limits, resolve: Resolve, deadline: float
) -> tuple[httpx.Response, bytes]:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SourceError(f"{url} is not an http or https address")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    address = resolve(parsed.host, port)[0]
    request = client.build_request(
        "GET",
        parsed.copy_with(host=address),
        headers={"Host": parsed.netloc.decode("ascii"), "User-Agent": "rag-fti"},
        extensions={"sni_hostname": parsed.host},
    )
    response = client.send(request, stream=True)
    try:
        body = bytearray()
        if response.has_redirect_location:
            return response, b""
        for block in response.iter_bytes():
            body += block
            if len(body) > limits.max_file_bytes:
                raise SourceError(f"larger than {limits.max_file_bytes} bytes")
            if time.monotonic() > deadline:
                raise SourceError(f"took longer than {limits.parse_timeout_seconds:g} s")
        return response, bytes(body)
    finally:
        response.close()


def _format(response: httpx.Response, url: str) -> Format | None:
    media_type = response.headers.get("content-type", "").split(";")[0].strip().lower()
    name = _BY_TYPE.get(media_type)
    return format_of(name) if name else format_of(httpx.URL(url).path) or format_of("page.html")
