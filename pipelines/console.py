"""What a person sees on the terminal: progress bars, notes and log lines, all on stderr."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from rag_fti.errors import ConfigError

stderr = Console(stderr=True, highlight=False)


class TerminalProgress:
    """Bars on a terminal; one plain line per finished stage in a log file."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, int] = {}
        self._finished: set[str] = set()

    def update(
        self, stage: str, done: float, total: float | None = None, *, detail: str = ""
    ) -> None:
        """Move the bar of ``stage``."""
        task = self._tasks.get(stage)
        if task is None:
            task = self._bars.add_task(stage, total=total, detail=detail)
            self._tasks[stage] = task
        self._bars.update(task, completed=done, total=total, detail=detail)  # type: ignore[arg-type]
        if total is not None and done >= total and stage not in self._finished:
            self._finished.add(stage)
            if not self._bars.console.is_terminal:
                self._bars.console.print(f"  {stage}: {done:g}/{total:g} {detail}".rstrip())

    def note(self, message: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(message, markup=False, soft_wrap=True)


@contextmanager
def terminal_progress() -> Iterator[TerminalProgress]:
    """Progress bars on stderr for the time of a ``with`` block."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Bars(*columns, console=stderr, disable=not stderr.is_terminal) as bars:
        yield TerminalProgress(bars)


def set_up_logging() -> None:
    """Log to stderr; ``RAG_FTI_LOG_LEVEL`` sets the level (default WARNING).

    Raises:
        ConfigError: If there is no such level.
    """
    level = os.environ.get("RAG_FTI_LOG_LEVEL", "WARNING").upper()
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(
            f"RAG_FTI_LOG_LEVEL is {level!r}, which is no level of logging.",
            next_step="Use DEBUG, INFO, WARNING or ERROR.",
        )
    if stderr.is_terminal:
        rich = RichHandler(console=stderr, show_path=False)
        logging.basicConfig(level=level, handlers=[rich], format="%(message)s")
    else:  # for programs: one line each, however long
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    # Renames that model libraries announce concern this code, not the person who runs it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Model libraries talk a lot; their progress bars would tear ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("LANCE_LOG", "error")
