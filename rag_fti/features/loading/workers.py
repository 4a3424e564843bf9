"""Parsing in processes that can be killed.

A parser of somebody else's format may loop, crash or eat all memory. Each runs in a worker
process with a memory limit and a deadline; a worker that misses it is killed, its file set aside
with the reason, and a fresh worker takes over. Plain text of modest size is read in place.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rag_fti.errors import SourceError
from rag_fti.features.cleaning import clean_line, clean_text
from rag_fti.features.loading.formats import Format, format_of_bytes
from rag_fti.features.loading.parsed import Limits

_MEMORY_BYTES = 4 * 1024**3
_INLINE_BYTES = {"text": 1024 * 1024, "csv": 128 * 1024, "json": 128 * 1024, "jsonl": 128 * 1024}
_START_SECONDS = 60.0
"""A fresh worker may take this long for its imports, beside the parse itself."""


@dataclass(frozen=True)
class LoadTask:
    """A file to load: on disk, or its bytes."""

    source: str
    path: Path | None = None
    data: bytes | None = None
    format: Format | None = None

    def read(self, limit: int) -> bytes:
        """The bytes.

        Raises:
            SourceError: If the file cannot be read or is larger than ``limit`` bytes.
        """
        if self.data is not None:
            data = self.data
        else:
            assert self.path is not None
            try:
                with self.path.open("rb") as stream:
                    data = stream.read(limit + 1)
            except OSError as error:
                raise SourceError(f"cannot be read: {error.strerror or error}") from error
        if len(data) > limit:
            raise SourceError(f"larger than {limit} bytes (loading.max_file_bytes)")
        return data


@dataclass(frozen=True)
class Loaded:
    """A file's cleaned text."""

    text: str
    title: str
    """Empty where the file has none of its own."""
    media_type: str
    pages: tuple[int, ...] = ()
    """Offset of each page."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadFailure:
    """Why a file was set aside."""

    reason: str


def load(task: LoadTask, limits: Limits) -> Loaded:
    """Read, parse and clean one file in this process.

    Raises:
        SourceError: If it cannot be read.
    """
    from rag_fti.features.loading.parsing import parse

    data = task.read(limits.max_file_bytes)
    parsed = parse(data, task.source, limits, format=task.format)
    starts = []
    if parsed.pages:
        pieces, position = [], 0
        for page in map(clean_text, parsed.pages):
            starts.append(position)
            pieces.append(page)
            position += len(page)
        text = "".join(pieces)
    else:
        text = clean_text(parsed.text)
    if text.isspace():  # as a file without a byte
        text, starts = "", []
    return Loaded(
        text=text,
        title=clean_line(parsed.title),
        media_type=parsed.media_type,
        pages=tuple(starts),
        metadata={key: clean_line(value) for key, value in parsed.metadata.items()},
    )


class LoaderPool:
    """Loads files with worker processes; use as a context manager.

    Args:
        workers: Processes; 0 is one per core, at most 4.
        limits: What is refused, deadline included.
    """

    def __init__(self, *, workers: int, limits: Limits) -> None:
        self._count = workers or min(4, os.cpu_count() or 1)
        self._limits = limits
        self._workers: list[_Worker] = []
        self._queue: deque[_Job] = deque()

    def __enter__(self) -> LoaderPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def load_all(
        self, tasks: Iterable[LoadTask]
    ) -> Iterator[tuple[LoadTask, Loaded | LoadFailure]]:
        """Results in the order of ``tasks``, which are consumed a few ahead."""
        window: deque[_Job] = deque()
        for task in tasks:
            job = self._submit(task)
            window.append(job)
            while len(window) > 8 * self._count or (window and window[0].result is not None):
                yield self._finished(window.popleft())
        while window:
            yield self._finished(window.popleft())

    def _submit(self, task: LoadTask) -> _Job:
        job = _Job(task)
        try:
            inline = self._runs_inline(task)
        except SourceError as error:
            job.result = LoadFailure(str(error))
            return job
        if inline:
            try:
                job.result = load(task, self._limits)
            except SourceError as error:
                job.result = LoadFailure(str(error))
        else:
            self._queue.append(job)
            self._pump(0.0)
        return job

    def _runs_inline(self, task: LoadTask) -> bool:
        try:
            if task.data is not None:
                size, head = len(task.data), task.data[:4096]
            else:
                assert task.path is not None
                size = task.path.stat().st_size
                with task.path.open("rb") as stream:
                    head = stream.read(4096)
            known = task.format or format_of_bytes(head, task.source)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SourceError(reason) from error
        return size <= _INLINE_BYTES.get(known.parser, 0)

    def _finished(self, job: _Job) -> tuple[LoadTask, Loaded | LoadFailure]:
        while job.result is None:
            self._pump(0.5)
        return job.task, job.result

    def _pump(self, timeout: float) -> None:
        """Hand out jobs, take in results, kill what is late."""
        while self._queue:
            idle = next((w for w in self._workers if w.job is None), None)
            if idle is None and len(self._workers) < self._count:
                idle = _Worker(self._limits)
                self._workers.append(idle)
            if idle is None:
                break
            idle.start_job(self._queue.popleft())
        busy = {w.connection: w for w in self._workers if w.job is not None}
        if not busy:
            return
        for connection in multiprocessing.connection.wait(list(busy), timeout=timeout):
            assert isinstance(connection, Connection)
            if not busy[connection].receive():
                self._workers.remove(busy[connection])
        for worker in [w for w in self._workers if w.late]:
            worker.fail(
                f"took longer than {self._limits.parse_timeout_seconds:g} s to parse "
                "(loading.parse_timeout_seconds)"
            )
            self._workers.remove(worker)


@dataclass
class _Job:
    task: LoadTask
    result: Loaded | LoadFailure | None = None


class _Worker:
    """One process and the job it has."""

    def __init__(self, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(theirs, limits), daemon=True)
        self._process.start()
        theirs.close()
        self._limits = limits
        self._deadline = 0.0
        self._fresh = True
        self.job: _Job | None = None

    @property
    def late(self) -> bool:
        return self.job is not None and time.monotonic() > self._deadline

    def start_job(self, job: _Job) -> None:
        allowance = self._limits.parse_timeout_seconds + (_START_SECONDS if self._fresh else 0.0)
        self._deadline = time.monotonic() + allowance
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # receive() finds the worker dead
            self.connection.send(job.task)

    def receive(self) -> bool:
        """Take what the worker sent. False when it is gone or only said that it started."""
        assert self.job is not None
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            self.fail(_death(self._process.exitcode))
            return False
        if message is None:  # its imports are done: now the clock of the parse starts
            self._fresh = False
            self._deadline = time.monotonic() + self._limits.parse_timeout_seconds
        else:
            self.job.result = message
            self.job = None
        return True

    def fail(self, reason: str) -> None:
        """Give the job up and end the process."""
        if self.job is not None:
            self.job.result = LoadFailure(reason)
            self.job = None
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its parser crashed ({name})"
    return f"its parser ended unexpectedly (exit {code})"


def _serve(connection: Connection, limits: Limits) -> None:
    """What a worker process does until its parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    from rag_fti.features.loading import parsing

    assert parsing.PARSERS
    started = False
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        if not started:
            connection.send(None)
            started = True
        try:
            result: Loaded | LoadFailure = load(task, limits)
        except SourceError as error:
            result = LoadFailure(str(error))
        connection.send(result)
