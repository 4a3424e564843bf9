"""Loading: from files, archives, stdin and URLs to cleaned text."""

from rag_fti.features.loading.parsed import LOADER_VERSION, Limits
from rag_fti.features.loading.sources import Found, find_sources, source_name
from rag_fti.features.loading.workers import Loaded, LoaderPool, LoadFailure, LoadTask, load

__all__ = [
    "LOADER_VERSION",
    "Found",
    "Limits",
    "LoadFailure",
    "LoadTask",
    "Loaded",
    "LoaderPool",
    "find_sources",
    "load",
    "source_name",
]
