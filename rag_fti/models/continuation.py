"""An answer growing token by token into text that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"
"""How tokenizers show the first bytes of a character whose last bytes are still to come."""


class Continuation:
    """Turns one row's tokens into pieces of text, and knows when the row is done.

    Args:
        tokenizer: Decodes token ids.
        end_ids: Tokens that end an answer and are never shown.
        hidden_ids: Further tokens that are never shown, such as padding.
        max_tokens: Most tokens, the end token left out.
        stop: Texts that end an answer and are not part of it.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        end_ids: frozenset[int],
        hidden_ids: frozenset[int] = frozenset(),
        max_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._hidden_ids = hidden_ids
        self.max_tokens = max_tokens
        self._stop = tuple(text for text in stop if text)
        # While a stop text may be under way, its possible beginning is not shown.
        self._held = max((len(text) for text in self._stop), default=1) - 1
        self._ids: list[int] = []
        self._window = 0
        self._read = 0
        self._decoded = ""
        self._shown = 0
        self.tokens = 0
        """Tokens generated so far, end token left out."""
        self.finish_reason = ""
        """``stop`` or ``length`` once the row is done, empty before."""

    def add(self, token: int) -> str:
        """Take one token.

        Returns:
            Text that can be shown now; may be empty.
        """
        if token in self._end_ids:
            self.finish_reason = "stop"
            return self._flush()
        self.tokens += 1
        if token not in self._hidden_ids:
            self._ids.append(token)
            self._decode()
        end = self._find_stop()
        if end is not None:
            self._decoded = self._decoded[:end]
            self.finish_reason = "stop"
        elif self.tokens >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            return self._flush()
        return self._show(len(self._decoded) - self._held)

    def text(self) -> str:
        """The whole answer so far, stop texts left out."""
        whole = str(self._tokenizer.decode(self._ids)) if self._ids else ""
        positions = [at for at in map(whole.find, self._stop) if at >= 0]
        return whole[: min(positions)] if positions else whole

    def _decode(self) -> None:
        """Append the text of new tokens, decoding only a short window again."""
        known = self._tokenizer.decode(self._ids[self._window : self._read])
        now = self._tokenizer.decode(self._ids[self._window :])
        if len(now) > len(known) and not now.endswith(_INCOMPLETE):
            self._decoded += now[len(known) :]
            self._window, self._read = self._read, len(self._ids)

    def _find_stop(self) -> int | None:
        since = max(0, self._shown - self._held)
        positions = [at for text in self._stop if (at := self._decoded.find(text, since)) >= 0]
        return min(positions, default=None)

    def _flush(self) -> str:
        if self._find_stop() is None and self._read < len(self._ids):
            self._decoded += str(self._tokenizer.decode(self._ids[self._window :]))[
                len(self._tokenizer.decode(self._ids[self._window : self._read])) :
            ]
            self._window, self._read = self._read, len(self._ids)
        return self._show(len(self._decoded))

    def _show(self, end: int) -> str:
        piece = self._decoded[self._shown : end] if end > self._shown else ""
        self._shown = max(self._shown, end)
        return piece
