"""One pass over sources: what is new, changed, the same, moved, or gone."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rag_fti import ids
from rag_fti.errors import SourceError
from rag_fti.feature_store import FeatureStore
from rag_fti.features.documents import document_of, moved_document
from rag_fti.features.engines import Loader
from rag_fti.features.known import KnownDocument, KnownDocuments
from rag_fti.features.loading import Loaded, LoadFailure, LoadTask
from rag_fti.features.loading.formats import format_of
from rag_fti.features.loading.sources import MEMBER, is_below
from rag_fti.features.totals import IngestTotals
from rag_fti.features.writing import Writer


@dataclass
class _Pending:
    """A source that is being loaded."""

    entry: KnownDocument
    before: KnownDocument | None
    joining: list[str] = field(default_factory=list)
    """Stored sources that now have these bytes; they keep what they had until it is read."""


class Pass:
    """Decides what becomes of every source, and hands what changed to the writer.

    Args:
        store: Read for documents that get another name.
        known: What is stored; kept up to date.
        writer: Commits.
        collection: Where documents go.
        max_file_bytes: What is larger is set aside.
        totals: Are kept up to date.
    """

    def __init__(
        self,
        *,
        store: FeatureStore,
        known: KnownDocuments,
        writer: Writer,
        collection: str,
        max_file_bytes: int,
        totals: IngestTotals,
    ) -> None:
        self._store = store
        self._known = known
        self._writer = writer
        self._collection = collection
        self._max_file_bytes = max_file_bytes
        self._pending: dict[str, _Pending] = {}
        self._seen: set[str] = set()
        self.totals = totals

    def fail(self, source: str, reason: str) -> None:
        """Set a source aside."""
        self._seen.add(source)
        self.totals.failures[source] = reason

    def take_all(self, tasks: Iterable[LoadTask], loader: Loader) -> None:
        """Load what changed and put it into batches, committing each that is full."""
        for task, result in loader.load_all(self._changed(tasks)):
            pending = self._pending.pop(task.source)
            if isinstance(result, LoadFailure):
                self._give_up(pending, result.reason)
            else:
                self._take(task, result, pending)
            if self._writer.full:
                self.flush()

    def flush(self) -> None:
        """Embed and commit what is waiting."""
        self._writer.flush()

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
        limit = self._max_file_bytes
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
                pending = self._pending.get(twin.sources[0])
                if before is not None and pending is not None and pending.entry is twin:
                    pending.joining.append(task.source)
                else:
                    self._join(task.source, twin, before)
                continue
            entry = KnownDocument(
                ids.document_id(self._collection, task.source), [task.source], digest, True
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
        pending = self._pending.get(twin.sources[0])
        if pending is None or pending.entry is not twin:  # else its row will carry all sources
            self._writer.update_sources(twin)

    def _detach(self, source: str, document: KnownDocument) -> None:
        """A source no longer has the content of a document; others may still have it."""
        named_after = document.sources[0] == source
        self._known.remove_source(source)
        if not document.sources:
            self._writer.delete(document.document_id)
        elif named_after:
            self._rehome(document)
        else:
            self._writer.update_sources(document)

    def _rehome(self, document: KnownDocument) -> None:
        """Name a document's content after another of its sources."""
        row = self._store.document(document.document_id)
        if row is None:  # not committed yet: its own batch is still open
            self.flush()
            row = self._store.document(document.document_id)
        assert row is not None
        self._writer.delete(document.document_id)
        moved = moved_document(row, source=document.sources[0])
        document.document_id = moved.document_id
        self._writer.add(moved, document, replaces=False)

    def _give_up(self, pending: _Pending, reason: str) -> None:
        entry = pending.entry
        if self._known.by_digest.get(entry.raw_digest) is entry:
            del self._known.by_digest[entry.raw_digest]
        # Equal bytes that came later had joined this one; they fail for the same reason.
        for source in (*entry.sources, *pending.joining):
            self.fail(source, reason)
        for source in entry.sources:
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
        document = document_of(
            loaded, source=task.source, collection=self._collection, raw_digest=entry.raw_digest
        )
        self._writer.add(document, entry, replaces=replaces)
        for source in pending.joining:
            self._join(source, entry, self._known.by_source.get(source))

    # -- removing ------------------------------------------------------------------------

    def knows_below(self, root: str) -> bool:
        """Whether documents of a path or glob pattern are stored."""
        return any(is_below(s, [root], patterns=[root]) for s in self._known.by_source)

    def gone(
        self, roots: Sequence[str], patterns: Sequence[str] = (), *, taken: Container[str] = ()
    ) -> list[str]:
        """Stored sources of the given paths that were not met and did not fail.

        A file that exists is not gone because this run passed it over; of an archive only one
        that was ``taken`` tells what it no longer holds.
        """
        kept = list(self.totals.failures)
        return [
            source
            for source in self._known.by_source
            if source not in self._seen
            and is_below(source, roots, patterns=patterns)
            and not is_below(source, kept)
            and ((file := source.partition(MEMBER)[0]) in taken or not os.path.isfile(file))  # noqa: PTH113 - False where it cannot be told
        ]

    def prune(
        self, roots: Sequence[str], patterns: Sequence[str] = (), *, taken: Container[str] = ()
    ) -> None:
        """Remove what is gone."""
        self.remove(self.gone(roots, patterns, taken=taken))

    def remove_orphans(self) -> None:
        """Remove chunks that an interrupted run left, of documents that are not stored."""
        if self._known.broken:
            self.totals.chunks_deleted += self._store.delete_orphans(self._known.broken)

    def remove(self, sources: Sequence[str]) -> None:
        """Remove sources that are stored."""
        for source in sources:
            document = self._known.by_source.get(source)
            if document is not None:
                self._detach(source, document)
                self.totals.deleted += 1
