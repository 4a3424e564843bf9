"""Cutting documents into chunks that fit the embedder, without losing a character.

A chunk is a span: ``document.text[start:end]``. Spans of a document follow one another without
gaps (with an overlap where one is configured), so together they cover all of its text. Headings
start new chunks; code blocks, tables and paragraphs stay whole where they fit. Where a table does
not, the later chunks have its column names as their last heading.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_fti import ids
from rag_fti.errors import ConfigError
from rag_fti.features.cleaning import CLEANER_VERSION
from rag_fti.features.loading.parsing import name_of
from rag_fti.features.structure import (
    STRUCTURE_VERSION,
    Block,
    blocks_of,
    column_names,
    structure_of,
)
from rag_fti.protocols import Embedder
from rag_fti.schemas import Chunk, Document

if TYPE_CHECKING:
    from rag_fti.config.features import ChunkingConfig

CHUNKER_VERSION = 3
HEADING_SEPARATOR = " > "

_SPECIAL_TOKENS = 2
_PROSE = (
    r"\n[ \t]*\n",
    r"(?<=[.!?…][\"')\]])\s+|(?<=[.!?…])\s+|(?<=[\u3002\uff01\uff1f])",
    r"\n",
    r"(?<=[,;:])\s+",
)
_TABLE = (r"\n",)
_LAST = (r"\s+",)
_WORD = re.compile(r"[\u3040-\u9fff]{2}|[^\W\d_]{2,}")
"""Two letters or more; of scripts without spaces, two characters."""
_WINDOW_CHARS = 20_000
"""Longer stretches without a separator are looked at in windows of this many characters."""


@dataclass(frozen=True)
class _Piece:
    """A stretch that is not cut any further."""

    start: int
    end: int
    tokens: int
    headings: tuple[str, ...]
    opens_section: bool
    is_heading: bool
    page: int
    """From 1 where there are pages, else 0."""


@dataclass(frozen=True)
class ChunkSettings:
    """How documents are cut; see :class:`rag_fti.config.features.ChunkingConfig`."""

    max_tokens: int
    overlap_tokens: int
    min_tokens: int


def build_chunker(config: ChunkingConfig, embedder: Embedder) -> Chunker:
    """The chunker for a configuration section and the embedder that will read its chunks.

    Raises:
        ConfigError: If chunks would not fit the embedder.
    """
    return Chunker(
        embedder=embedder,
        settings=ChunkSettings(config.max_tokens, config.overlap_tokens, config.min_tokens),
    )


class Chunker:
    """Cuts documents; counts tokens as the embedder does.

    Args:
        embedder: Counts tokens and says how many fit.
        settings: Sizes in tokens.

    Raises:
        ConfigError: If chunks would not fit the embedder, or the overlap is not smaller than a
            chunk.
    """

    def __init__(self, *, embedder: Embedder, settings: ChunkSettings) -> None:
        fingerprint = embedder.fingerprint
        prompt = embedder.count_tokens([fingerprint.document_prompt])[0]
        self._room = fingerprint.max_tokens - _SPECIAL_TOKENS - prompt
        if settings.max_tokens > self._room:
            raise ConfigError(
                f"chunking.max_tokens is {settings.max_tokens}, but {fingerprint.model} reads at "
                f"most {fingerprint.max_tokens} tokens, of which {self._room} are left for text.",
                next_step=f"Set chunking.max_tokens to {self._room} or less.",
            )
        if settings.overlap_tokens * 2 > settings.max_tokens:
            raise ConfigError(
                f"chunking.overlap_tokens is {settings.overlap_tokens}, expected at most half of "
                f"chunking.max_tokens ({settings.max_tokens})."
            )
        self._embedder = embedder
        self._settings = settings
        self._headers: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Digest of everything that decides where a document is cut and what is embedded."""
        return ids.digest_json(
            {
                "chunker": CHUNKER_VERSION,
                "structure": STRUCTURE_VERSION,
                "cleaner": CLEANER_VERSION,
                "max_tokens": self._settings.max_tokens,
                "overlap_tokens": self._settings.overlap_tokens,
                "min_tokens": self._settings.min_tokens,
                "room": self._room,
            }
        )

    def chunk(self, document: Document) -> list[Chunk]:
        """The chunks of a document, in order.

        Returns:
            Chunks whose spans cover all of the text; none for an empty text.
        """
        pieces = self._pieces(document)
        groups = list(self._groups(pieces))
        texts = [document.text[g[0].start : g[-1].end] for g in groups]
        identifiers = ids.chunk_ids(document.document_id, texts)
        return [
            Chunk(
                chunk_id=identifier,
                document_id=document.document_id,
                document_version=document.version,
                ordinal=ordinal,
                start=group[0].start,
                end=group[-1].end,
                text=text,
                heading=_heading(group, document.title),
                page=_page(document.pages, group[0].start, text),
                tokens=sum(piece.tokens for piece in group),
            )
            for ordinal, (identifier, text, group) in enumerate(
                zip(identifiers, texts, groups, strict=True)
            )
        ]

    def indexed_text(self, document: Document, chunk: Chunk) -> str:
        """What is full-text indexed for a chunk: title, headings, then its text.

        The first line is shortened so that the whole fits the embedder.
        """
        label = HEADING_SEPARATOR.join(p for p in (document.title, chunk.heading) if p)
        header = self._fitted(label, self._room - chunk.tokens - 1)
        return f"{header}\n{chunk.text}" if header else chunk.text

    def _fitted(self, label: str, room: int) -> str:
        """As many first words of ``label`` as fit into ``room`` tokens."""
        words = label.split()
        if not words or room <= 0:
            return ""
        room = min(room, self._room // 4)
        key = f"{room}:{label}"
        if key not in self._headers:
            if len(self._headers) > 10_000:
                self._headers.clear()
            kept = total = 0
            for count in self._embedder.count_tokens(words):
                total += count
                if total > room:
                    break
                kept += 1
            self._headers[key] = " ".join(words[:kept])
        return self._headers[key]

    # -- cutting -------------------------------------------------------------------------

    def _pieces(self, document: Document) -> list[_Piece]:
        text, media_type = document.text, document.media_type
        blocks = blocks_of(text, media_type)
        counts = self._count(text, [(block.start, block.end) for block in blocks])
        pieces: list[_Piece] = []
        before: tuple[str, ...] | None = None
        for block, tokens in zip(blocks, counts, strict=True):
            opens = block.kind == "heading" or block.headings != before
            before = block.headings
            if tokens <= self._whole_limit(block):
                spans = [(block.start, block.end, tokens)]
            else:
                separators = (*self._separators(block, media_type), *_LAST)
                spans = list(self._cut(text, block.start, block.end, separators))
            columns = column_names(text[block.start : block.end]) if len(spans) > 1 else ""
            for number, (start, end, size) in enumerate(spans):
                first = opens and number == 0
                heading = block.kind == "heading" and number == len(spans) - 1
                path = (*block.headings, columns) if columns and number else block.headings
                page = bisect.bisect_right(document.pages, start)
                pieces.append(_Piece(start, end, size, path, first, heading, page))
        return pieces

    def _whole_limit(self, block: Block) -> int:
        """Tokens up to which a block is one piece; paragraphs are finer where chunks overlap."""
        if block.kind == "text" and self._settings.overlap_tokens:
            return self._settings.overlap_tokens
        return self._settings.max_tokens

    def _separators(self, block: Block, media_type: str) -> tuple[str, ...]:
        if block.kind == "table":
            return _TABLE
        if structure_of(media_type) == "code":
            return _code_separators(media_type.removeprefix("text/x-source-"))
        return (r"\n[ \t]*\n", r"\n") if block.kind == "code" else _PROSE

    def _cut(
        self, text: str, start: int, end: int, separators: Sequence[str]
    ) -> Iterator[tuple[int, int, int]]:
        """Spans with their tokens that cover ``[start, end)``, each within the limit."""
        if not separators:
            yield from self._cut_anywhere(text, start, end)
            return
        cuts = [start, *_cuts(text, start, end, separators[0]), end]
        spans = [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        counts = self._count(text, spans)
        for (a, b), tokens in self._joined(spans, counts):
            if tokens <= self._settings.max_tokens:
                yield a, b, tokens
            else:
                yield from self._cut(text, a, b, separators[1:])

    def _joined(
        self, spans: Sequence[tuple[int, int]], counts: Sequence[int]
    ) -> Iterator[tuple[tuple[int, int], int]]:
        """Neighbouring spans put together into runs of even size within the limit.

        A span over the limit stays alone, to be cut further.
        """
        limit = self._settings.max_tokens
        total = sum(count for count in counts if count <= limit)
        target = math.ceil(total / max(1, math.ceil(total / limit)))
        if self._settings.overlap_tokens:
            target = limit = max(1, self._settings.overlap_tokens // 2)
        run: tuple[int, int] | None = None
        size = 0
        for span, count in zip(spans, counts, strict=True):
            if run is not None and (size + count > limit or size >= target):
                yield run, size
                run, size = None, 0
            run = span if run is None else (run[0], span[1])
            size += count
        if run is not None:
            yield run, size

    def _cut_anywhere(self, text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Cut one overlong word into even parts, each within the limit."""
        for window in range(start, end, _WINDOW_CHARS):
            pending = [(window, min(end, window + _WINDOW_CHARS))]
            while pending:
                counts = self._count(text, pending)
                later = []
                for (a, b), tokens in zip(pending, counts, strict=True):
                    if tokens <= self._settings.max_tokens or b - a == 1:
                        later.append([(a, b, tokens)])
                        continue
                    parts = math.ceil(1.1 * tokens / self._settings.max_tokens)
                    step = max(1, (b - a) // parts)
                    later.append([(p, min(b, p + step), -1) for p in range(a, b, step)])
                flat = [span for spans in later for span in spans]
                if all(tokens >= 0 for _, _, tokens in flat):
                    yield from flat
                    break
                pending = [(a, b) for a, b, _ in flat]

    def _count(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of each span; overlong ones are counted in windows, which can only add."""
        windows: list[str] = []
        owners: list[int] = []
        for number, (start, end) in enumerate(spans):
            for a in range(start, end, _WINDOW_CHARS):
                windows.append(text[a : min(end, a + _WINDOW_CHARS)])
                owners.append(number)
        counts = [0] * len(spans)
        for owner, tokens in zip(owners, self._embedder.count_tokens(windows), strict=True):
            counts[owner] += tokens
        return counts

    # -- putting pieces together ----------------------------------------------------------

    def _groups(self, pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
        """Runs of pieces that become chunks."""
        group: list[_Piece] = []
        size = 0
        for piece in pieces:
            fits = size + piece.tokens <= self._settings.max_tokens
            if group and not (fits and self._belongs(group, size, piece)):
                yield group
                group = self._overlap(group, piece)
                size = sum(p.tokens for p in group)
            group = [*group, piece]
            size += piece.tokens
        if group:
            yield group

    def _belongs(self, group: Sequence[_Piece], size: int, piece: _Piece) -> bool:
        if not piece.opens_section:
            return True
        # A section starts a new chunk, but a heading is not left alone without its text, and a
        # scrap goes with what follows on its page in the same branch of the outline.
        only_headings = all(p.is_heading or p.tokens == 0 for p in group)
        related = group[-1].headings[:-1] == piece.headings[:-1] and group[-1].page == piece.page
        return only_headings or (size < self._settings.min_tokens and related)

    def _overlap(self, group: Sequence[_Piece], following: _Piece) -> list[_Piece]:
        """Last pieces of a chunk that the next one repeats."""
        if following.opens_section or not self._settings.overlap_tokens:
            return []
        kept: list[_Piece] = []
        room = min(self._settings.overlap_tokens, self._settings.max_tokens - following.tokens)
        for piece in reversed(group[1:]):
            if piece.tokens > room:
                break
            kept.insert(0, piece)
            room -= piece.tokens
        return kept


def embedded_text(indexed: str, *, title: str, source: str) -> str:
    """What of a chunk's indexed text is embedded: all but a file name that is no title.

    Where a document has no title its file's name stands for one. People search for names, so
    full text keeps it; in a vector a single word such as ``stdin`` or ``scan-17`` only makes all
    chunks of the document alike.

    Args:
        indexed: The indexed text.
        title: The document's title.
        source: Where the document lies.
    """
    if title != name_of(source) or len(_WORD.findall(title)) > 1:
        return indexed
    header, line, text = indexed.partition("\n")
    rest = header.removeprefix(" ".join(title.split()))
    if rest and not rest.startswith(HEADING_SEPARATOR):
        return indexed
    return rest.removeprefix(HEADING_SEPARATOR) + line + text if rest else text


def uncovered_characters(text: str, chunks: Sequence[Chunk]) -> int:
    """Characters of ``text`` that no chunk shows; 0 when all is well.

    A chunk whose text is not what its span says counts in full.
    """
    position = uncovered = 0
    for chunk in sorted(chunks, key=lambda c: (c.start, c.end)):
        if text[chunk.start : chunk.end] != chunk.text:
            uncovered += len(chunk.text) or 1
        uncovered += max(0, chunk.start - position)
        position = max(position, chunk.end)
    return uncovered + max(0, len(text) - position)


def _cuts(text: str, start: int, end: int, pattern: str) -> Iterator[int]:
    for match in re.compile(pattern).finditer(text, start, end):
        # White space stays with what it follows; a code separator starts what it precedes.
        yield match.end() if not match[0].strip() else match.start() + _leading_space(match[0])


def _leading_space(text: str) -> int:
    return len(text) - len(text.lstrip("\n"))


def _code_separators(language: str) -> tuple[str, ...]:
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    if language not in {item.value for item in Language}:
        return (r"\n[ \t]*\n", r"\n")
    found = RecursiveCharacterTextSplitter.get_separators_for_language(Language(language))
    return tuple(separator for separator in found if separator.strip(" ")) or (r"\n",)


def _heading(group: Sequence[_Piece], title: str) -> str:
    """Path of the longest piece that has text of its own, without a repeated title."""
    bodies = [piece for piece in group if not piece.is_heading] or group[-1:]
    path = max(bodies, key=lambda piece: piece.tokens).headings
    if path and path[0] == title:
        path = path[1:]
    return HEADING_SEPARATOR.join(path)


def _page(pages: Sequence[int], start: int, text: str) -> int | None:
    """Page with most of the text (the first such), from 1."""
    if not pages:
        return None
    shown: Counter[int] = Counter()
    for word in re.finditer(r"\S+", text):
        shown[bisect.bisect_right(pages, start + word.start())] += len(word[0])
    return shown.most_common(1)[0][0] if shown else bisect.bisect_right(pages, start)
