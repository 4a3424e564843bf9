"""From what a model wrote to what a reader is shown: markers, citations, abstention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rag_fti import prompts
from rag_fti.alignment import Alignment, align, as_copied, unwrapped
from rag_fti.schemas import Citation, Hit

_MARKED = re.compile(r"\s*\[(\d{1,3})\]")
_MARKER_RUN = re.compile(r"(?:\s*\[\d{1,3}\])+")
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_LEADING = re.compile(r"^[\s.,;:!?]+")
_NO_WORD = re.compile(r"^[\W_]+")
_OPEN_MARKER = re.compile(r"\s*\[\d{0,3}$")


@dataclass(frozen=True)
class Settled:
    """A reply as it is shown."""

    text: str
    abstained: bool
    citations: tuple[Citation, ...]
    stopped: bool = False
    """Whether a stop text cut it short."""


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
            changes case or accents), see :func:`rag_fti.alignment.as_copied`; line breaks of
            hard-wrapped prose become spaces. What begins in the title or headings above a
            passage loses that beginning; what ends there cites the whole chunk. What neither
            cites nor stands in a passage is an abstention.
    """
    text = drop_empty_markers(without_thought(reply), known=len(hits)).strip()
    abstained = prompts.is_abstention(text)
    if not prompts.says_something(text) or (abstained and is_abstention_start(text)):
        return ABSTAINED
    if not prompts.cited_numbers(text) and not abstained:
        whole, text = text, _with_found_marker(text, hits)
        if restore and text == whole:  # its last word may have been cut off
            text = _with_found_marker(whole.rpartition(" ")[0], hits)
            if not prompts.cited_numbers(text):
                return ABSTAINED
    spans: dict[int, tuple[Hit, Alignment | None]] = {}
    pieces = []
    position = 0
    for run in _MARKER_RUN.finditer(text):
        segment = text[position : run.start()]
        found = _align_segment(segment, run.group(), hits, spans, copied=restore)
        pieces.append(_replaced(segment, found) if restore and found else segment)
        pieces.append(run.group())
        position = run.end()
    pieces.append(text[position:])
    citations = tuple(_citation(number, hit, span) for number, (hit, span) in spans.items())
    return Settled(text="".join(pieces).strip(), abstained=abstained, citations=citations)


def before_stop(settled: Settled, stop: Sequence[str]) -> Settled:
    """What is shown before the first stop text, with the markers of the words that stay.

    An abstention stays whole.

    Args:
        settled: The whole reply.
        stop: Texts that end an answer.
    """
    text = settled.text
    end = min((at for at in map(text.find, stop) if at >= 0), default=-1)
    if settled.abstained or end < 0:
        return settled
    begin = max((run.end() for run in _MARKER_RUN.finditer(text, 0, end)), default=0)
    kept = _OPEN_MARKER.sub("", text[:end]).rstrip()
    citations = [c for c in settled.citations if c.marker in prompts.cited_numbers(text[:begin])]
    run = _MARKER_RUN.search(text, begin)
    if run and prompts.says_something(kept[begin:]):
        marked = kept + run.group()
        if not any(word in marked for word in stop):
            whole = _LEADING.sub("", text[begin : run.start()])
            cut = run.start() - len(kept)
            citations += [
                _shortened(c, whole, cut)
                for c in settled.citations
                if c not in citations and c.marker in prompts.cited_numbers(run.group())
            ]
            kept = marked
    return Settled(text=kept, abstained=False, citations=tuple(citations), stopped=True)


def _shortened(citation: Citation, words: str, cut: int) -> Citation:
    """A citation of just these words, without the last ``cut`` characters; others as they are."""
    if unwrapped(prompts.quote(citation.text)) != words:
        return citation
    return replace(citation, end=citation.end - cut, text=citation.text[: len(words) - cut])


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
    return first_words(text).startswith(prompts.ABSTENTION.rstrip(".").casefold())


def first_words(text: str) -> str:
    """A reply from its first word on, without markers and case."""
    return _NO_WORD.sub("", prompts.without_markers(text)).casefold()


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
) -> str:
    """Note the span of each passage in a run of markers; return the first one's words, if any."""
    words = _LEADING.sub("", segment).strip()
    first = ""
    for number in prompts.cited_numbers(run):
        hit = hits[number - 1]
        # As the model saw it; the offsets are the same.
        passage = prompts.quote(hit.text)
        found = align(words, passage) if words else None
        head = ""
        if copied and words and found is None:
            found, head = _below_head(words, passage, hit)
        if copied and found is not None:
            found = as_copied(found, passage)
        first = first or (found.text if found else head)
        if number not in spans or (spans[number][1] is None and found is not None):
            spans[number] = (hit, found)
    return first


def _below_head(words: str, passage: str, hit: Hit) -> tuple[Alignment | None, str]:
    """The part of copied words that is from the text; where there is none, those of its head."""
    head = prompts.label(prompts.Passage("", hit.title, hit.heading)) + "\n"
    found = align(words, head + passage)
    end = found.end - len(head) if found else 0
    if prompts.says_something(below := passage[: max(0, end)]):
        start = end - len(below.lstrip())
        return Alignment(passage[start:end], start, end), ""
    return None, found.text.partition("\n")[0] if found else ""


def _replaced(segment: str, found: str) -> str:
    leading = _LEADING.match(segment)
    return (leading.group() if leading else "") + unwrapped(found)


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
