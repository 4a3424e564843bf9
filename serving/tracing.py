"""OpenTelemetry traces, where it is installed and set up; else nothing happens.

Only the API is used: an exporter is configured from outside, for example by starting the server
under ``opentelemetry-instrument``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

Value = str | bool | int | float


class Span(Protocol):
    """The part of a span that is used here."""

    def set_attributes(self, attributes: Mapping[str, Value]) -> Any:
        """Add what was found out while the span ran."""
        ...


@lru_cache(maxsize=1)
def _installed() -> bool:
    """Looked up once: it searches the whole path."""
    return importlib.util.find_spec("opentelemetry") is not None


class _NoSpan:
    def set_attributes(self, attributes: Mapping[str, Value]) -> None:
        """Ignore."""


@contextmanager
def span(name: str, attributes: Mapping[str, Value]) -> Iterator[Span]:
    """A span around a ``with`` block.

    Args:
        name: What is done.
        attributes: What is known at its start.
    """
    if not _installed():
        yield _NoSpan()
        return
    from opentelemetry import trace

    tracer = trace.get_tracer("rag-fti")
    with tracer.start_as_current_span(name, attributes=dict(attributes)) as current:
        yield current
