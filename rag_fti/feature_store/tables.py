"""The LanceDB tables under the feature store: opening, creating, errors, locking."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa

from rag_fti.errors import SchemaMismatch, SnapshotNotFound, StoreError
from rag_fti.schemas import SCHEMA_VERSION

_PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
"""With it, Lance detects that two writers insert the same key at once and retries one of them;
without it both would insert."""

_KEYS = {"documents": "document_id", "chunks": "chunk_id"}
_FOREIGN_ERRORS = (ValueError, RuntimeError, OSError, pa.ArrowException)
_CUT_SHORT = "failed to fill whole buffer"
_RESTORE = (
    "A file of the feature store is cut short: restore the store from a copy; without one, move "
    "it away and ingest again."
)
_MAX_CHECKED_OUT = 8
_STATE_BYTES = 64
_INDEX_CACHE_BYTES = 1024**3
_METADATA_CACHE_BYTES = 16 * 1024**2
"""Lance keeps what it read of every version until its caches are full, by default 6 and 1 GB: a
server beside an ingest then grows for hours, by a quarter of a megabyte with every commit. A search
of 100,000 chunks is as fast with 4 MB of metadata as with 64."""


def sql_string(value: str) -> str:
    """``value`` as a quoted SQL literal, for building a ``where``."""
    return "'" + value.replace("'", "''") + "'"


def sql_in(column: str, values: list[str]) -> str:
    """``column IN (…)``; false for no values."""
    return f"{column} IN ({', '.join(map(sql_string, values))})" if values else "false"


@contextlib.contextmanager
def mapped_errors(action: str, *, next_step: str = "") -> Iterator[None]:
    """Turn errors of the storage libraries into :class:`StoreError`."""
    try:
        yield
    except _FOREIGN_ERRORS as error:
        if _CUT_SHORT in str(error):
            next_step = _RESTORE
        raise StoreError(f"Cannot {action}: {error}", next_step=next_step) from error


class Tables:
    """The tables of one LanceDB database, opened on first use.

    Args:
        uri: Directory or object-store URI.
        options: Object-store options.
    """

    def __init__(self, uri: str, *, options: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self._options = dict(options or {})
        self._lock = threading.Lock()
        self._connection: Any = None
        self._session = lance.Session(
            index_cache_size_bytes=_INDEX_CACHE_BYTES,
            metadata_cache_size_bytes=_METADATA_CACHE_BYTES,
        )
        self._open: dict[str, Any] = {}
        self._checked_out: dict[tuple[str, int], Any] = {}
        self._watched: dict[str, Any] = {}

    @property
    def is_local(self) -> bool:
        """Whether the database is a directory of this machine."""
        return "://" not in self.uri

    def connection(self) -> Any:
        """The LanceDB connection; every read sees the newest commit."""
        with self._lock:
            if self._connection is None:
                with mapped_errors(
                    f"open the feature store {self.uri}",
                    next_step="Check storage.features and storage.root.",
                ):
                    self._connection = lancedb.connect(
                        self.uri,
                        read_consistency_interval=timedelta(0),
                        storage_options=self._options or None,
                        session=lancedb.Session(
                            index_cache_size_bytes=_INDEX_CACHE_BYTES,
                            metadata_cache_size_bytes=_METADATA_CACHE_BYTES,
                        ),
                    )
            return self._connection

    def names(self) -> set[str]:
        """Names of the tables that exist."""
        if self.is_local and not Path(self.uri).is_dir():
            return set()
        with mapped_errors(f"list the tables of {self.uri}"):
            return set(self.connection().list_tables(limit=1000).tables)

    def find(self, name: str) -> Any | None:
        """The table, or None while it does not exist.

        Raises:
            StoreError: If the store cannot be read.
            SchemaMismatch: If another release made the table.
        """
        with self._lock:
            table = self._open.get(name)
        if table is not None:
            return table
        if name not in self.names():
            return None
        with mapped_errors(f"open the table {name} of {self.uri}"):
            table = self.connection().open_table(name)
            metadata = table.schema.metadata or {}
        found = metadata.get(b"schema_version", b"none").decode()
        if found != str(SCHEMA_VERSION):
            raise SchemaMismatch(
                f"Table {name} of {self.uri} has schema version {found}, this release reads "
                f"{SCHEMA_VERSION}.",
                next_step="Ingest again into a new storage root, or use the release that wrote it.",
            )
        with self._lock:
            return self._open.setdefault(name, table)

    def get(self, name: str) -> Any:
        """The table.

        Raises:
            StoreError: If it does not exist or the store cannot be read.
        """
        table = self.find(name)
        if table is None:
            raise StoreError(
                f"The feature store {self.uri} has no {name} yet.",
                next_step="Ingest documents first: rag-fti ingest PATH.",
            )
        return table

    def newest(self, name: str) -> int:
        """The version that a table's last commit made.

        Raises:
            StoreError: If the table does not exist or the store cannot be read.
        """
        with self._lock:
            dataset = self._watched.get(name)
        with mapped_errors("read the store's version"):
            if dataset is None:
                # Every search asks: a Lance dataset answers ten times as fast as a LanceDB table.
                dataset = self.get(name).to_lance(session=self._session)
                with self._lock:
                    self._watched[name] = dataset
            return int(dataset.latest_version)

    def at(self, name: str, version: int) -> Any:
        """A read-only handle of the table as of a version.

        Raises:
            SnapshotNotFound: If that version is not there any more.
        """
        with self._lock:
            cached = self._checked_out.get((name, version))
        if cached is not None:
            return cached
        self.get(name)
        with mapped_errors(f"open the table {name} of {self.uri}"):
            table = self.connection().open_table(name)
        try:
            table.checkout(version)
        except _FOREIGN_ERRORS as error:
            raise SnapshotNotFound(
                f"Version {version} of {name} is not in {self.uri}: {error}",
                next_step="Tags and the newest snapshot are listed by rag-fti status; how long "
                "other states stay, ingest.keep_versions_days and ingest.keep_answered_days say.",
            ) from error
        with self._lock:
            while len(self._checked_out) >= _MAX_CHECKED_OUT:
                self._checked_out.pop(next(iter(self._checked_out)))
            self._checked_out[(name, version)] = table
        return table

    def dataset(self, name: str, version: int) -> Any:
        """The Lance dataset of a table as of a version, for reading.

        Raises:
            SnapshotNotFound: If that version is not there any more.
        """
        table = self.at(name, version)
        with mapped_errors(f"open the table {name} of {self.uri}"):
            return table.to_lance(session=self._session)

    def create(self, name: str, schema: pa.Schema) -> Any:
        """The table, made with this schema if it does not exist yet."""
        if (existing := self.find(name)) is not None:
            return existing
        key = _KEYS.get(name)
        fields = [f.with_metadata(_PRIMARY_KEY) if f.name == key else f for f in schema]
        with mapped_errors(f"create the table {name} in {self.uri}"):
            if self.is_local:
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            self.connection().create_table(
                name, schema=pa.schema(fields, metadata=schema.metadata), exist_ok=True
            )
        return self.get(name)

    def forget(self) -> None:
        """Drop all open handles, for example after files were cleaned up."""
        with self._lock:
            self._open.clear()
            self._checked_out.clear()
            self._watched.clear()

    @contextlib.contextmanager
    def locked(
        self, *, shared: bool = False, before: Callable[[], str] | None = None
    ) -> Iterator[bool]:
        """Hold the store's lock between processes of this machine.

        Writers hold it while they commit to two tables, so that who holds it sees both or
        neither. It guards consistency of snapshots only: each commit is safe without it.
        Object stores have no such lock.

        Args:
            shared: Lock as a reader.
            before: Names the state that :meth:`settled` answers with meanwhile. None where the
                commits change no row, so that readers may see each as it comes.

        Yields:
            Whether the lock is held.
        """
        handle = self._lock_file()
        if handle is None:
            if not shared and self.is_local and Path(self.uri).is_dir():
                raise StoreError(f"Cannot lock {self.uri} for writing: it is not writable.")
            yield False
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if shared:
                yield True
                return
            os.ftruncate(handle, 0)  # what a killed writer wrote
            if before is not None:
                os.pwrite(handle, before().encode(), 0)
            try:
                yield True
            finally:
                os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def settled(self, state: Callable[[], str]) -> str:
        """What ``state`` returns when no writer is between its two commits; waits for none.

        While a writer is at work that is the state it began with, which it wrote into the lock
        file before its first commit.
        """
        handle = self._lock_file()
        if handle is None:
            return state()
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found = state()
                    if begun := os.pread(handle, _STATE_BYTES, 0).decode():
                        return begun
                    # Nothing was committed between the two looks.
                    if state() == found:
                        return found
                else:
                    return state()
        finally:
            os.close(handle)

    def _lock_file(self) -> int | None:
        """A handle of the lock file; None for an object store or a read-only mount."""
        if not self.is_local or not Path(self.uri).is_dir():
            return None
        try:
            return os.open(Path(self.uri) / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise StoreError(f"Cannot open the lock of {self.uri}: {error}") from error
            return None
