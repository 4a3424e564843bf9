"""Prometheus metrics, named after vLLM's where it has the same thing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rag_fti.schemas import Answer

if TYPE_CHECKING:
    from serving.services import Services

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rag_fti_requests",
            "HTTP requests",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "rag_fti_request_seconds",
            "Time from request to the end of its response",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            "rag_fti_time_to_first_token_seconds",
            "Time from request to the first piece of the answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._per_token = Histogram(
            "rag_fti_time_per_output_token_seconds",
            "Generation time divided by generated tokens",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._retrieval = Histogram(
            "rag_fti_retrieval_seconds",
            "Embedding the question and searching",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._generation = Histogram(
            "rag_fti_generation_seconds",
            "Waiting for and running the model",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._prompt_tokens = Counter(
            "rag_fti_prompt_tokens", "Prompt tokens", ["model"], registry=self.registry
        )
        self._generation_tokens = Counter(
            "rag_fti_generation_tokens", "Generated tokens", ["model"], registry=self.registry
        )
        self._answers = Counter(
            "rag_fti_answers",
            "Answers by outcome: answered, abstained, cancelled",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._citations = Counter(
            "rag_fti_citations", "Citations in answers", ["model"], registry=self.registry
        )
        self._feedback = Counter(
            "rag_fti_feedback", "Feedback by rating", ["rating"], registry=self.registry
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        known = method if method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def observe_answer(self, answer: Answer) -> None:
        """Count one answer."""
        outcome = "abstained" if answer.abstained else "answered"
        if answer.finish_reason == "cancelled":
            outcome = "cancelled"
        self._answers.labels(answer.model, outcome).inc()
        self._citations.labels(answer.model).inc(len(answer.citations))
        self._retrieval.observe(answer.retrieval_seconds)
        self._prompt_tokens.labels(answer.model).inc(answer.prompt_tokens)
        self._generation_tokens.labels(answer.model).inc(answer.completion_tokens)
        if answer.completion_tokens:
            self._generation.observe(answer.generation_seconds)
            self._per_token.observe(answer.generation_seconds / answer.completion_tokens)

    def observe_feedback(self, rating: int) -> None:
        """Count one thumb."""
        self._feedback.labels({1: "up", -1: "down"}.get(rating, "none")).inc()

    def watch(self, services: Services) -> None:
        """Read gauges from the running services at every scrape."""
        self.registry.register(_Live(services))

    def render(self) -> bytes:
        """The exposition text."""
        return bytes(generate_latest(self.registry))


class _Live:
    """Values that are looked up when asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        services = self._services
        lane = services.lanes["requests"]
        yield _gauge("rag_fti_num_requests_running", "Requests being worked on", lane.running)
        yield _gauge("rag_fti_num_requests_waiting", "Requests in the queue", lane.waiting)
        yield _gauge(
            "rag_fti_oldest_request_seconds",
            "Age of the oldest request in the server",
            time.monotonic()
            - min((e.since for e in tuple(services.exchanges)), default=time.monotonic()),
        )
        queries = services.retriever.queries
        yield _counter("rag_fti_query_cache_queries", "Questions to be embedded", queries.asked)
        yield _counter("rag_fti_query_cache_hits", "Of these, remembered", queries.hits)
        yield _gauge("rag_fti_query_cache_entries", "Questions remembered", len(queries))
        yield _gauge("rag_fti_log_rows_pending", "Log rows not on disk yet", services.log.pending)
        yield _gauge("rag_fti_log_rows_dropped", "Log rows given up", services.log.dropped)
        yield _gauge("rag_fti_degraded", "1 while not all is well", bool(services.problems()))
        models = GaugeMetricFamily(
            "rag_fti_model_info", "Models being served", labels=["name", "model"]
        )
        for name, model in services.pool.current().items():
            models.add_metric([name or "default", model], 1.0)
        yield models
        running = GaugeMetricFamily(
            "rag_fti_batch_size", "Requests in the model's current batch", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "rag_fti_batch_waiting", "Requests waiting for the model", labels=["model"]
        )
        for model, (in_batch, queued) in services.pool.queue_depths().items():
            running.add_metric([model], in_batch)
            waiting.add_metric([model], queued)
        yield running
        yield waiting


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=float(value))


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
