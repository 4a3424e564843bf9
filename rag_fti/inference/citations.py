"""From what a model wrote to what a reader is shown: markers, citations, abstention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag_fti import prompts
from rag_fti.alignment import Alignment, align, within_cell
from rag_fti.schemas import Citation, Hit

_MARKED = re.compile(r"\s*\[(\d{1,3})\]")
_MARKER_RUN = re.compile(r"(?:\s*\[\d{1,3}\])+")
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_LEADING = re.compile(r"^[\s.,;:!?]+")


@dataclass(frozen=True)
class Settled:
    """A reply as it is shown."""

    text: str
    abstained: bool
    citations: tuple[Citation, ...]


ABSTAINED = Settled(text=prompts.ABSTENTION, abstained=True, citations=())


def settle(reply: str, hits: Sequence[Hit], *, restore: bool) -> Settled:
    """A model's reply with everything in it tied to what was retrieved.

    Markers of passages that were not in the prompt are dropped, and those of the abstention
    sentence: an abstention has no citations. A sentence that stands in a
    passage it cites, up to case, accents and spaces, is tied to the exact characters; any other
    to the whole chunk. An answer without markers that stands verbatim in one passage gets that
    passage's marker.

    Args:
        reply: The model's text.
        hits: The passages of the prompt, in marker order.
        restore: Show such a sentence in the words of its passage (for models whose tokenizer
            changes case or accents); in a table, no further than its cell or row.
    """
    text = drop_empty_markers(without_thought(reply), known=len(hits)).strip()
    abstained = prompts.is_abstention(text)
    if not prompts.says_something(text) or (abstained and is_abstention_start(text)):
        return ABSTAINED
    if not prompts.cited_numbers(text) and not abstained:
        text = _with_found_marker(text, hits)
    spans: dict[int, tuple[Hit, Alignment | None]] = {}
    pieces = []
    position = 0
    for run in _MARKER_RUN.finditer(text):
        segment = text[position : run.start()]
        found = _align_segment(segment, run.group(), hits, spans, copied=restore)
        pieces.append(_replaced(segment, found) if restore and found is not None else segment)
        pieces.append(run.group())
        position = run.end()
    pieces.append(text[position:])
    citations = tuple(_citation(number, hit, span) for number, (hit, span) in spans.items())
    return Settled(text="".join(pieces).strip(), abstained=abstained, citations=citations)


def drop_empty_markers(text: str, *, known: int) -> str:
    """``text`` without markers of passages that do not exist, or of the abstention sentence."""
    before = None
    while text != before:  # what is left of [[9]9] must not be a marker either
        before = text
        text = _MARKED.sub(
            lambda match: match.group() if 1 <= int(match.group(1)) <= known else "", text
        )
        text = prompts.without_marked_abstention(text)
    return text


def without_thought(text: str) -> str:
    """A reply, or as much of it as there is, without what the model thought before it."""
    if "<think>".startswith(text.strip()):  # it may begin just now
        return ""
    thought = _THOUGHT.match(text)
    return text[thought.end() :] if thought else text


def is_abstention_start(text: str) -> bool:
    """Whether a reply begins with the abstention text, its own markers aside."""
    return (
        prompts.without_markers(text)
        .casefold()
        .startswith(prompts.ABSTENTION.rstrip(".").casefold())
    )


def found_marker(text: str, hits: Sequence[Hit]) -> str:
    """The marker of the first passage that holds ``text`` verbatim, or an empty string."""
    for number, hit in enumerate(hits, start=1):
        if align(text, prompts.quote(hit.text)) is not None:
            return prompts.marker(number)
    return ""


def _with_found_marker(text: str, hits: Sequence[Hit]) -> str:
    marker = found_marker(_LEADING.sub("", text), hits)
    return f"{text} {marker}" if marker else text


def _align_segment(
    segment: str,
    run: str,
    hits: Sequence[Hit],
    spans: dict[int, tuple[Hit, Alignment | None]],
    *,
    copied: bool,
) -> Alignment | None:
    """Note the span of each passage in a run of markers; return the first one found."""
    words = _LEADING.sub("", segment).strip()
    first: Alignment | None = None
    for number in prompts.cited_numbers(run):
        hit = hits[number - 1]
        # As the model saw it; the offsets are the same.
        passage = prompts.quote(hit.text)
        found = align(words, passage) if words else None
        if found is not None and copied:
            found = within_cell(found, passage)
        first = first or found
        if number not in spans or (spans[number][1] is None and found is not None):
            spans[number] = (hit, found)
    return first


def _replaced(segment: str, found: Alignment) -> str:
    leading = _LEADING.match(segment)
    return (leading.group() if leading else "") + found.text


def _citation(number: int, hit: Hit, span: Alignment | None) -> Citation:
    start, end, text, page = hit.start, hit.end, hit.text, hit.page
    if span is not None:
        start, end = hit.start + span.start, hit.start + span.end
        text = hit.text[span.start : span.end]
        page = next((number for offset, number in reversed(hit.pages) if offset <= start), page)
    return Citation(
        marker=number,
        chunk_id=hit.chunk_id,
        document_id=hit.document_id,
        document_version=hit.document_version,
        source=hit.source,
        title=hit.title,
        heading=hit.heading,
        page=page,
        start=start,
        end=end,
        text=text,
        score=hit.score,
    )
