"""Compaction, incremental indexing and clean-up of old versions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rag_fti.errors import StoreError
from rag_fti.feature_store.tables import Tables, mapped_errors

logger = logging.getLogger(__name__)

LOG_FILE_ROWS = 8192
_ATTEMPTS = 5


def optimize(tables: Tables, name: str, *, keep_days: float | None) -> None:
    """Compact a table's files, index its new rows, drop versions older than ``keep_days``.

    None keeps all versions.
    """
    table = tables.get(name)
    _retry(f"compact {name}", lambda: table.to_lance().optimize.compact_files())
    _retry(f"update the indexes of {name}", lambda: table.to_lance().optimize.optimize_indices())
    if keep_days is not None:
        _clean(table, name, older_than=timedelta(days=keep_days), delete_unverified=False)


def compact_log(tables: Tables, name: str) -> None:
    """Join the small files that appending leaves, and drop the versions of the last hours.

    Files of :data:`LOG_FILE_ROWS` rows are left as they are, so that the work does not grow with
    the log.
    """
    table = tables.get(name)
    _retry(
        f"compact {name}",
        lambda: table.to_lance().optimize.compact_files(target_rows_per_fragment=LOG_FILE_ROWS),
    )
    _clean(table, name, older_than=timedelta(hours=1), delete_unverified=False)


def purge(tables: Tables, name: str) -> None:
    """Rewrite files that hold deleted rows and remove every untagged older version.

    On a local store the lock keeps other writers out, so that files of no version at all (left
    by a crash) go too. Readers go on: each commit leaves the rows as they are.
    """
    table = tables.get(name)
    with tables.locked() as alone:
        _retry(
            f"compact {name}",
            lambda: table.to_lance().optimize.compact_files(materialize_deletions_threshold=0.0),
        )
        _retry(f"update the indexes of {name}", lambda: _merge_indexes(table))
        _clean(table, name, older_than=timedelta(0), delete_unverified=alone)
    tables.forget()


def incomplete(documents: pa.Table, chunks: pa.Table) -> frozenset[str]:
    """Ids of documents whose row and chunks do not belong together.

    Args:
        documents: Columns ``document_id``, ``version``, ``chunk_count``.
        chunks: Columns ``document_id``, ``document_version``.
    """
    counted = chunks.group_by(["document_id", "document_version"]).aggregate([([], "count_all")])
    expected = documents.filter(pc.greater(documents["chunk_count"], 0))
    joined = expected.join(counted, keys="document_id", join_type="full outer")
    agrees = pc.and_(
        pc.equal(joined["version"], joined["document_version"]),
        pc.equal(pc.cast(joined["chunk_count"], pa.int64()), joined["count_all"]),
    )
    wrong = joined.filter(pc.invert(pc.fill_null(agrees, False)))
    return frozenset(wrong["document_id"].to_pylist())


def _merge_indexes(table: Any) -> None:
    """Rewrite every index as one segment, so that none keeps entries of removed rows."""
    dataset = table.to_lance()
    dataset.optimize.optimize_indices(num_indices_to_merge=1000)


def _clean(table: Any, name: str, *, older_than: timedelta, delete_unverified: bool) -> None:
    with mapped_errors(f"remove old versions of {name}"):
        table.to_lance().cleanup_old_versions(
            older_than,
            delete_unverified=delete_unverified,
            error_if_tagged_old_versions=False,
        )


def _retry(action: str, work: Callable[[], Any]) -> None:
    """Run ``work``; another writer's commit in between makes it try again."""
    for attempt in range(_ATTEMPTS):
        try:
            work()
        except (OSError, RuntimeError, ValueError) as error:
            if "conflict" not in str(error).lower():
                raise StoreError(f"Cannot {action}: {error}") from error
            time.sleep(0.05 * 2**attempt)
        else:
            return
    logger.warning(
        "Other writers kept me from it %d times: %s. Left for the next run.", _ATTEMPTS, action
    )
