"""An S3 server for tests: moto over real HTTP, one request at a time.

One at a time because moto looks whether a key exists and writes it in two steps: served by
several threads, two create-only writes at once could both succeed, which no real store allows.
"""

from __future__ import annotations

import sys

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
"""The account that moto takes every caller for."""

if __name__ == "__main__":
    s3_backends[ACCOUNT]["aws"].create_bucket(sys.argv[1], "us-east-1")
    server = make_server(
        "127.0.0.1",
        0,
        DomainDispatcherApplication(create_backend_app),
        threaded=False,
        request_handler=MotoRequestHandler,
    )
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
