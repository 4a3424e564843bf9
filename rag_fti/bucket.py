"""Objects under one URI of an object store, and a local cache of what was read from there.

Datasets and the registry need three promises of a store: who reads or lists after a write has
ended sees it, an object can be written only if there is none (``If-None-Match: *``), and only if
it is still the one that was read (``If-Match``). Amazon S3, Google Cloud Storage, Azure Blob
Storage, Cloudflare R2 and current MinIO give them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from rag_fti.errors import ConfigError, RagFtiError, StoreError
from rag_fti.files import locked

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path("data") / "cache" / "versions"
MANIFEST = "manifest.json"

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://")
_OBJECT_STORES = ("s3", "gs", "az")
_RANGE_BYTES = 16 * 1024**2
"""Downloads go in pieces, so that the time limit of a request counts for a piece."""
_CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)
"""Options of the connection, which LanceDB takes beside those of the store."""
_RETRIES = 6
_RETRY_SECONDS = 30


def open_root(
    uri: str | Path,
    *,
    options: Mapping[str, str] | None = None,
    cache: Path = DEFAULT_CACHE,
) -> Path | Bucket:
    """The directory or bucket that a URI means; nothing is read or made yet.

    Args:
        uri: A directory, ``file://…``, or ``s3://…``, ``gs://…``, ``az://…``.
        options: Options of the object store (region, endpoint…).
        cache: Directory for copies of what is read from an object store.

    Raises:
        ConfigError: If the options are wrong or object-store support is not installed.
    """
    text = str(uri)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    if scheme[1] == "file":
        return Path(text.removeprefix("file://"))
    if scheme[1] not in _OBJECT_STORES:
        raise ConfigError(
            f"{text} cannot hold datasets or a registry.",
            next_step=f"Use a directory, or a URI that begins with one of: "
            f"{', '.join(f'{name}://' for name in _OBJECT_STORES)}.",
        )
    return Bucket(text, options=options, cache=cache)


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    path: str
    """Relative to the bucket's URI."""
    size: int
    """Bytes."""
    modified: datetime


@dataclass(frozen=True)
class Stored:
    """An object as it was read."""

    data: bytes
    mark: Mapping[str, str]
    """What tells this state of the object from a later one."""


@dataclass
class _Connection:
    client: Any
    constants: dict[str, bytes] = field(default_factory=dict)


@functools.lru_cache(maxsize=16)
def _connect(uri: str, options: tuple[tuple[str, str], ...]) -> _Connection:
    """One client per URI and process, so that connections are used again."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise ConfigError(
            f"{uri} is in an object store, and support for these is not installed.",
            next_step="pip install 'rag-fti[object-store]'",
        ) from error
    of_store = dict(options)
    of_client = {name: of_store.pop(name) for name in _CLIENT_OPTIONS & of_store.keys()}
    try:
        # These two have the names that LanceDB gives them.
        retries = {
            "max_retries": int(of_store.pop("client_max_retries", _RETRIES)),
            "retry_timeout": timedelta(
                seconds=float(of_store.pop("client_retry_timeout", _RETRY_SECONDS))
            ),
        }
        client = from_url(
            uri, config=of_store, client_options=of_client or None, retry_config=retries
        )
        return _Connection(client)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"{uri} cannot be opened: {_short(error)}",
            next_step="Check storage.options against the options of such a store.",
        ) from error


def _short(error: BaseException) -> str:
    """The message in one line, without the client's debug output."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:500]


