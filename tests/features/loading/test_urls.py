from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rag_fti.errors import SourceError
from rag_fti.features.loading import Limits, load
from rag_fti.features.loading.urls import fetch, is_public, resolve_public


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        body = b"x" * 5000 if self.path == "/big" else b"<h1>Hello</h1><p>from the web</p>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def only_loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"] if host == "localhost" else resolve_public(host, port)


def test_a_page_is_fetched_and_read(address: str) -> None:
    task = fetch(f"{address}/page", Limits(), resolve=only_loopback)
    assert load(task, Limits()).text == "# Hello\n\nfrom the web"
    assert task.source == f"{address}/page"


def test_private_addresses_are_never_asked(address: str) -> None:
    with pytest.raises(SourceError, match="not public"):
        fetch(f"{address}/page", Limits())
    with pytest.raises(SourceError, match="not public"):
        fetch(f"{address}/inside", Limits(), resolve=only_loopback)


@pytest.mark.parametrize(
    ("path", "reason"), [("/loop", "redirects"), ("/missing", "404"), ("/big", "larger than")]
)
def test_limits_of_fetching(address: str, path: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        fetch(f"{address}{path}", Limits(max_file_bytes=1000), resolve=only_loopback)


@pytest.mark.parametrize(
    "url", ["ftp://example.org/x", "file:///etc/passwd", "http://", "http://[x"]
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(SourceError):
        fetch(url, Limits(), resolve=only_loopback)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fd00::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public
