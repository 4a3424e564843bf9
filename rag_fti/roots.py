"""Opening the datasets and the registry where the settings say they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rag_fti.bucket import Bucket, open_root
from rag_fti.config.storage import StorageConfig

if TYPE_CHECKING:
    from rag_fti.registry import Registry


def datasets_root(storage: StorageConfig) -> Path | Bucket:
    """The configured datasets root, for :func:`rag_fti.datasets.open_dataset` and its like.

    Raises:
        ConfigError: If it cannot be opened.
    """
    return open_root(storage.datasets_uri, options=storage.options, cache=storage.cache_directory)


def open_registry(storage: StorageConfig) -> Registry:
    """The configured registry.

    Raises:
        ConfigError: If it cannot be opened.
    """
    from rag_fti.registry import Registry

    return Registry.open(
        storage.registry_uri, options=storage.options, cache=storage.cache_directory
    )
