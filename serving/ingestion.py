"""Push ingestion: documents that come over HTTP go the way of every other document.

The server calls these one at a time, see :data:`serving.exchange.Lane`: each ends with a commit and
a look at the indexes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rag_fti.contracts import ContractRun, new_run_id
from rag_fti.features.loading import LoadTask
from rag_fti.progress import Silent
from rag_fti.roots import datasets_root, open_registry
from serving.errors import ApiError
from serving.services import Services


def push(services: Services, documents: Sequence[LoadTask], *, collection: str) -> dict[str, Any]:
    """Ingest documents under the contract of the ingest pipeline. Blocks.

    Args:
        services: The server's parts.
        documents: Source and bytes of each, and its format where the bytes need not tell.
        collection: Where they go.

    Returns:
        The keys of ``ingest --json``.

    Raises:
        ApiError: With 422 where none of the documents could be read.
        RagFtiError: As the ingest pipeline.
    """
    from pipelines import ingest
    from rag_fti.features.ingestion import build_ingestor

    settings = services.settings
    embedder = services.retriever.embedder
    run_id = new_run_id("ingest")
    report = settings.storage.reports / "ingest" / f"{run_id}.json"
    contract = ContractRun(ingest.CONTRACT, run_id=run_id, report_path=report)
    contract.require(
        {
            "paths_given": bool(documents),
            "embedder_mismatch": services.store.embedder_mismatch(embedder.fingerprint),
        }
    )
    started = time.monotonic()
    ingestor = build_ingestor(
        settings,
        store=services.store,
        embedder=embedder,
        run_id=run_id,
        collection=collection,
    )
    totals = ingestor.ingest_tasks(documents)
    totals.seconds = time.monotonic() - started
    summary = ingest.finish(settings, services.store, contract, totals, progress=Silent())
    if len(totals.failures) == len(documents):
        raise ApiError(
            "; ".join(f"{source}: {reason}" for source, reason in totals.failures.items())[:1000],
            status=422,
            code="unreadable_document",
        )
    return summary.to_dict()


def remove(services: Services, document_id: str) -> dict[str, Any]:
    """Delete a document and list what it went into. Blocks."""
    from rag_fti.lineage import Stores, tainted_by

    storage = services.settings.storage
    stores = Stores(
        features=services.store,
        datasets=datasets_root(storage),
        registry=open_registry(storage),
    )
    services.log.flush()
    taint = tainted_by([document_id], stores=stores)
    chunks = services.store.delete_documents([document_id])
    pinned = services.store.purge()
    return {
        "id": document_id,
        "object": "document.deleted",
        "deleted": True,
        "chunks": chunks,
        "snapshot": services.store.snapshot(),
        "tainted": taint.to_dict(),
        "pinned_by": pinned,
    }
