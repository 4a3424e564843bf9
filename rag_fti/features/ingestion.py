"""The feature pipeline's work: load, clean, chunk, embed, upsert.

Batch, watch and HTTP push all go through :class:`Ingestor`. A source whose bytes and recipe are
unchanged costs one hash; files with equal bytes are stored once with all their sources.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rag_fti import ids
from rag_fti.errors import SourceError
from rag_fti.feature_store import FeatureStore
from rag_fti.features.chunking import Chunker, build_chunker
from rag_fti.features.engines import Loader, RayEmbedder, RayLoader
from rag_fti.features.known import KnownDocuments
from rag_fti.features.loading import LOADER_VERSION, Limits, LoaderPool, LoadTask, find_sources
from rag_fti.features.loading.formats import is_archive
from rag_fti.features.loading.sources import STDIN, Found, is_url, members, read_stdin
from rag_fti.features.passes import Pass
from rag_fti.features.totals import IngestTotals
from rag_fti.features.writing import Writer
from rag_fti.models.embedder import build_embedder
from rag_fti.progress import Progress, Silent
from rag_fti.protocols import Embedder

if TYPE_CHECKING:
    from rag_fti.config import Settings


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
        self._kept_loader: Loader | None = None
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
        run.totals.failures.update(found.unreadable)
        tasks = self._tasks(found.sources, run, stdin_name)
        self._take(tasks, run)
        _note_failures(found, run, prune=prune)
        if prune:
            run.prune(found.roots, found.patterns, taken=found.sources)
        run.flush()
        run.remove_orphans()
        return run.totals

    def follow(self, paths: Sequence[str]) -> IngestTotals:
        """Ingest changed files and remove those of the given paths that are gone.

        Directories are taken with all that is in them. Paths that never were documents are
        passed over.
        """
        present = [path for path in paths if Path(path).exists()]
        found = find_sources(present, include=self._include, exclude=self._exclude)
        run = self._start(repair=False)
        run.totals.failures.update(found.unreadable)
        self._take(self._tasks(found.sources, run, "stdin"), run)
        gone = [p for p in paths if p not in present or Path(p).is_dir() or is_archive(p)]
        run.prune(gone, taken=found.sources)
        run.flush()
        return run.totals

    def ingest_tasks(self, tasks: Iterable[LoadTask]) -> IngestTotals:
        """Ingest documents whose bytes are at hand, such as pushed ones."""
        run = self._start(repair=False)
        self._take(tasks, run)
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
        run.totals.failures.update(found.unreadable)
        for task in self._tasks(found.sources, run, "stdin"):
            run.preview(task)
        _note_failures(found, run, prune=prune)
        if prune:
            gone = run.gone(found.roots, found.patterns, taken=found.sources)
            run.totals.deleted = len(gone)
        return run.totals

    def _start(self, *, repair: bool = True) -> Pass:
        """Read what is stored; ``repair`` also looks for what interrupted runs left."""
        known = KnownDocuments.read(
            self._store,
            collection=self._collection,
            recipe_digest=self._recipe,
            repair=repair,
        )
        totals = IngestTotals()
        writer = Writer(
            store=self._store,
            embedder=self._embedder,
            chunker=self._chunker,
            collection=self._collection,
            recipe=self._recipe,
            run_id=self._run_id,
            max_documents=self._batch_documents,
            max_chunks=self._batch_chunks,
            progress=self._progress,
            totals=totals,
        )
        return Pass(
            store=self._store,
            known=known,
            writer=writer,
            collection=self._collection,
            max_file_bytes=self._limits.max_file_bytes,
            totals=totals,
        )

    @contextlib.contextmanager
    def keeping_workers(self) -> Iterator[None]:
        """Keep parser processes, one of them started, so that no file waits for its imports."""
        with self._make_loader() as loader:
            list(loader.load_all([LoadTask("warm-up.html", data=b"<p>warm-up</p>")]))
            self._kept_loader = loader
            try:
                yield
            finally:
                self._kept_loader = None

    def _take(self, tasks: Iterable[LoadTask], run: Pass) -> None:
        if self._kept_loader is not None:
            run.take_all(tasks, self._kept_loader)
            return
        with self._make_loader() as loader:
            run.take_all(tasks, loader)

    def _tasks(self, sources: Mapping[str, Path], run: Pass, stdin_name: str) -> Iterator[LoadTask]:
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


def _note_failures(found: Found, run: Pass, *, prune: bool) -> None:
    """Given paths that lead nowhere have failed, but for those whose documents prune removes."""
    for root, reason in found.failures.items():
        if not (prune and run.knows_below(root)):
            run.totals.failures[root] = reason


def recipe_digest(chunker: Chunker) -> str:
    """Digest of everything between a file's bytes and its chunks: loader, cleaner, chunker."""
    return ids.digest_json({"chunker": chunker.digest, "loader": LOADER_VERSION})
