"""Keeping a collection in step with files as they change."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rag_fti.features.ingestion import Ingestor
from rag_fti.features.loading.formats import format_of, is_archive
from rag_fti.features.loading.sources import is_url, matches_any, source_name
from rag_fti.features.totals import IngestTotals

_DEBOUNCE_MS = 250
_STEP_MS = 50
_POLL_MS = 500


def watch(
    ingestor: Ingestor,
    paths: Sequence[str],
    *,
    stop: threading.Event,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Iterator[IngestTotals]:
    """Ingest what changes below paths, until told to stop.

    Created and changed files go through the same code as a batch run; deleted and moved ones
    leave the store.

    Args:
        ingestor: Does the work.
        paths: Files and directories as the user gave them.
        stop: Set it to end the watch.
        include: Glob patterns of file names to take; empty takes known types.
        exclude: Glob patterns of names to leave out.

    Yields:
        What each round of changes came to.
    """
    from watchfiles import watch as watch_files

    roots = {Path(path).resolve(): Path(path) for path in paths if not is_url(path)}
    # A file by way of its directory: one that an editor replaces is another file to the system.
    places = {root if root.is_dir() else root.parent for root in roots}
    existing = [place for place in places if place.is_dir()]
    changes = watch_files(
        *existing,
        watch_filter=None,
        debounce=_DEBOUNCE_MS,
        step=_STEP_MS,
        rust_timeout=_POLL_MS,
        stop_event=stop,
        yield_on_timeout=True,
        raise_interrupt=False,
        recursive=any(root.is_dir() for root in roots),
    )
    with ingestor.keeping_workers():
        caught_up = False
        for batch in changes:
            totals = IngestTotals()
            if not caught_up:
                # Files may have changed after they were ingested and before the watch stood.
                totals = ingestor.ingest([str(given) for given in roots.values() if given.exists()])
                caught_up = True
            if wanted := _wanted({path for _, path in batch}, roots, include, exclude):
                totals.absorb(ingestor.follow(wanted))
            if totals.changed or totals.failures:
                yield totals


def _wanted(
    changed: Iterable[str],
    roots: dict[Path, Path],
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[str]:
    """Changed paths as the user would have named them, without those that are left out."""
    names = []
    for path in sorted(map(Path, changed)):
        given = _as_given(path, roots)
        if given is None:
            continue
        name, parts = given
        if any(matches_any(part, exclude) for part in parts):
            continue
        taken = matches_any(path.name, include) if include else _known(path.name)
        if taken or path.is_dir() or not path.exists():
            names.append(name)
    return names


def _known(name: str) -> bool:
    return format_of(name) is not None or is_archive(name)


def _as_given(path: Path, roots: dict[Path, Path]) -> tuple[str, tuple[str, ...]] | None:
    for absolute, given in roots.items():
        if path == absolute or absolute in path.parents:
            below = path.relative_to(absolute)
            return source_name(given / below), below.parts
    return None
