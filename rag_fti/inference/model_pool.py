"""Several models served at once, and swapped while requests are in flight."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag_fti import roots
from rag_fti.config import Settings
from rag_fti.config.models import RemoteGeneratorConfig
from rag_fti.errors import IncompatibleArtifact, ModelNotFound, RagFtiError, RegistryError
from rag_fti.inference.building import assemble
from rag_fti.inference.engine import Engine
from rag_fti.inference.models import BASE, ServedModel, check_store, names_base_model, open_model
from rag_fti.retrieval import Retriever

if TYPE_CHECKING:
    from rag_fti.registry import Registry

logger = logging.getLogger(__name__)

DEFAULT = ""
"""The name under which the configured model is kept."""

_MOST_RETRY_SECONDS = 600.0

Opener = Callable[[Settings, str], ServedModel]


@dataclass
class _Loaded:
    engine: Engine
    users: int = 0
    retired: bool = False
    last_used: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Failure:
    """Why a name does not answer with the version it should, or not at all."""

    reason: str


@dataclass(frozen=True)
class _Unloadable:
    """A version that could not be loaded."""

    error: RagFtiError
    attempts: int
    retry_at: float
    """Monotonic seconds until which it is left alone."""


class ModelPool:
    """Loaded models by reference, and which of them each served name means now.

    A request leases an engine for its whole life. When an alias moves, the new version is
    loaded and checked first; then new leases get it, while running ones end on the old version,
    which is released after the last of them. When the new version cannot be used, the old one
    stays and :meth:`failures` says why.

    Args:
        settings: Sections ``storage``, ``generator``, ``retrieval`` and ``inference``.
        retriever: Shared by all models.
        opener: Loads a model by reference.
        max_loaded: Most models kept in memory.
        retry_seconds: How long a version that could not be loaded is left alone, with the error
            it failed with as the answer; twice as long after each further failure, up to 10
            minutes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        retriever: Retriever,
        opener: Opener = open_model,
        max_loaded: int = 3,
        retry_seconds: float = 30.0,
    ) -> None:
        self._settings = settings
        self._retriever = retriever
        self._opener = opener
        self._max_loaded = max_loaded
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}
        self._names: dict[str, str] = {}
        self._failures: dict[str, Failure] = {}
        self._unloadable: dict[str, _Unloadable] = {}

    def load_default(self) -> str:
        """Load the configured model; returns its name.

        Raises:
            RagFtiError: If it cannot be used.
        """
        loaded = self._switch(DEFAULT, self._resolve(DEFAULT))
        self._give_back(loaded)
        return loaded.engine.model

    @contextmanager
    def lease(self, model: str = DEFAULT) -> Iterator[Engine]:
        """The engine that ``model`` means now, kept for the time of a ``with`` block.

        Args:
            model: Name from a request; empty is the configured model.

        Raises:
            ModelNotFound: If nothing is served under this name.
            RegistryError: If its version cannot be used.
        """
        loaded = self._take(self._served_name(model))
        try:
            yield loaded.engine
        finally:
            self._give_back(loaded)

    def refresh(self) -> None:
        """Look the aliases up again and swap where one has moved. Blocks while loading."""
        for name, current in list(self._names.items()):
            try:
                wanted = self._resolve(name)
                if name == DEFAULT and wanted == BASE != current:
                    raise ModelNotFound(
                        f"{self._settings.generator.model!r} is gone from the registry.",
                        next_step="Check storage.registry, or promote a version.",
                    )
            except ModelNotFound as error:
                if name == DEFAULT:
                    self._fail(name, error)
                else:
                    self._forget(name)
                continue
            except RagFtiError as error:
                self._fail(name, error)
                continue
            if wanted == current:
                self._check_current(name, wanted)
                continue
            try:
                self._give_back(self._switch(name, wanted))
            except RagFtiError as error:
                self._fail(name, error)

    def failures(self) -> Mapping[str, Failure]:
        """Names that do not answer with the version they should, or not at all, and why."""
        with self._lock:
            served = {DEFAULT, *self._names}  # a name that made room for others is well again
            found = {name: why for name, why in dict(self._failures).items() if name in served}
            generators = {
                name: self._loaded[key].engine.served.generator
                for name, key in self._names.items()
                if key in self._loaded
            }
        for name, generator in generators.items():
            if problem := getattr(generator, "problem", ""):
                found.setdefault(name, Failure(problem))
        return found

    def current(self) -> dict[str, str]:
        """Served names and the models that answer for them now."""
        with self._lock:
            return {
                name: self._loaded[key].engine.model
                for name, key in self._names.items()
                if key in self._loaded
            }

    def queue_depths(self) -> dict[str, tuple[int, int]]:
        """Per loaded model: requests being computed and requests waiting in its generator."""
        with self._lock:
            engines = [loaded.engine for loaded in self._loaded.values()]
        return {
            e.model: (
                int(getattr(e.served.generator, "running", 0)),
                int(getattr(e.served.generator, "waiting", 0)),
            )
            for e in engines
        }

    def close(self) -> None:
        """Release every model; running requests finish first."""
        with self._lock:
            loaded = list(self._loaded.values())
            self._loaded.clear()
            self._names.clear()
        for item in loaded:
            item.engine.served.close()

    # Names

    def _served_name(self, model: str) -> str:
        """The key in ``_names`` for a name from a request."""
        config = self._settings.generator
        if model in (DEFAULT, config.model):
            return DEFAULT
        with self._lock:
            key = self._names.get(DEFAULT, "")
            if key in self._loaded and self._loaded[key].engine.model == model:
                return DEFAULT
        if not isinstance(config, RemoteGeneratorConfig) and model == config.base_model:
            return BASE
        if model != BASE and names_base_model(model):
            # A client chooses among what is served; it does not make the server load things.
            raise not_served(model)
        return model

    def _resolve(self, name: str) -> str:
        """The loadable reference that a served name means now: ``name@3`` or ``base``."""
        from rag_fti.inference.models import resolve_reference

        if name == DEFAULT:
            version = resolve_reference(self._settings)
            return version.ref if version is not None else BASE
        if name == BASE:
            return BASE
        wanted = name
        if "@" not in name and name in open_registry(self._settings).names():
            wanted = f"{name}@champion"  # a bare model name means its champion
        try:
            version = resolve_reference(self._settings, wanted)
        except ModelNotFound as error:
            raise not_served(name) from error
        except RegistryError as error:
            if is_reference(wanted):
                raise
            raise not_served(name) from error
        assert version is not None
        return version.ref

    # Loading

    def _take(self, name: str) -> _Loaded:
        with self._lock:
            loaded = self._loaded.get(self._names.get(name, "\0"))
            if loaded is not None:
                loaded.users += 1
                loaded.last_used = time.monotonic()
                return loaded
        return self._switch(name, self._resolve(name))

    def _give_back(self, loaded: _Loaded) -> None:
        with self._lock:
            loaded.users -= 1
            finished = loaded.retired and loaded.users == 0
        if finished:
            loaded.engine.served.close()

    def _switch(self, name: str, reference: str) -> _Loaded:
        """Let a name mean a version, loading it where it is not.

        Returns:
            The version, taken: it is to be given back. So it stays for who asked for it even
            where there is no room to keep it.
        """
        with self._loading:
            with self._lock:
                loaded = self._loaded.get(reference)
                if loaded is not None:
                    loaded.users += 1
            if loaded is None:
                loaded = _Loaded(self._load(name, reference), users=1)
            with self._lock:
                # It may have been retired since it was looked up; being used, it is not closed.
                self._loaded[reference] = loaded
                loaded.retired = False
                loaded.last_used = time.monotonic()
                self._names[name] = reference
                self._failures.pop(name, None)
                unused = self._retire()
        for item in unused:
            item.engine.served.close()
        return loaded

    def _load(self, name: str, reference: str) -> Engine:
        """A version's engine; one that failed a short while ago is not tried.

        Raises:
            RagFtiError: If it cannot be used, now or then.
        """
        known = self._unloadable.get(reference)
        started = time.monotonic()
        if known is not None and started < known.retry_at:
            raise _anew(known.error, reference)
        try:
            served = self._opener(self._settings, self._opener_reference(name, reference))
            try:
                engine = assemble(self._settings, retriever=self._retriever, served=served)
            except BaseException:
                served.close()
                raise
        except Exception as error:
            failure = _anew(error, reference)
            attempts = known.attempts + 1 if known is not None else 1
            pause = min(self._retry_seconds * 2 ** (attempts - 1), _MOST_RETRY_SECONDS)
            self._unloadable[reference] = _Unloadable(failure, attempts, time.monotonic() + pause)
            raise _anew(failure, reference) from error
        self._unloadable.pop(reference, None)
        logger.info("%s is loaded (%.1f s)", engine.model, time.monotonic() - started)
        return engine

    def _forget(self, name: str) -> None:
        """Stop serving a name that means nothing any more."""
        with self._lock:
            self._names.pop(name, None)
            self._failures.pop(name, None)
            unused = self._retire()
        for item in unused:
            item.engine.served.close()

    def _opener_reference(self, name: str, reference: str) -> str:
        """What the opener is asked for; the configured base or remote model has no reference."""
        return DEFAULT if reference == BASE and name == DEFAULT else reference

    def _retire(self) -> list[_Loaded]:
        """Take models out of service that no name means any more, or that are one too many."""
        meant = set(self._names.values())
        keep_always = self._names.get(DEFAULT)
        doomed = [key for key in self._loaded if key not in meant]
        spare = sorted(
            (key for key in self._loaded if key in meant and key != keep_always),
            key=lambda key: self._loaded[key].last_used,
        )
        while len(self._loaded) - len(doomed) > self._max_loaded and spare:
            doomed.append(spare.pop(0))
        idle = []
        for key in doomed:
            item = self._loaded.pop(key)
            item.retired = True
            if item.users == 0:
                idle.append(item)
        self._names = {name: key for name, key in self._names.items() if key in self._loaded}
        return idle

    def _check_current(self, name: str, reference: str) -> None:
        """Notice when the store changes under a model that is being served."""
        with self._lock:
            loaded = self._loaded.get(reference)
        store: Any = self._retriever.store
        if loaded is None or not loaded.engine.served.manifest or not store.exists():
            self._failures.pop(name, None)
            return
        try:
            recipe = store.recipe()
            check_store(
                loaded.engine.served.manifest,
                model=loaded.engine.model,
                embedder=recipe.embedder.to_dict(),
                chunker_digest=recipe.chunker_digest,
            )
        except IncompatibleArtifact as error:
            self._fail(name, error)
            return
        self._failures.pop(name, None)

    def _fail(self, name: str, error: RagFtiError) -> None:
        failure = Failure(str(error))
        if self._failures.get(name) != failure:
            logger.error("%s keeps its version: %s", name or "the configured model", error)
        self._failures[name] = failure


def _anew(error: Exception, reference: str) -> RagFtiError:
    """The error as ours, without the frames it passed through: they hold what was being loaded."""
    if isinstance(error, RagFtiError):
        return type(error)(error.message, next_step=error.next_step)
    return RegistryError(
        f"{reference} cannot be loaded: {type(error).__name__}: {error}",
        next_step="Point the alias at another version, or import this one again.",
    )


def open_registry(settings: Settings) -> Registry:
    """The configured registry."""
    return roots.open_registry(settings.storage)


def is_reference(text: str) -> bool:
    """Whether a text has the form of a model reference."""
    from rag_fti.registry import parse_reference

    try:
        parse_reference(text)
    except RegistryError:
        return False
    return True


def not_served(model: str) -> ModelNotFound:
    """The error for a name that nothing is served under."""
    return ModelNotFound(
        f"No model is served as {model[:200]!r}.", next_step="GET /v1/models lists what is."
    )
