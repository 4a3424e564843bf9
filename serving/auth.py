"""API keys: hashed at rest, bound to scopes and collections."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from rag_fti.errors import ConfigError
from rag_fti.files import locked, write_bytes_atomic

Scope = Literal["chat", "search", "ingest", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "rag-"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
EVERY_COLLECTION = "*"


@dataclass(frozen=True)
class ApiKey:
    """One key as it is stored: without the key."""

    id: str
    name: str
    sha256: str
    """SHA-256 of the key. A key is 256 random bits, so a slow hash would add nothing."""
    scopes: tuple[str, ...]
    collections: tuple[str, ...]
    """Collections it may see; ``*`` is every one."""
    requests_per_minute: int = 0
    """0 takes the server's limit."""
    created_at: str = ""


@dataclass(frozen=True)
class Principal:
    """Who a request comes from."""

    key_id: str
    """Empty on a server without keys."""
    scopes: frozenset[str]
    collections: tuple[str, ...] | None
    """None: every collection."""
    requests_per_minute: int = 0

    def may(self, scope: Scope) -> bool:
        """Whether the key has a scope; ``admin`` includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    def visible(self, wanted: str | None) -> list[str] | None:
        """Collections to look into for a request that names one, or none.

        Returns:
            Names, or None for every collection. A name outside the key's own gives an empty
            list: whether it exists is not told.
        """
        if self.collections is None:
            return [wanted] if wanted else None
        return [name for name in self.collections if not wanted or name == wanted]

    def sees(self, collections: Sequence[str]) -> bool:
        """Whether it sees each of the collections that an answer was made from, ``*`` for all."""
        return self.collections is None or set(collections) <= set(self.collections)


LOCAL = Principal(key_id="", scopes=frozenset(SCOPES), collections=None)
"""Everybody, on a server without keys (it listens on loopback only)."""


class KeyFile:
    """The keys of a server, read again when the file changes.

    Args:
        path: YAML file with a list under ``keys``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the file if it changed.

        Raises:
            ConfigError: If it cannot be read; the keys read before stay in force.
        """
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(
                f"Cannot read the key file {self._path}: {error}.",
                next_step="Make one: rag-fti keys add NAME.",
            ) from error
        stamp = (status.st_mtime_ns, status.st_size)
        with self._lock:
            if stamp != self._stamp:
                self._keys = tuple(read_keys(self._path))
                self._stamp = stamp

    def find(self, presented: str) -> Principal | None:
        """Who a presented key belongs to, or None; takes the same time for any wrong key."""
        digest = digest_key(presented)
        found: ApiKey | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            return None
        everything = EVERY_COLLECTION in found.collections
        return Principal(
            key_id=found.id,
            scopes=frozenset(found.scopes),
            collections=None if everything else found.collections,
            requests_per_minute=found.requests_per_minute,
        )


class RateLimiter:
    """Token buckets per key: a minute's allowance at once, refilled evenly.

    Args:
        per_minute: Allowance of keys without their own; 0 is no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_seconds(self, principal: Principal, *, now: float | None = None) -> float:
        """Take one request from the allowance; seconds to wait where it is used up, else 0."""
        limit = principal.requests_per_minute or self._per_minute
        if not limit:
            return 0.0
        now = time.monotonic() if now is None else now
        left, since = self._buckets.get(principal.key_id, (float(limit), now))
        left = min(float(limit), left + (now - since) * limit / 60.0)
        if left < 1.0:
            self._buckets[principal.key_id] = (left, now)
            return (1.0 - left) * 60.0 / limit
        self._buckets[principal.key_id] = (left - 1.0, now)
        return 0.0


def digest_key(key: str) -> str:
    """SHA-256 of a key as 64 hex digits."""
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file; a file that does not exist holds none.

    Raises:
        ConfigError: If the file is not a key file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read the key file {path}: {error}.") from error
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(
            f"{path} is no key file: it needs a list under 'keys'.",
            next_step="Make one: rag-fti keys add NAME.",
        )
    return [_read_key(path, entry) for entry in entries]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_text, "text"),
    "sha256": (_is_text, "text"),
    "scopes": (_are_texts, "a list of texts"),
    "collections": (_are_texts, "a list of texts"),
    "requests_per_minute": (lambda value: type(value) is int and value >= 0, "0 or more"),
}


def _read_key(path: Path, entry: Any) -> ApiKey:
    try:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.items()
        }
        key = ApiKey(**values)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"A key in {path} does not fit: {error}.") from error
    wrong = [
        f"{name} is {getattr(key, name)!r}, expected {expected}"
        for name, (fits, expected) in _FIELDS.items()
        if not fits(getattr(key, name))
    ]
    if wrong:
        raise ConfigError(f"A key in {path} does not fit: {'; '.join(wrong)}.")
    unknown = sorted(set(key.scopes) - set(SCOPES))
    if unknown or not re.fullmatch(r"[0-9a-f]{64}", key.sha256):
        raise ConfigError(
            f"Key {key.id!r} in {path} has "
            + (f"unknown scopes {', '.join(unknown)}." if unknown else "no valid sha256."),
            next_step=f"Scopes are {', '.join(SCOPES)}.",
        )
    return key


def add_key(
    path: Path,
    *,
    name: str,
    scopes: Sequence[str],
    collections: Sequence[str],
    requests_per_minute: int = 0,
) -> tuple[ApiKey, str]:
    """Make a key and store its hash.

    Returns:
        The stored entry, and the key itself, which is shown this once.

    Raises:
        ConfigError: If the name is taken or a scope is unknown.
    """
    if not _NAME.match(name):
        raise ConfigError(f"{name!r} cannot name a key.", next_step="Use letters, digits, . _ -")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ConfigError(
            f"Unknown scopes: {', '.join(unknown)}." if unknown else "A key needs a scope.",
            next_step=f"Scopes are {', '.join(SCOPES)}.",
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=secrets.token_hex(6),
        name=name,
        sha256=digest_key(secret),
        scopes=tuple(dict.fromkeys(scopes)),
        collections=tuple(dict.fromkeys(collections)) or (EVERY_COLLECTION,),
        requests_per_minute=requests_per_minute,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with _changing(path):
        keys = read_keys(path)
        if any(other.name == name for other in keys):
            raise ConfigError(f"There is a key named {name!r} already in {path}.")
        write_keys(path, [*keys, key])
    return key, secret


def remove_key(path: Path, name: str) -> ApiKey:
    """Take a key, by name or id, out of the file; running servers refuse it within seconds.

    Raises:
        ConfigError: If there is no such key.
    """
    with _changing(path):
        keys = read_keys(path)
        found = [key for key in keys if name in (key.name, key.id)]
        if not found:
            known = ", ".join(key.name for key in keys) or "none"
            raise ConfigError(f"No key {name!r} in {path}; there: {known}.")
        write_keys(path, [key for key in keys if key not in found])
    return found[0]


def _changing(path: Path) -> AbstractContextManager[None]:
    """Between reading a key file and writing it, nobody else changes it."""
    return locked(path.with_name(f".{path.name}.lock"))


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Write a key file, readable by its owner only."""
    entries = [
        {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(key).items()} for key in keys
    ]
    path.parent.mkdir(parents=True, exist_ok=True)  # by the usual rights; only the file is private
    old = os.umask(0o077)
    try:
        write_bytes_atomic(path, yaml.safe_dump({"keys": entries}, sort_keys=False).encode())
    finally:
        os.umask(old)
