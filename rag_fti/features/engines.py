"""Where loading and embedding run: in this process and its workers, or on a Ray cluster.

The Ray engine runs the same two functions, :func:`rag_fti.features.loading.load` and
``Embedder.encode_documents``, as ``map_batches`` over Ray Data. Planning and commits stay with
the one driver, so every promise about the store holds unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from rag_fti.errors import ConfigError, SourceError
from rag_fti.features.loading import Limits, Loaded, LoadFailure, LoadTask, load
from rag_fti.protocols import Embedder, EmbedderFingerprint, Vectors

_LOAD_BATCH = 16
_EMBED_BATCH = 256

LoadResult = tuple[LoadTask, Loaded | LoadFailure]


class Loader(Protocol):
    """Loads many files; a context manager, so that workers end with the work."""

    def __enter__(self) -> Loader:
        """Start."""
        ...

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        ...

    def load_all(self, tasks: Iterable[LoadTask]) -> Iterator[LoadResult]:
        """Results in the order of ``tasks``."""
        ...


def require_ray() -> Any:
    """Ray Data.

    Raises:
        ConfigError: If Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "ingest.engine is ray, but Ray is not installed.",
            next_step='Run: pip install "rag-fti[ray]", or set ingest.engine=local.',
        ) from error
    return ray


class RayLoader:
    """Loads files on a Ray cluster; their paths must be readable from every node.

    A parser that hangs or dies is Ray's to end (a task's time and memory limits); the file is
    then reported by the failed run rather than set aside.

    Args:
        limits: What is refused.
    """

    def __init__(self, *, limits: Limits) -> None:
        self._ray = require_ray()
        self._limits = limits

    def __enter__(self) -> RayLoader:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def load_all(self, tasks: Iterable[LoadTask]) -> Iterator[LoadResult]:
        """Results in the order of ``tasks``, which are all read ahead."""
        items = [{"number": number, "task": task} for number, task in enumerate(tasks)]
        if not items:
            return
        data = self._ray.data.from_items(items)
        done = data.map_batches(
            load_batch, batch_size=_LOAD_BATCH, fn_kwargs={"limits": self._limits}
        )
        waiting: dict[int, Loaded | LoadFailure] = {}
        following = 0
        for row in done.iter_rows():
            waiting[int(row["number"])] = row["result"]
            while following in waiting:
                yield items[following]["task"], waiting.pop(following)  # type: ignore[misc]
                following += 1


def load_batch(batch: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What runs on a node: load a batch of files."""
    results: list[Loaded | LoadFailure] = []
    for task in batch["task"]:
        try:
            results.append(load(task, limits))
        except SourceError as error:
            results.append(LoadFailure(str(error)))
    column = np.empty(len(results), dtype=object)
    column[:] = results
    return {"number": batch["number"], "result": column}


class RayEmbedder:
    """Embeds stored texts on a Ray cluster; questions and tokens here.

    Args:
        embedder: The embedder of this process, which says what the vectors must be.
        build: Makes the same embedder on a node.
        workers: Model replicas.
    """

    def __init__(self, *, embedder: Embedder, build: Callable[[], Embedder], workers: int) -> None:
        self._ray = require_ray()
        self._embedder = embedder
        self._build = build
        self._workers = workers

    @property
    def fingerprint(self) -> EmbedderFingerprint:
        """What this embedder is."""
        return self._embedder.fingerprint

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``."""
        if not texts:
            return self._embedder.encode_documents([])
        data = self._ray.data.from_items(
            [{"number": number, "text": text} for number, text in enumerate(texts)]
        )
        done = data.map_batches(
            EmbedBatch,
            fn_constructor_args=(self._build, self.fingerprint),
            batch_size=_EMBED_BATCH,
            concurrency=self._workers,
        )
        vectors = np.zeros((len(texts), self.fingerprint.dimension), dtype=np.float32)
        for batch in done.iter_batches(batch_format="numpy"):
            vectors[batch["number"]] = np.stack(list(batch["vector"]))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions, float32 of shape ``(len(texts), dimension)``."""
        return self._embedder.encode_queries(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens left out."""
        return self._embedder.count_tokens(texts)


class EmbedBatch:
    """What runs on a node: one model replica, called with batches.

    Raises:
        ConfigError: If the node's model is not the driver's.
    """

    def __init__(self, build: Callable[[], Embedder], fingerprint: EmbedderFingerprint) -> None:
        self._embedder = build()
        if self._embedder.fingerprint != fingerprint:
            raise ConfigError(
                "A Ray node has another embedding model than the driver.",
                next_step="Pin embedder.revision, or put the model on shared storage.",
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch."""
        vectors = self._embedder.encode_documents([str(text) for text in batch["text"]])
        return {"number": batch["number"], "vector": vectors}
