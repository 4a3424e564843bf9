"""The feature pipeline's work: load, clean, chunk, embed, upsert.

Batch, watch and HTTP push all go through :class:`Ingestor`. A source whose bytes and recipe are
unchanged costs one hash; files with equal bytes are stored once with all their sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rag_fti import ids, schemas
from rag_fti.errors import SourceError
from rag_fti.feature_store import FeatureStore, sql_in
from rag_fti.features.batches import Batch, check_batch, chunk_rows, document_rows
from rag_fti.features.chunking import Chunker, build_chunker
from rag_fti.features.embedding import embed_texts
from rag_fti.features.engines import Loader, RayEmbedder, RayLoader
from rag_fti.features.known import KnownDocument, KnownDocuments
from rag_fti.features.language import language_of
from rag_fti.features.loading import (
    LOADER_VERSION,
    Limits,
    Loaded,
    LoaderPool,
    LoadFailure,
    LoadTask,
    find_sources,
)
from rag_fti.features.loading.formats import format_of, is_archive
from rag_fti.features.loading.parsing import title_of
from rag_fti.features.loading.sources import STDIN, is_below, is_url, members, read_stdin
from rag_fti.features.structure import blocks_of, first_heading
from rag_fti.models.embedder import build_embedder
from rag_fti.progress import Progress, Silent
from rag_fti.protocols import Embedder
from rag_fti.schemas import Document

if TYPE_CHECKING:
    from rag_fti.config import Settings


_BATCHES_PER_OPTIMIZE = 50
"""Commits after which new rows are indexed, so that looking rows up stays fast in long runs."""


@dataclass
class IngestTotals:
    """What an ingest did."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    chunks_added: int = 0
    """Chunks embedded now."""
    chunks_reused: int = 0
    """Chunks of added or updated documents whose vector was stored already."""
    chunks_deleted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Source to the reason why it was set aside."""
    skipped: int = 0
    """Files in directories whose type is not known."""
    bytes_read: int = 0
    characters: int = 0
    uncovered_characters: int = 0
    wrong_spans: int = 0
    duplicate_chunk_ids: int = 0
    bad_vectors: int = 0
    batches: int = 0
    seconds: float = 0.0

    def absorb(self, other: IngestTotals) -> None:
        """Add another pass's figures; of failures the newest count."""
        for name, value in vars(other).items():
            if isinstance(value, int | float):
                setattr(self, name, getattr(self, name) + value)
        self.failures.update(other.failures)

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return bool(self.added or self.updated or self.deleted or self.batches)


def build_ingestor(
    settings: Settings, *, store: FeatureStore, embedder: Embedder, run_id: str,
    progress: Progress | None = None, collection: str = "", prepare: bool = True,
) -> Ingestor:  # fmt: skip
    """The ingestor that the settings ask for; ``prepare`` creates the store's tables.

    Raises:
        IncompatibleArtifact: If the store was filled with another embedder.
        ConfigError: If chunks would not fit the embedder.
    """
    chunker = build_chunker(settings.chunking, embedder)
    if prepare:
        store.prepare(
            embedder.fingerprint,
            language=settings.index.language,
            stemming=settings.index.full_text_stemming,
        )
    loading = settings.loading
    limits = Limits(
        max_file_bytes=loading.max_file_bytes,
        max_text_chars=loading.max_text_chars,
        max_pages=loading.max_pages,
        max_expansion=loading.max_expansion,
        parse_timeout_seconds=loading.parse_timeout_seconds,
    )
    make_loader: Callable[[], Loader] | None = None
    if settings.ingest.engine == "ray":
        config = settings.embedder
        embedder = RayEmbedder(
            embedder=embedder, build=lambda: build_embedder(config), workers=config.processes
        )
        make_loader = lambda: RayLoader(limits=limits)  # noqa: E731
    return Ingestor(
        store=store,
        embedder=embedder,
        chunker=chunker,
        collection=collection or settings.ingest.collection,
        run_id=run_id,
        limits=limits,
        workers=loading.workers,
        include=loading.include,
        exclude=loading.exclude,
        allow_urls=loading.allow_urls,
        batch_documents=settings.ingest.batch_documents,
        batch_chunks=settings.ingest.batch_chunks,
        progress=progress,
        make_loader=make_loader,
    )


