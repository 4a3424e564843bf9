"""What an ingest did, counted."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    skipped: int = 0
    """Files in directories whose type is not known."""
    bytes_read: int = 0
    characters: int = 0
    uncovered_characters: int = 0
    wrong_spans: int = 0
    duplicate_chunk_ids: int = 0
    bad_vectors: int = 0
    batches: int = 0
    seconds: float = 0.0

    def absorb(self, other: IngestTotals) -> None:
        """Add another pass's figures; of failures the newest count."""
        for name, value in vars(other).items():
            if isinstance(value, int | float):
                setattr(self, name, getattr(self, name) + value)
        self.failures.update(other.failures)

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return bool(self.added or self.updated or self.deleted or self.batches)
