"""How long work reports where it is, without the library printing anything."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress; a program shows it as it likes."""

    def update(
        self, stage: str, done: float, total: float | None = None, *, detail: str = ""
    ) -> None:
        """Say how far a stage is.

        Args:
            stage: What is being done, the same words every time: ``embedding chunks``.
            done: Units finished so far.
            total: Units in all, or None while unknown.
            detail: Short live figures, such as ``loss 1.23, 410 tokens/s``.
        """
        ...

    def note(self, message: str) -> None:
        """Say something once, as one line."""
        ...


class Silent:
    """Progress that goes nowhere."""

    def update(
        self, stage: str, done: float, total: float | None = None, *, detail: str = ""
    ) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""
