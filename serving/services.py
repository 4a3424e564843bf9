"""Everything a running server holds, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rag_fti.config import Settings
from rag_fti.config.models import LocalGeneratorConfig
from rag_fti.errors import StoreError
from rag_fti.inference.model_pool import ModelPool
from rag_fti.inference.models import resolve_reference
from rag_fti.inference.request_log import RequestLog
from rag_fti.retrieval import Retriever
from serving.admission import Admission
from serving.auth import KeyFile, RateLimiter
from serving.metrics import Metrics

if TYPE_CHECKING:
    from rag_fti.feature_store import FeatureStore
    from serving.exchange import Exchange, Lane

logger = logging.getLogger(__name__)

_REMEMBERED_ANSWERS = 10_000


@dataclass
class Services:
    """The parts of one server."""

    settings: Settings
    store: FeatureStore
    retriever: Retriever
    pool: ModelPool
    log: RequestLog
    keys: KeyFile | None
    lanes: dict[Lane, Admission]
    limiter: RateLimiter
    metrics: Metrics
    executor: ThreadPoolExecutor
    owners: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """Response id to key id of the latest answers, which may not be in the log yet."""
    owners_lock: threading.Lock = field(default_factory=threading.Lock)
    exchanges: set[Exchange] = field(default_factory=set)
    """Requests that hold or wait for a thread; touched on the event loop only."""
    watch_problems: dict[str, str] = field(default_factory=dict)

    def remember(self, response_id: str, key_id: str) -> None:
        """Keep in mind whose answer this is."""
        with self.owners_lock:
            self.owners[response_id] = key_id
            while len(self.owners) > _REMEMBERED_ANSWERS:
                self.owners.popitem(last=False)

    def problems(self) -> dict[str, str]:
        """What is not well while the server still answers; empty when all is."""
        found = {
            f"model {name or 'default'}": failure.reason
            for name, failure in self.pool.failures().items()
        }
        if self.log.error:
            found["request log"] = self.log.error
        return found | self.watch_problems

    async def watch(self) -> None:
        """Follow aliases and the key file until cancelled; each on its own, as models load long."""
        watched = {"models": self.pool.refresh}
        if self.keys is not None:
            watched["keys"] = self.keys.reload
        await asyncio.gather(*(self._repeat(what, look) for what, look in watched.items()))

    async def _repeat(self, what: str, look: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(self.settings.serving.reload_seconds)
            try:
                await asyncio.get_running_loop().run_in_executor(None, look)
            except Exception as error:  # shown by readiness; the next look may go well
                problem = f"{type(error).__name__}: {error}"
                if self.watch_problems.get(what) != problem:
                    logger.exception("looking for new %s failed", what)
                self.watch_problems[what] = problem
            else:
                self.watch_problems.pop(what, None)

    def close(self) -> None:
        """Write the log and release models and threads."""
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.log.close()
        self.pool.close()


def build_services(
    settings: Settings,
    *,
    store: FeatureStore | None = None,
    retriever: Retriever | None = None,
    pool: ModelPool | None = None,
) -> Services:
    """Open the stores and load the configured model. Blocks for seconds.

    Args:
        settings: The whole configuration.
        store: An open store; None opens the configured one.
        retriever: A ready retriever; None builds it.
        pool: A ready pool; None builds it.

    Raises:
        RagFtiError: If something cannot be opened or does not fit together.
    """
    from rag_fti.feature_store import FeatureStore
    from rag_fti.models.threads import compute_alone
    from rag_fti.retrieval import build_retriever

    keys_file = settings.serving.keys_file
    keys = KeyFile(keys_file) if keys_file is not None else None
    if pool is None:
        resolve_reference(settings)  # a wrong name fails before models load
    if store is None:
        store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    if retriever is None:
        retriever = build_retriever(settings, store=store)
    if pool is None:
        pool = ModelPool(settings, retriever=retriever, max_loaded=settings.serving.max_models)
    pool.load_default()
    running = settings.serving.max_running or 2 * _batch_size(settings)
    section = settings.inference
    services = Services(
        settings=settings,
        store=store,
        retriever=retriever,
        pool=pool,
        log=RequestLog(
            store, redact=section.log_redact, sample=section.log_sample if section.log else 0.0
        ),
        keys=keys,
        lanes={
            "requests": Admission(max_running=running, max_waiting=settings.serving.max_queue),
            "writes": Admission(max_running=1, max_waiting=settings.serving.max_queue),
            "probes": Admission(max_running=2, max_waiting=settings.serving.max_queue),
        },
        limiter=RateLimiter(settings.serving.requests_per_minute),
        metrics=Metrics(),
        executor=ThreadPoolExecutor(
            max_workers=running + 3 + 1, thread_name_prefix="request", initializer=compute_alone
        ),
    )
    try:
        warm_up(services)
    except BaseException:
        services.close()
        raise
    return services


def _batch_size(settings: Settings) -> int:
    config = settings.generator
    return config.max_batch if isinstance(config, LocalGeneratorConfig) else config.concurrency


def warm_up(services: Services) -> None:
    """Run one search so that the first request does not pay for loading and opening.

    Raises:
        RagFtiError: If the embedding model or reranker cannot be loaded.
    """
    services.retriever.embedder.encode_queries(["warm up"])
    if services.store.exists():
        with contextlib.suppress(StoreError):
            services.retriever.retrieve("warm up", k=1)