class Bucket:
    """Objects under one URI. Safe to use from several threads.

    Args:
        uri: ``s3://bucket/prefix``, ``gs://…`` or ``az://…``.
        options: Options of the store; credentials rather come from the environment.
        cache: Directory for copies of what is read; it may be deleted while nothing reads.

    Raises:
        ConfigError: If the options are wrong or object-store support is not installed.
    """

    def __init__(
        self, uri: str, *, options: Mapping[str, str] | None = None, cache: Path = DEFAULT_CACHE
    ) -> None:
        self.uri = uri.rstrip("/")
        self.cache = cache
        self._connection = _connect(self.uri, tuple(sorted((options or {}).items())))
        self._client = self._connection.client

    def __str__(self) -> str:
        return self.uri

    # -- objects ---------------------------------------------------------------------------

    def entries(self, prefix: str = "") -> list[Entry]:
        """Every object below ``prefix``, sorted by path.

        Raises:
            StoreError: If the store cannot be read.
        """
        import obstore

        with self._mapped("list", prefix):
            found = obstore.list(self._client, prefix or None).collect()
        return sorted(
            (Entry(item["path"], item["size"], item["last_modified"]) for item in found),
            key=lambda entry: entry.path,
        )

    def folders(self) -> list[str]:
        """Names directly below the URI that have objects below them, sorted.

        Raises:
            StoreError: If the store cannot be read.
        """
        import obstore

        with self._mapped("list", ""):
            return sorted(obstore.list_with_delimiter(self._client)["common_prefixes"])

    def read(self, path: str) -> Stored | None:
        """An object, or None if there is none.

        Raises:
            StoreError: If the store cannot be read.
        """
        import obstore

        with self._mapped("read", path):
            try:
                got = obstore.get(self._client, path)
            except FileNotFoundError:
                return None
            mark = {key: got.meta[key] for key in ("e_tag", "version") if got.meta[key]}
            return Stored(bytes(got.bytes()), mark)

    def constant(self, path: str) -> bytes | None:
        """An object that never changes, read once by this process; None if there is none.

        Raises:
            StoreError: If the store cannot be read.
        """
        known = self._connection.constants.get(path)
        if known is None and (stored := self.read(path)) is not None:
            known = self._connection.constants[path] = stored.data
        return known

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; False if there is another.

        Raises:
            StoreError: If the store cannot be written.
        """
        return self._put(path, data, "create")

    def replace(self, path: str, data: bytes, before: Stored) -> bool:
        """Write an object over the state that was read; False if it is not that any more.

        Raises:
            StoreError: If the store cannot be written.
        """
        return self._put(path, data, dict(before.mark))

    def write(self, path: str, data: bytes) -> None:
        """Write an object, whatever was there.

        Raises:
            StoreError: If the store cannot be written.
        """
        self._put(path, data, "overwrite")

    def upload(self, file: Path, path: str) -> None:
        """Write a file of any size, whatever was there.

        Raises:
            StoreError: If the store cannot be written.
        """
        import obstore

        with self._mapped("write", path):
            obstore.put(self._client, path, file)

    def download(self, path: str, file: Path) -> None:
        """Write an object into a new file.

        Raises:
            StoreError: If there is no such object or the store cannot be read.
        """
        import obstore

        file.parent.mkdir(parents=True, exist_ok=True)
        with self._mapped("read", path):
            size = obstore.head(self._client, path)["size"]
        with file.open("xb") as stream:
            for start in range(0, size, _RANGE_BYTES):
                end = min(size, start + _RANGE_BYTES)
                with self._mapped("read", path):
                    piece = obstore.get_range(self._client, path, start=start, end=end)
                stream.write(piece)

    def delete(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are gone already do not matter.

        Raises:
            StoreError: If the store cannot be written.
        """
        import obstore

        for path in paths:
            with self._mapped("remove", path), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._client, path)

    def _put(self, path: str, data: bytes, mode: Any) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._mapped("write", path):
            try:
                obstore.put(self._client, path, data, mode=mode)
            except (AlreadyExistsError, PreconditionError):
                # The client repeats a request whose reply was lost: the other writer was it.
                stored = self.read(path)
                return stored is not None and stored.data == data
        return True

    @contextlib.contextmanager
    def _mapped(self, action: str, path: str) -> Iterator[None]:
        """Turn errors of the client into :class:`StoreError`."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(
                f"Cannot {action} {self.uri}/{path}: there is no such object (any more).",
                next_step="It may have been removed meanwhile; list what is there.",
            ) from error
        except (BaseError, OSError) as error:
            raise StoreError(
                f"Cannot {action} {self.uri}/{path}: {_short(error)}",
                next_step="Check the URI, storage.options and the credentials in the environment.",
            ) from error

    # -- cache -----------------------------------------------------------------------------

    def cached(self, label: str, manifest: bytes) -> Path:
        """Where the copy of a version is, or will be once it is fetched."""
        return self.cache / f"{label}-{hashlib.sha256(manifest).hexdigest()[:16]}"

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A new directory beside the cached copies; gone after the ``with`` block.

        Raises:
            StoreError: If files cannot be written there, also from within the block.
        """
        staged = self.cache / f".{os.getpid()}-{os.urandom(6).hex()}"
        with self._caching():
            try:
                staged.mkdir(parents=True)
                yield staged
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def fetch(
        self,
        prefix: str,
        names: Iterable[str],
        *,
        label: str,
        manifest: bytes,
        check: Callable[[Path], None],
    ) -> Path:
        """The checked local copy of a version, fetched if it is not there or is damaged.

        Args:
            prefix: Where its files are.
            names: Its files, relative.
            label: First part of the copy's name.
            manifest: The manifest; its digest is the other part.
            check: Called with the directory; raises if a file is not what the manifest says.

        Raises:
            StoreError: If the store cannot be read.
            RagFtiError: What ``check`` raises about the files as they are in the store.
        """
        target = self.cached(label, manifest)
        with self._caching(), locked(target.with_name(f".{target.name}.lock")):
            if target.is_dir():
                try:
                    check(target)
                except RagFtiError as error:
                    logger.warning("the copy %s is damaged and fetched again: %s", target, error)
                    shutil.rmtree(target)
                else:
                    return target
            with self.staging() as staged:
                for name in names:
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        raise StoreError(f"{self.uri}/{prefix} names a file outside it: {name!r}.")
                    self.download(f"{prefix}/{name}", staged / name)
                (staged / MANIFEST).write_bytes(manifest)
                check(staged)
                staged.rename(target)
        return target

    @contextlib.contextmanager
    def _caching(self) -> Iterator[None]:
        """Turn errors of the file system into :class:`StoreError`."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"Cannot write into {self.cache}: {error}.",
                next_step="Let storage.cache be a writable directory with room for a version.",
            ) from error
