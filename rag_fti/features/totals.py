"""What an ingest did, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_MOST_NEAR_DUPLICATES = 100


@dataclass(frozen=True)
class NearDuplicate:
    """A document that says nearly what another one says."""

    source: str
    like: str
    """Source of the other document."""
    similarity: float
    """Jaccard similarity of their word 5-grams, in (0, 1]."""


@dataclass
class IngestTotals:
    """What an ingest did."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    chunks_added: int = 0
    """Chunks embedded now."""
    chunks_reused: int = 0
    """Chunks of added or updated documents whose vector was stored already."""
    chunks_deleted: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Source to the reason why it was set aside."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files in directories that are not read, with the reason."""
    characters: int = 0
    uncovered_characters: int = 0
    wrong_spans: int = 0
    duplicate_chunk_ids: int = 0
    bad_vectors: int = 0
    near_duplicates: list[NearDuplicate] = field(default_factory=list)
    """Documents written now that nearly repeat another one; at most 100 are kept."""
    batches: int = 0
    seconds: float = 0.0

    def absorb(self, other: IngestTotals) -> None:
        """Add another pass's figures; of failures the newest count."""
        for name, value in vars(other).items():
            if isinstance(value, int | float):
                setattr(self, name, getattr(self, name) + value)
        self.failures.update(other.failures)
        self.note_near_duplicates(other.near_duplicates)

    def note_near_duplicates(self, found: Iterable[NearDuplicate]) -> None:
        """Keep the first pairs that were found."""
        self.near_duplicates = [*self.near_duplicates, *found][:_MOST_NEAR_DUPLICATES]

    def forget_near_duplicates(self, gone: Callable[[str], bool]) -> None:
        """Leave out pairs with a document that is gone, such as a moved file's old place."""
        self.near_duplicates = [
            pair for pair in self.near_duplicates if not (gone(pair.source) or gone(pair.like))
        ]

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return bool(self.added or self.updated or self.deleted or self.batches)
