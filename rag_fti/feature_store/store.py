"""Reading and writing the feature store."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rag_fti import ids, schemas
from rag_fti.errors import IncompatibleArtifact, StoreError
from rag_fti.feature_store import indexes, maintenance, snapshots
from rag_fti.feature_store.rows import HIT_COLUMNS, hits, lookup_batches, matrix, pages_of
from rag_fti.feature_store.searching import ChunkSearcher, SearchPolicy
from rag_fti.feature_store.tables import Tables, mapped_errors, sql_in, sql_string
from rag_fti.protocols import EmbedderFingerprint, Vectors, embedder_differences
from rag_fti.schemas import Hit, Ranking

logger = logging.getLogger(__name__)

LogTable = Literal["inference_log", "feedback", "predictions"]

_LOG_SCHEMAS = {
    "inference_log": schemas.inference_log_schema,
    "feedback": schemas.feedback_schema,
    "predictions": schemas.predictions_schema,
}
_ANSWERS: tuple[LogTable, ...] = ("inference_log", "predictions")
_TEXTS_AT_ONCE = 64
_CHUNKS_AT_ONCE = 4096
_LOG_COMMITS = 256
"""A log table is compacted after so many appends."""
_SEARCHERS = 8
"""States that are kept ready to be searched."""
_BAD_FILTER = "If a filter was given, check it: SQL over the columns in docs/ingestion.md."


@dataclass(frozen=True)
class StoreRecipe:
    """How the stored chunks and vectors were made."""

    embedder: EmbedderFingerprint
    chunker_digest: str
    """Digest of the chunker; of all digests together where documents differ."""


class FeatureStore:
    """Documents, chunks and inference logs of one LanceDB database.

    Readers always see whole commits. Methods with ``at`` read the newest state for ``""``, else
    the state that a snapshot id (``d12c15``) or tag names. Safe to use from several threads.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._chunker_digests: tuple[int, str] | None = None
        self._lock = threading.Lock()
        self._searchers: dict[int, ChunkSearcher] = {}

    @classmethod
    def open(cls, uri: str, *, options: Mapping[str, str] | None = None) -> FeatureStore:
        """The store at ``uri``; nothing is read or created yet.

        Args:
            uri: Directory or object-store URI.
            options: Object-store options.
        """
        return cls(Tables(uri, options=options))

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self._tables.uri

    # -- state -----------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether it holds ingested documents."""
        table = self._tables.find("documents")
        if table is None:
            return False
        with mapped_errors("count documents"):
            return bool(table.count_rows())

    def snapshot(self) -> str:
        """Id of the newest consistent state, such as ``d12c15``.

        Raises:
            StoreError: If nothing was ever ingested.
        """
        return snapshots.current(self._tables)

    def resolve(self, at: str) -> str:
        """The snapshot id that ``at`` names.

        Args:
            at: A snapshot id, a tag, or empty for the newest state.

        Raises:
            SnapshotNotFound: If there is no such tag or the snapshot was cleaned up.
        """
        return snapshots.resolve(self._tables, at)

    def tag(self, name: str, snapshot: str = "") -> None:
        """Pin a snapshot (the newest by default) under a name; an existing tag moves.

        Raises:
            StoreError: If the name is not allowed.
            SnapshotNotFound: If the snapshot is not there.
        """
        snapshots.tag(self._tables, name, snapshot)

    def untag(self, name: str) -> None:
        """Remove a tag; its snapshot may be cleaned up from now on.

        Raises:
            SnapshotNotFound: If there is no such tag.
        """
        snapshots.untag(self._tables, name)

    def tags(self) -> dict[str, str]:
        """All tags with the snapshot ids they pin."""
        return snapshots.tags(self._tables)

    def recipe(self) -> StoreRecipe:
        """How the stored chunks were made.

        Raises:
            StoreError: If nothing was ever ingested.
        """
        metadata = self._tables.get("chunks").schema.metadata or {}
        fingerprint = EmbedderFingerprint(**json.loads(metadata[b"embedder"]))
        documents = self._tables.get("documents")
        version = documents.version
        if self._chunker_digests is None or self._chunker_digests[0] != version:
            column = self.documents(columns=["chunker_digest"])["chunker_digest"]
            distinct = sorted(column.unique().to_pylist())
            digest = distinct[0] if len(distinct) == 1 else ids.digest_json(distinct)
            self._chunker_digests = (version, digest)
        return StoreRecipe(fingerprint, self._chunker_digests[1])

    def require_recipe(
        self, *, embedder: EmbedderFingerprint, chunker_digest: str | None = None
    ) -> None:
        """Check that the store was made with this embedder (and chunker).

        Raises:
            IncompatibleArtifact: If it was not.
            StoreError: If nothing was ever ingested.
        """
        self._tables.get("chunks")
        if mismatch := self.embedder_mismatch(embedder):
            raise IncompatibleArtifact(
                f"The feature store {self.uri} was filled with another embedder: {mismatch}.",
                next_step="Use the store's embedder, or ingest into a new storage root.",
            )
        if chunker_digest is not None and chunker_digest != self.recipe().chunker_digest:
            raise IncompatibleArtifact(
                f"The documents in {self.uri} were cut with other chunking settings.",
                next_step="Ingest them again with these settings, or use the settings they have.",
            )

    def embedder_mismatch(self, embedder: EmbedderFingerprint) -> str:
        """How an embedder differs from the one that filled the store; empty if it does not."""
        chunks = self._tables.find("chunks")
        if chunks is None:
            return ""
        stored = json.loads((chunks.schema.metadata or {})[b"embedder"])
        differences = embedder_differences(stored, embedder.to_dict())
        return "; ".join(
            f"{name} is {theirs!r} in the store and {ours!r} here"
            for name, (theirs, ours) in differences.items()
        )

    # -- searching -------------------------------------------------------------------------

    def rank_vectors(
        self, vector: Vectors, *, k: int, where: str | None = None, at: str
    ) -> Ranking:
        """Rows nearest to a vector; :meth:`read_rows` gives their chunks.

        Args:
            vector: Query vector, shape ``(dimension,)``.
            k: Most rows.
            where: SQL over chunk columns; only matching chunks are looked at.
            at: The snapshot to read, the same for ranking and reading.

        Returns:
            Row ids by falling cosine similarity, which is their score.
        """
        searcher = self._searcher(at)
        with mapped_errors("search by vector", next_step=_BAD_FILTER):
            return searcher.by_vector(vector, k=k, where=where)

    def rank_text(self, query: str, *, k: int, where: str | None = None, at: str) -> Ranking:
        """Rows whose title, headings or text match words of ``query`` (any text is safe).

        Returns:
            Row ids by falling BM25, which is their score. Arguments as :meth:`rank_vectors`.
        """
        searcher = self._searcher(at)
        with mapped_errors("search by text", next_step=_BAD_FILTER):
            return searcher.by_text(query, k=k, where=where)

    def read_rows(self, ranked: Ranking, *, at: str) -> list[Hit]:
        """The chunks of ranked rows, best first; equal scores in the order of their ids.

        Raises:
            StoreError: If one of the rows is not in the snapshot ``at``.
        """
        searcher = self._searcher(at)
        with mapped_errors("read chunks"):
            return searcher.read(ranked)

    def search_vectors(
        self, vector: Vectors, *, k: int, where: str | None = None, at: str = ""
    ) -> list[Hit]:
        """Chunks nearest to a vector, ranked and read; arguments as :meth:`rank_vectors`.

        Returns:
            Hits by falling cosine similarity, which is their score.
        """
        searcher = self._searcher(at)
        with mapped_errors("search by vector", next_step=_BAD_FILTER):
            return searcher.read(searcher.by_vector(vector, k=k, where=where))

    def search_text(
        self, query: str, *, k: int, where: str | None = None, at: str = ""
    ) -> list[Hit]:
        """Chunks that match words of ``query``, ranked and read; see :meth:`rank_text`.

        Returns:
            Hits by falling BM25, which is their score.
        """
        searcher = self._searcher(at)
        with mapped_errors("search by text", next_step=_BAD_FILTER):
            return searcher.read(searcher.by_text(query, k=k, where=where))

    # -- reading ---------------------------------------------------------------------------

    def documents(
        self,
        *,
        where: str | None = None,
        at: str = "",
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Rows of ``documents``; see :func:`rag_fti.schemas.documents_schema`."""
        return self._scan(self._at("documents", at), where, columns, limit)

    def document_texts(
        self, *, where: str | None = None, at: str = "", limit: int | None = None
    ) -> Iterator[tuple[str, str]]:
        """Ids and texts of documents, a few at a time: a corpus need not fit into memory."""
        table = self._at("documents", at)
        columns = ["document_id", "text"]
        with mapped_errors("read documents", next_step=_BAD_FILTER if where else ""):
            query = _restricted(table.search(), where, columns, limit)
            for batch in query.to_batches(batch_size=_TEXTS_AT_ONCE):
                yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)

    def chunks(
        self, *, where: str | None = None, at: str = "", columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of ``chunks``; see :func:`rag_fti.schemas.chunks_schema`."""
        return self._scan(self._at("chunks", at), where, columns)

    def hits(self, *, where: str | None = None, at: str = "") -> list[Hit]:
        """All chunks, by source, document and place in it. Scores are 0."""
        table = self._at("chunks", at)
        found: list[Hit] = []
        with mapped_errors("read chunks", next_step=_BAD_FILTER if where else ""):
            query = _restricted(table.search(), where, HIT_COLUMNS, None)
            for batch in query.to_batches(batch_size=_CHUNKS_AT_ONCE):
                found += hits(batch, np.zeros(batch.num_rows))
        return sorted(found, key=lambda hit: (hit.source, hit.document_id, hit.start))

    def collections(self, *, at: str = "") -> list[str]:
        """Names of the collections that hold documents, sorted."""
        column = self.documents(at=at, columns=["collection"])["collection"]
        return sorted(column.unique().to_pylist())

    def count_chunks(self, *, where: str | None = None, at: str = "") -> int:
        """How many chunks match."""
        table = self._at("chunks", at)
        with mapped_errors("count chunks", next_step=_BAD_FILTER):
            return int(table.count_rows(where))

    def sample_chunks(
        self, count: int, *, seed: int = 17, at: str = "", columns: Sequence[str]
    ) -> pa.Table:
        """Randomly drawn rows of ``chunks``, without repetition; all of them if there are few."""
        table = self._at("chunks", at)
        with mapped_errors("sample chunks"):
            rows = table.count_rows()
            picks = np.random.default_rng(seed).choice(rows, size=min(count, rows), replace=False)
            query = table.take_offsets(sorted(picks.tolist())).select(list(columns))
            return query.to_arrow()

    def oldest_snapshot(self) -> str:
        """Id of the oldest state that still can be read and holds chunks."""
        return snapshots.oldest(self._tables)

    def repeated_chunks(self, *, at: str = "") -> int:
        """Rows of ``chunks`` whose id another row has already; 0 when all is well."""
        column = self.chunks(at=at, columns=["chunk_id"])["chunk_id"]
        return len(column) - len(column.unique())

    def get_chunks(self, chunk_ids: Sequence[str], *, at: str = "") -> list[Hit]:
        """The chunks with these ids, in their order; unknown ids are left out. Scores are 0."""
        found: dict[str, Hit] = {}
        for batch in lookup_batches(chunk_ids):
            table = self.chunks(where=sql_in("chunk_id", batch), at=at, columns=HIT_COLUMNS)
            found.update((h.chunk_id, h) for h in hits(table, np.zeros(table.num_rows)))
        return [found[chunk_id] for chunk_id in chunk_ids if chunk_id in found]

    def vectors(self, chunk_ids: Sequence[str], *, at: str = "") -> Vectors:
        """Vectors of chunks, float32 of shape ``(len(chunk_ids), dimension)``.

        Raises:
            StoreError: If one of the chunks is not there.
        """
        found: dict[str, npt.NDArray[np.float32]] = {}
        for batch in lookup_batches(chunk_ids):
            table = self.chunks(
                where=sql_in("chunk_id", batch), at=at, columns=["chunk_id", "vector"]
            )
            found.update(zip(table["chunk_id"].to_pylist(), matrix(table["vector"]), strict=True))
        missing = [chunk_id for chunk_id in chunk_ids if chunk_id not in found]
        if missing:
            raise StoreError(f"Chunk {missing[0]} is not in {self.uri}.")
        if not chunk_ids:
            return np.zeros((0, self.recipe().embedder.dimension), dtype=np.float32)
        return np.stack([found[chunk_id] for chunk_id in chunk_ids])

    def vectors_by_indexed_digest(self, digests: Sequence[str]) -> dict[str, Vectors]:
        """Stored vectors of already embedded texts, by the digest of what was embedded."""
        if self._tables.find("chunks") is None:
            return {}
        found: dict[str, Vectors] = {}
        for batch in lookup_batches(list(dict.fromkeys(digests))):
            table = self.chunks(
                where=sql_in("indexed_digest", batch), columns=["indexed_digest", "vector"]
            )
            found.update(
                zip(table["indexed_digest"].to_pylist(), matrix(table["vector"]), strict=True)
            )
        return found

    def neighbours(
        self,
        document_id: str,
        ordinal: int,
        radius: int,
        *,
        where: str | None = None,
        at: str = "",
    ) -> list[Hit]:
        """The chunk at ``ordinal`` and up to ``radius`` chunks on each side, in order.

        Those that ``where`` leaves out are missing.
        """
        close = (
            f"document_id = {sql_string(document_id)} "
            f"AND ordinal BETWEEN {int(ordinal - radius)} AND {int(ordinal + radius)}"
        )
        where = f"{close} AND ({where})" if where else close
        table = self.chunks(where=where, at=at, columns=HIT_COLUMNS)
        return sorted(hits(table, np.zeros(table.num_rows)), key=lambda hit: hit.ordinal)

    def with_pages(self, hits: Sequence[Hit], *, at: str = "") -> list[Hit]:
        """Hits with the pages that each has a part of, where their documents have pages."""
        paged = sorted({hit.document_id for hit in hits if hit.page is not None})
        if not paged:
            return list(hits)
        columns = ["document_id", "version", "metadata"]
        found = self.documents(where=sql_in("document_id", paged), at=at, columns=columns)
        starts = {
            (row["document_id"], row["version"]): json.loads(row["metadata"]).get("pages", [])
            for row in found.to_pylist()
        }
        return [
            replace(h, pages=pages_of(h, starts.get((h.document_id, h.document_version), [])))
            for h in hits
        ]

    def document(self, document_id: str, *, at: str = "") -> dict[str, Any] | None:
        """A document's row, or None if there is no such document."""
        table = self.documents(where=f"document_id = {sql_string(document_id)}", at=at)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows[0] if rows else None

    # -- writing ---------------------------------------------------------------------------

    def prepare(self, embedder: EmbedderFingerprint, *, language: str, stemming: bool) -> None:
        """Create the tables with their indexes, or check that they fit the embedder.

        Args:
            embedder: What fills the store.
            language: Language of full-text stemming and stop words.
            stemming: Whether full text stems words.

        Raises:
            IncompatibleArtifact: If another embedder filled the store.
        """
        schema = schemas.chunks_schema(embedder.dimension)
        recorded = {"embedder": json.dumps(embedder.to_dict(), sort_keys=True)}
        schema = schema.with_metadata({**_text_metadata(schema), **recorded})
        chunks = self._tables.create("chunks", schema)
        documents = self._tables.create("documents", schemas.documents_schema())
        _add_columns(documents, schemas.documents_schema())
        self.require_recipe(embedder=embedder)
        with self._tables.locked(), mapped_errors("create indexes"):
            indexes.create_scalar(documents, chunks)
            indexes.create_full_text(chunks, language=language, stemming=stemming)

    def write_documents(
        self, documents: pa.Table, chunks: pa.Table, *, replaces: Sequence[str] = ()
    ) -> None:
        """Store documents with all their chunks.

        The chunks go first, in one atomic commit that also removes the old chunks of
        ``replaces``; the documents' rows go last and mean "complete". After a crash in between,
        a document's row and chunks disagree in version, which the next ingest repairs.

        Args:
            documents: Rows of ``documents`` to insert or replace.
            chunks: All chunks of those documents (of some, for rows whose chunks stay).
            replaces: Ids of documents that may have older chunks.
        """
        chunk_table = self._tables.get("chunks")
        document_table = self._tables.get("documents")
        with snapshots.changing(self._tables), mapped_errors("write documents"):
            if chunks.num_rows:
                merge = (
                    chunk_table.merge_insert("chunk_id")
                    .when_matched_update_all()
                    .when_not_matched_insert_all()
                )
                if replaces:
                    merge = merge.when_not_matched_by_source_delete(
                        sql_in("document_id", list(replaces))
                    )
                merge.execute(chunks)
            elif replaces:
                chunk_table.delete(sql_in("document_id", list(replaces)))
            if documents.num_rows:
                (
                    document_table.merge_insert("document_id")
                    .when_matched_update_all()
                    .when_not_matched_insert_all()
                    .execute(documents)
                )

    def incomplete_documents(self, *, at: str = "") -> frozenset[str]:
        """Ids of documents whose row and chunks disagree, after a crash between two commits."""
        if self._tables.find("documents") is None or self._tables.find("chunks") is None:
            return frozenset()
        with self._tables.locked(shared=True):
            documents = self.documents(at=at, columns=["document_id", "version", "chunk_count"])
            chunks = self.chunks(at=at, columns=["document_id", "document_version"])
        return maintenance.incomplete(documents, chunks)

    def delete_documents(self, document_ids: Sequence[str]) -> int:
        """Remove documents and their chunks from tables and indexes.

        Their bytes stay in older versions until :meth:`purge` or clean-up.

        Returns:
            Chunks removed.
        """
        chunk_table = self._tables.get("chunks")
        document_table = self._tables.get("documents")
        removed = 0
        for batch in lookup_batches(document_ids):
            where = sql_in("document_id", batch)
            with snapshots.changing(self._tables), mapped_errors("delete documents"):
                removed += int(chunk_table.count_rows(where))
                chunk_table.delete(where)
                document_table.delete(where)
        return removed

    def delete_orphans(self, document_ids: Collection[str]) -> int:
        """Remove the chunks of those documents that have no row.

        A writer that was killed between its two commits leaves them, and where the source is gone
        by the next run, nobody else does away with them.

        Returns:
            Chunks removed.
        """
        chunk_table = self._tables.get("chunks")
        document_table = self._tables.get("documents")
        removed = 0
        for batch in lookup_batches(sorted(document_ids)):
            with snapshots.changing(self._tables), mapped_errors("delete chunks"):
                found = document_table.search().where(sql_in("document_id", batch))
                rows = found.select(["document_id"]).to_arrow()["document_id"].to_pylist()
                if orphans := set(batch).difference(rows):
                    where = sql_in("document_id", sorted(orphans))
                    removed += int(chunk_table.count_rows(where))
                    chunk_table.delete(where)
        return removed

    def optimize(self, *, keep_days: float | None = 7.0, keep_answered_days: float = 30.0) -> None:
        """Compact small files, bring new rows into the indexes, drop old unpinned versions.

        Args:
            keep_days: Age in days up to which versions stay; tagged ones stay anyway. None
                keeps all.
            keep_answered_days: Age in days of a logged answer or prediction up to which the
                state that it was made on stays.
        """
        if keep_days is not None:
            snapshots.pin_answered(self._tables, self._answered(keep_answered_days))
        for name in self._tables.names():
            maintenance.optimize(self._tables, name, keep_days=keep_days)

    def purge(self) -> list[str]:
        """Make the bytes of deleted rows go from the files, now.

        States that are kept for the answers made on them go too.

        Returns:
            Tags that pin an older state and may therefore still hold deleted bytes.
        """
        snapshots.pin_answered(self._tables, ())
        for name in ("chunks", "documents"):
            if name in self._tables.names():
                maintenance.purge(self._tables, name)
        newest = self.snapshot()
        return [name for name, snapshot in self.tags().items() if snapshot != newest]

    def update_vector_index(
        self, *, kind: str, exact_below: int, target_recall: float
    ) -> SearchPolicy:
        """Build, extend or drop the vector index as the policy asks, and record the settings.

        Args:
            kind: ``auto``, ``none``, ``ivf_flat``, ``ivf_rq``, ``ivf_pq`` or ``hnsw_sq``.
            exact_below: Rows up to which ``auto`` searches exactly.
            target_recall: Recall@10 against exact search to reach.
        """
        with mapped_errors("build the vector index"):
            return indexes.update_vector_index(
                self._tables.get("chunks"),
                kind=kind,
                exact_below=exact_below,
                target_recall=target_recall,
            )

    def search_policy(self, *, at: str = "") -> SearchPolicy:
        """How vector search runs: exact, or over an index with measured recall."""
        return self._searcher(at).policy

    def measure_recall(self, *, queries: int = 64, seed: int = 17) -> float:
        """Recall@10 of vector search as configured against exact search, in [0, 1]."""
        searcher = self._searcher("")
        with mapped_errors("measure recall"):
            return indexes.measure_recall(searcher, queries=queries, seed=seed)

    # -- logs ------------------------------------------------------------------------------

    def append(self, table: LogTable, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows to a log table, which is created on first use and compacted now and then.

        Args:
            table: ``inference_log``, ``feedback`` or ``predictions``.
            rows: One mapping per row with the columns of its schema.
        """
        schema = _LOG_SCHEMAS[table]()
        if not rows:
            return
        handle = self._tables.create(table, schema)
        _add_columns(handle, schema)
        with mapped_errors(f"write to {table}"):
            handle.add(pa.Table.from_pylist([dict(row) for row in rows], schema=schema))
            commits = handle.version
        if commits % _LOG_COMMITS == 0:
            try:
                maintenance.compact_log(self._tables, table)
            except StoreError as error:
                # The rows are written: who appended them must not write them again.
                logger.warning("%s is compacted another time: %s", table, error)

    def rows(
        self,
        table: LogTable,
        *,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Rows of a log table; none, with its schema, while it does not exist yet.

        Columns that a table of an earlier release lacks are left out.
        """
        handle = self._tables.find(table)
        if handle is None:
            empty = _LOG_SCHEMAS[table]().empty_table()
            return empty if columns is None else empty.select(list(columns))
        if columns is not None:
            columns = [name for name in columns if name in handle.schema.names]
        return self._scan(handle, where, columns, limit)

    def count_rows(self, table: LogTable) -> int:
        """How many rows a log table has."""
        handle = self._tables.find(table)
        if handle is None:
            return 0
        with mapped_errors(f"count rows of {table}"):
            return int(handle.count_rows())

    # -- inside ----------------------------------------------------------------------------

    def _answered(self, days: float) -> set[str]:
        """The states that the logged answers and predictions of the last days were made on."""
        since = pa.scalar(datetime.now(UTC) - timedelta(days=days))
        found: set[str] = set()
        for table in _ANSWERS:
            rows = self.rows(table, columns=["created_at", "snapshot"])
            recent = rows.filter(pc.greater_equal(rows["created_at"], since))
            found.update(recent["snapshot"].unique().to_pylist())
        return found

    def _at(self, name: str, at: str) -> Any:
        if not at:
            return self._tables.get(name)
        return self._tables.at(name, snapshots.version_of(self._tables, name, at))

    def _searcher(self, at: str) -> ChunkSearcher:
        """The chunk table of a state, ready to be searched; the last few are kept."""
        version = (
            snapshots.version_of(self._tables, "chunks", at)
            if at
            else self._tables.newest("chunks")
        )
        with self._lock:
            searcher = self._searchers.get(version)
        if searcher is None:
            dataset = self._tables.dataset("chunks", version)
            with mapped_errors("read the indexes of chunks"):
                searcher = ChunkSearcher(dataset)
            with self._lock:
                while len(self._searchers) >= _SEARCHERS:
                    self._searchers.pop(next(iter(self._searchers)))
                self._searchers[version] = searcher
        return searcher

    def _scan(
        self,
        table: Any,
        where: str | None,
        columns: Sequence[str] | None,
        limit: int | None = None,
    ) -> pa.Table:
        with mapped_errors(f"read {table.name}", next_step=_BAD_FILTER if where else ""):
            return _restricted(table.search(), where, columns, limit).to_arrow()


def _restricted(
    query: Any, where: str | None, columns: Sequence[str] | None, limit: int | None
) -> Any:
    if where:
        query = query.where(where)
    if columns is not None:
        query = query.select(list(columns))
    return query if limit is None else query.limit(limit)


def _add_columns(table: Any, schema: pa.Schema) -> None:
    """Add the columns that a table of an earlier release lacks."""
    if missing := [f for f in schema if f.name not in table.schema.names]:
        with mapped_errors(f"add columns to {table.name}"):
            table.add_columns(missing)


def _text_metadata(schema: pa.Schema) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