class Ingestor:
    """Brings documents of one collection into the feature store.

    Args:
        store: Prepared for the embedder.
        embedder: Computes vectors.
        chunker: Cuts documents.
        collection: Where documents go.
        run_id: Recorded with every document written.
        limits: What is refused.
        workers: Parser processes; 0 is one per core, at most 4.
        include: Glob patterns of file names to take from directories.
        exclude: Glob patterns of names to leave out.
        allow_urls: Whether web addresses may be fetched.
        batch_documents: Most documents per commit.
        batch_chunks: Chunks from which a commit is made.
        progress: Is told how far it is.
        make_loader: Makes what loads files; None is a pool of worker processes.
    """

    def __init__(
        self,
        *,
        store: FeatureStore,
        embedder: Embedder,
        chunker: Chunker,
        collection: str,
        run_id: str,
        limits: Limits | None = None,
        workers: int = 0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_urls: bool = False,
        batch_documents: int = 64,
        batch_chunks: int = 2048,
        progress: Progress | None = None,
        make_loader: Callable[[], Loader] | None = None,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._chunker = chunker
        self._collection = collection
        self._run_id = run_id
        self._limits = limits or Limits()
        self._make_loader = make_loader or (
            lambda: LoaderPool(workers=workers, limits=self._limits)
        )
        self._include = include
        self._exclude = exclude
        self._allow_urls = allow_urls
        self._batch_documents = batch_documents
        self._batch_chunks = batch_chunks
        self._progress = progress or Silent()
        self._recipe = recipe_digest(chunker)

    def ingest(
        self, paths: Sequence[str], *, prune: bool = False, stdin_name: str = "stdin"
    ) -> IngestTotals:
        """Ingest files, directories, glob patterns, archives, URLs and ``-`` (stdin).

        Args:
            paths: As the user gave them.
            prune: Remove documents of these paths whose source is gone.
            stdin_name: What the document on stdin is called.

        Returns:
            What was done. Files that could not be read are in ``failures``.
        """
        found = find_sources(paths, include=self._include, exclude=self._exclude)
        run = self._start()
        run.totals.skipped = found.skipped
        tasks = self._tasks(found.sources, run, stdin_name)
        run.take_all(tasks, total=len(found.sources))
        gone_roots = {root for root in found.failures if prune and run.knows_below(root)}
        for root, reason in found.failures.items():
            if root not in gone_roots:
                run.totals.failures[root] = reason
        if prune:
            run.prune(found.roots)
        run.flush()
        return run.totals

    def follow(self, paths: Sequence[str]) -> IngestTotals:
        """Ingest changed files and remove those of the given paths that are gone.

        Directories are taken with all that is in them. Paths that never were documents are
        passed over.
        """
        present = [path for path in paths if Path(path).exists()]
        found = find_sources(present, include=self._include, exclude=self._exclude)
        run = self._start(repair=False)
        run.take_all(self._tasks(found.sources, run, "stdin"), total=len(found.sources))
        run.prune([path for path in paths if path not in present or Path(path).is_dir()])
        run.flush()
        return run.totals

    def ingest_tasks(self, tasks: Iterable[LoadTask]) -> IngestTotals:
        """Ingest documents whose bytes are at hand, such as pushed ones."""
        run = self._start(repair=False)
        run.take_all(tasks, total=None)
        run.flush()
        return run.totals

    def remove(self, sources: Sequence[str]) -> IngestTotals:
        """Remove sources; a document that other sources have too stays with those."""
        run = self._start()
        run.remove(sources)
        run.flush()
        return run.totals

    def preview(self, paths: Sequence[str], *, prune: bool = False) -> IngestTotals:
        """What :meth:`ingest` would do, judged by hashes alone; nothing is written or parsed."""
        found = find_sources(paths, include=self._include, exclude=self._exclude)
        run = self._start()
        run.totals.skipped = found.skipped
        run.totals.failures.update(found.failures)
        for task in self._tasks(found.sources, run, "stdin"):
            run.preview(task)
        if prune:
            run.totals.deleted = len(run.gone(found.roots))
        return run.totals

    def _start(self, *, repair: bool = True) -> _Run:
        """Read what is stored; ``repair`` also looks for what interrupted runs left."""
        known = KnownDocuments.read(
            self._store,
            collection=self._collection,
            recipe_digest=self._recipe,
            repair=repair,
        )
        return _Run(self, known)

    def _tasks(self, sources: Mapping[str, Path], run: _Run, stdin_name: str) -> Iterator[LoadTask]:
        for number, (source, path) in enumerate(sources.items(), start=1):
            try:
                if source == STDIN:
                    yield read_stdin(self._limits, name=stdin_name)
                elif is_url(source):
                    yield self._fetch(source)
                elif is_archive(source):
                    for member in members(path, source, self._limits):
                        if isinstance(member, LoadTask):
                            yield member
                        else:
                            run.fail(*member)
                else:
                    yield LoadTask(source, path=path)
            except SourceError as error:
                run.fail(source, str(error))
            self._progress.update("reading documents", number, len(sources))

    def _fetch(self, url: str) -> LoadTask:
        if not self._allow_urls:
            raise SourceError("web addresses are not fetched; set loading.allow_urls=true")
        from rag_fti.features.loading.urls import fetch

        return fetch(url, self._limits)


def recipe_digest(chunker: Chunker) -> str:
    """Digest of everything between a file's bytes and its chunks: loader, cleaner, chunker."""
    return ids.digest_json({"chunker": chunker.digest, "loader": LOADER_VERSION})


@dataclass
class _Pending:
    """A source that is being loaded."""

    entry: KnownDocument
    before: KnownDocument | None


class _Run:
    """One pass over sources: the state that :class:`Ingestor` does not keep."""

    def __init__(self, ingestor: Ingestor, known: KnownDocuments) -> None:
        self._in = ingestor
        self._known = known
        self._pending: dict[str, _Pending] = {}
        self._batch = Batch()
        self._resourced: dict[str, KnownDocument] = {}
        self._deletions: list[str] = []
        self._seen: set[str] = set()
        self._embedded = 0
        self._now = datetime.now(UTC)
        self.totals = IngestTotals()

    def fail(self, source: str, reason: str) -> None:
        """Set a source aside."""
        self._seen.add(source)
        self.totals.failures[source] = reason

    # -- reading -------------------------------------------------------------------------

    def take_all(self, tasks: Iterable[LoadTask], *, total: int | None) -> None:
        """Load what changed and put it into batches, committing each that is full."""
        ingestor = self._in
        with ingestor._make_loader() as loader:
            for task, result in loader.load_all(self._changed(tasks)):
                pending = self._pending.pop(task.source)
                if isinstance(result, LoadFailure):
                    self._give_up(pending, result.reason)
                else:
                    self._take(task, result, pending)
                full = len(self._batch.documents) >= ingestor._batch_documents
                if full or self._batch.chunk_count >= ingestor._batch_chunks:
                    self.flush()

    def preview(self, task: LoadTask) -> None:
        """Count a source by its hash as unchanged, updated or added."""
        digest = self._digest(task)
        if digest is None:
            return
        before = self._known.by_source.get(task.source)
        if before is None:
            self.totals.added += 1
        elif before.raw_digest == digest and before.current:
            self.totals.unchanged += 1
        else:
            self.totals.updated += 1

    def _digest(self, task: LoadTask) -> str | None:
        limit = self._in._limits.max_file_bytes
        self._seen.add(task.source)
        try:
            if task.data is not None:
                size = len(task.data)
            else:
                assert task.path is not None
                size = task.path.stat().st_size
                if not task.path.is_file():
                    raise SourceError("not a regular file")
            if size > limit:
                raise SourceError(f"{size} bytes, more than {limit} (loading.max_file_bytes)")
            self.totals.bytes_read += size
            if task.data is not None:
                return ids.digest_bytes(task.data)
            assert task.path is not None
            return ids.digest_file(task.path)
        except OSError as error:
            self.fail(task.source, f"cannot be read: {error.strerror or error}")
        except SourceError as error:
            self.fail(task.source, str(error))
        return None

    def _changed(self, tasks: Iterable[LoadTask]) -> Iterator[LoadTask]:
        for task in tasks:
            if task.source in self._seen:
                self.fail(task.source, "given twice in this run; the first one was taken")
                continue
            digest = self._digest(task)
            if digest is None:
                continue
            before = self._known.by_source.get(task.source)
            if before is not None and before.raw_digest == digest and before.current:
                self.totals.unchanged += 1
                continue
            twin = self._known.by_digest.get(digest)
            if twin is not None and format_of(twin.sources[0]) == format_of(task.source):
                self._join(task.source, twin, before)
                continue
            entry = KnownDocument(
                ids.document_id(self._in._collection, task.source), [task.source], digest, True
            )
            self._known.by_digest.setdefault(digest, entry)
            self._pending[task.source] = _Pending(entry, before)
            yield task

    def _join(self, source: str, twin: KnownDocument, before: KnownDocument | None) -> None:
        """A source with the same bytes as a stored document becomes one of its sources."""
        if before is not None:
            self._detach(source, before)
            self.totals.updated += 1
        else:
            self.totals.added += 1
        twin.sources.append(source)
        twin.sources[1:] = sorted(twin.sources[1:])
        self._known.by_source[source] = twin
        self._resourced[twin.document_id] = twin

    def _detach(self, source: str, document: KnownDocument) -> None:
        """A source no longer has the content of a document; others may still have it."""
        named_after = document.sources[0] == source
        self._known.remove_source(source)
        if not document.sources:
            self._deletions.append(document.document_id)
        elif named_after:
            self._rehome(document)
        else:
            self._resourced[document.document_id] = document

    def _rehome(self, document: KnownDocument) -> None:
        """Name a document's content after another of its sources."""
        row = self._in._store.document(document.document_id)
        if row is None:  # not committed yet: its own batch is still open
            self.flush()
            row = self._in._store.document(document.document_id)
        assert row is not None
        self._deletions.append(document.document_id)
        source = document.sources[0]
        metadata = json.loads(row["metadata"])
        moved = Document(
            document_id=ids.document_id(self._in._collection, source),
            collection=self._in._collection,
            source=source,
            title=row["title"],
            text=row["text"],
            media_type=row["media_type"],
            raw_digest=row["raw_digest"],
            version=row["version"],
            language=row["language"],
            pages=tuple(metadata.pop("pages", ())),
            metadata=metadata,
        )
        self._resourced.pop(document.document_id, None)
        document.document_id = moved.document_id
        self._add(moved, document, replaces=False)

    def _give_up(self, pending: _Pending, reason: str) -> None:
        entry = pending.entry
        if self._known.by_digest.get(entry.raw_digest) is entry:
            del self._known.by_digest[entry.raw_digest]
        self._resourced.pop(entry.document_id, None)
        # Equal bytes that came later had joined this one; they fail for the same reason.
        for source in entry.sources:
            self.fail(source, reason)
            if source != entry.sources[0]:
                self._known.by_source.pop(source, None)
                self.totals.added -= 1

    def _take(self, task: LoadTask, loaded: Loaded, pending: _Pending) -> None:
        entry, before = pending.entry, pending.before
        replaces = entry.document_id in self._known.broken
        if before is None:
            self.totals.added += 1
        else:
            self.totals.updated += 1
            same = before.document_id == entry.document_id
            if same and len(before.sources) == 1:
                replaces = True  # the common case: the file's new content replaces the old
                if self._known.by_digest.get(before.raw_digest) is before:
                    del self._known.by_digest[before.raw_digest]
            else:
                self._detach(task.source, before)
        for source in entry.sources:
            self._known.by_source[source] = entry
        self._resourced.pop(entry.document_id, None)
        self._add(self._document(task, loaded, entry), entry, replaces=replaces)

    def _document(self, task: LoadTask, loaded: Loaded, entry: KnownDocument) -> Document:
        heading = first_heading(blocks_of(loaded.text, loaded.media_type))
        title = title_of(loaded.title, heading, task.source)
        metadata = dict(loaded.metadata)
        language = metadata.pop("language", "")[:2].lower() or language_of(loaded.text)
        version = ids.digest_json(
            {
                "text": ids.digest_text(loaded.text),
                "title": title,
                "metadata": metadata,
                "loader": LOADER_VERSION,
            }
        )
        return Document(
            document_id=entry.document_id,
            collection=self._in._collection,
            source=task.source,
            title=title,
            text=loaded.text,
            media_type=loaded.media_type,
            raw_digest=entry.raw_digest,
            version=version,
            language=language,
            pages=loaded.pages,
            metadata=metadata,
        )

    def _add(self, document: Document, entry: KnownDocument, *, replaces: bool) -> None:
        if document.document_id in self._deletions:
            self._deletions.remove(document.document_id)
            replaces = True
        self._batch.add(document, entry, self._in._chunker.chunk(document), replaces=replaces)

    # -- removing ------------------------------------------------------------------------

    def knows_below(self, root: str) -> bool:
        """Whether documents of a path are stored."""
        return any(is_below(source, [root]) for source in self._known.by_source)

    def gone(self, roots: Sequence[str]) -> list[str]:
        """Stored sources of the given paths that were not met and did not fail."""
        kept = list(self.totals.failures)
        return [
            source
            for source in self._known.by_source
            if source not in self._seen and is_below(source, roots) and not is_below(source, kept)
        ]

    def prune(self, roots: Sequence[str]) -> None:
        """Remove what is gone."""
        self.remove(self.gone(roots))

    def remove(self, sources: Sequence[str]) -> None:
        """Remove sources that are stored."""
        for source in sources:
            document = self._known.by_source.get(source)
            if document is not None:
                self._detach(source, document)
                self.totals.deleted += 1

    # -- writing -------------------------------------------------------------------------

    def flush(self) -> None:
        """Embed and commit what is waiting."""
        batch, self._batch = self._batch, Batch()
        if batch.documents:
            self._write(batch)
        if self._deletions:
            gone, self._deletions = self._deletions, []
            self.totals.chunks_deleted += self._in._store.delete_documents(gone)
        self._write_sources()

    def _write(self, batch: Batch) -> None:
        ingestor = self._in
        texts = [
            ingestor._chunker.indexed_text(document, chunk)
            for document, chunks in zip(batch.documents, batch.chunks, strict=True)
            for chunk in chunks
        ]
        embedded = embed_texts(
            texts,
            embedder=ingestor._embedder,
            known=ingestor._store.vectors_by_indexed_digest,
            advance=self._advance,
        )
        self._count(batch, embedded.vectors)
        computed = int(embedded.computed.sum())
        self.totals.chunks_added += computed
        self.totals.chunks_reused += len(texts) - computed
        self.totals.chunks_deleted += self._stale(batch)
        ingestor._store.write_documents(
            document_rows(batch, recipe=ingestor._recipe, now=self._now, run_id=ingestor._run_id),
            chunk_rows(batch, texts, embedded, now=self._now),
            replaces=batch.replaces,
        )
        for document in batch.documents:
            self._resourced.pop(document.document_id, None)  # written with all its sources
        self.totals.batches += 1
        if self.totals.batches % _BATCHES_PER_OPTIMIZE == 0:
            ingestor._store.optimize(keep_days=None)

    def _count(self, batch: Batch, vectors: Any) -> None:
        found = check_batch(batch, vectors)
        totals = self.totals
        totals.characters += found.characters
        totals.uncovered_characters += found.uncovered_characters
        totals.wrong_spans += found.wrong_spans
        totals.duplicate_chunk_ids += found.duplicate_chunk_ids
        totals.bad_vectors += found.bad_vectors
        found.require()

    def _stale(self, batch: Batch) -> int:
        """Chunks that the batch's documents have and will not have any more."""
        if not batch.replaces:
            return 0
        stored = self._in._store.chunks(
            where=sql_in("document_id", batch.replaces), columns=["chunk_id"]
        )
        kept = {chunk.chunk_id for chunks in batch.chunks for chunk in chunks}
        return sum(chunk_id not in kept for chunk_id in stored["chunk_id"].to_pylist())

    def _advance(self, count: int) -> None:
        self._embedded += count
        self._in._progress.update("embedding chunks", self._embedded)

    def _write_sources(self) -> None:
        """Write the sources of documents whose content stays."""
        waiting, self._resourced = self._resourced, {}
        waiting = {k: v for k, v in waiting.items() if k not in self._in_flight()}
        if not waiting:
            return
        rows = self._in._store.documents(where=sql_in("document_id", list(waiting)))
        changed = [
            {**row, "sources": list(waiting[row["document_id"]].sources)}
            for row in rows.to_pylist()
        ]
        schema = schemas.documents_schema()
        self._in._store.write_documents(
            pa.Table.from_pylist(changed, schema=schema),
            schemas.chunks_schema(self._in._embedder.fingerprint.dimension).empty_table(),
        )
        self.totals.batches += 1

    def _in_flight(self) -> set[str]:
        """Documents that are still being loaded; their rows will carry all sources."""
        return {pending.entry.document_id for pending in self._pending.values()}
