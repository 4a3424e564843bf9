"""What is kept out of a dataset, each with its reason counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rag_fti import ids, prompts
from rag_fti.alignment import align
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.near_duplicates import NearDuplicates, question_index, question_shingles

MIN_QUESTION_WORDS = 3
MIN_UNSPACED_CHARACTERS = 5
"""Least length of a question in a script that puts no spaces between words."""
MAX_QUESTION_WORDS = 40
MAX_ANSWER_WORDS = 60
_MIN_LANGUAGE_WORDS = 5

_DEPENDENT = re.compile(
    r"\[\d{1,3}\]|\b(?:(?:this|these) (?:section|passage|text|document|chapter|paragraph|table|"
    r"figure|list|"
    r"article|page|excerpt|snippet|context)|"
    r"the (?:passage|excerpt|snippet|provided text|given text|text (?:above|below)|"
    r"(?:following|preceding) \w+|above|section (?:above|below))\b|"
    r"(?:mentioned|described|listed|shown|stated|discussed|defined|given) (?:above|below|here|"
    r"earlier|in the (?:text|passage|section|document))|"
    r"according to (?:the|this) (?:text|passage|document|section|table|author)|"
    r"passage \d)",
    re.IGNORECASE,
)
_UNKNOWING = re.compile(
    r"\b(?:i (?:do not|don['\u2019]t) know|don['\u2019]t know|not (?:mentioned|stated|specified|"
    r"provided|given|available|clear)|no (?:information|answer)|"
    r"cannot (?:be )?(?:answer|determin)\w*|unanswerable|as an ai|i['\u2019]m sorry|n/a)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"^(?:what|who|where|when|why|how|which)(?: \w+)? "
    r"(?:is|are|was|were|do|does|did|has|have|can|will) (?:he|she|they|those|them|these|"
    r"(?:it|this|that)(?! (?:mean|cost|take|possible|allowed|true)))\b",
    re.IGNORECASE,
)
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
"""Thai, Lao, Burmese, Khmer, kana, ideographs."""
_SHARED_WORDS = frozenset(
    ["a", "as", "at", "an", "do", "no", "me", "so", "on", "to", "in", "is", "i", "he", "was", "not",
     "die", "den", "war", "de", "en", "or", "for", "per", "con", "on", "son", "sin", "far", "men"]
)  # fmt: skip
"""Words of English that also are common words of other languages."""


@dataclass(frozen=True)
class EvaluationQuestion:
    """A question that must not be in a dataset."""

    question: str
    answers: tuple[str, ...]
    chunk_ids: frozenset[str]
    """Chunks that hold its answer."""


@dataclass(frozen=True)
class Filtered:
    """What was kept, and why the rest was not."""

    kept: tuple[Candidate, ...]
    dropped: dict[str, int]
    """Reason to number of candidates."""


def filter_candidates(
    candidates: Sequence[Candidate],
    *,
    similarity: float,
    evaluation: Sequence[EvaluationQuestion],
    language_of: Callable[[str], str],
) -> Filtered:
    """Keep candidates that are worth training on.

    Args:
        candidates: In order of preference: of near duplicates the first is kept.
        similarity: Jaccard similarity of character 4-grams from which two questions count as
            the same.
        evaluation: Questions of evaluation files.
        language_of: Names the language of a text, or "" where it cannot tell.
    """
    seen: NearDuplicates[int] = NearDuplicates(similarity)
    held = question_index((item.question for item in evaluation), similarity=similarity)
    facts = {
        (chunk, _plain(a)) for item in evaluation for a in item.answers for chunk in item.chunk_ids
    }
    kept: list[Candidate] = []
    dropped: Counter[str] = Counter()
    for original in candidates:
        candidate, reason = _checked(original, language_of)
        shingles = question_shingles(candidate.question)
        if not reason and held.find(shingles):
            reason = "same as an evaluation question"
        if not reason and any(
            (hit.chunk_id, _plain(candidate.answer)) in facts for hit in candidate.chunks
        ):
            reason = "same fact as an evaluation question"
        if not reason and _repeats(candidate, kept, seen.find(shingles)):
            reason = "near duplicate"
        if reason:
            dropped[reason] += 1
            continue
        seen.add(len(kept), shingles)
        kept.append(candidate)
    return Filtered(tuple(kept), dict(sorted(dropped.items())))


def drawn(candidates: Sequence[Candidate], most: int, *, seed: int) -> list[Candidate]:
    """At most so many of the candidates, in their order, what people gave before what was made.

    Args:
        candidates: What to draw from.
        most: How many; 0 keeps all.
        seed: Decides which.
    """
    if not most or len(candidates) <= most:
        return list(candidates)
    order = sorted(
        range(len(candidates)),
        key=lambda n: (
            candidates[n].generator not in ("pairs", "feedback"),
            ids.content_id(str(seed), candidates[n].question, candidates[n].answer),
        ),
    )
    return [candidates[n] for n in sorted(order[:most])]


def _checked(candidate: Candidate, language_of: Callable[[str], str]) -> tuple[Candidate, str]:
    """The candidate with its answer in its chunk's own spelling, and why it is not fit."""
    question = candidate.question.strip()
    reason = _question_fault(question)
    if not reason and candidate.answerable:
        reason = _answer_fault(candidate, question)
    if reason or not candidate.answerable:
        return candidate, reason
    spans = [(hit, align(candidate.answer, hit.text)) for hit in candidate.chunks]
    supported = [(hit, span) for hit, span in spans if span is not None]
    if not supported:
        return candidate, "answer not in its chunk"
    hit, span = supported[0]
    # A question has few words: those that several languages share would decide by accident.
    telling = " ".join(word for word in question.split() if word.lower() not in _SHARED_WORDS)
    asked, told = language_of(question), language_of(hit.text)
    sure = asked and asked == language_of(telling) and len(question.split()) >= _MIN_LANGUAGE_WORDS
    if sure and told and asked != told:
        return candidate, "other language than its chunk"
    chunks = tuple(hit for hit, _ in supported)
    return replace(candidate, question=question, answer=span.text, chunks=chunks), ""


def _question_fault(question: str) -> str:
    words = len(question.split())
    if words < MIN_QUESTION_WORDS and len(_UNSPACED.findall(question)) < MIN_UNSPACED_CHARACTERS:
        return "question too short"
    if words > MAX_QUESTION_WORDS:
        return "question too long"
    if _DEPENDENT.search(question) or _PRONOUN.match(question):
        return "depends on its passage"
    return ""


def _answer_fault(candidate: Candidate, question: str) -> str:
    answer = candidate.answer
    if candidate.generator in ("pairs", "feedback"):  # people's own words mean what they say
        unknowing = _UNKNOWING.fullmatch(answer.strip(" .!"))
    else:
        unknowing = _UNKNOWING.search(question) or _UNKNOWING.search(answer)
    if unknowing or prompts.is_abstention(answer):
        return "says it does not know"
    if len(answer.split()) > MAX_ANSWER_WORDS:
        return "answer too long"
    if _plain(answer) and f" {_plain(answer)} " in f" {_plain(question)} ":
        return "answer in question"
    return ""


def _repeats(
    candidate: Candidate, kept: Sequence[Candidate], close: Sequence[tuple[int, float]]
) -> bool:
    """Whether a near duplicate asks for the same: "TRV-03" and "TRV-04" differ in one letter."""
    return any(
        score >= 0.999
        or _plain(kept[number].answer) == _plain(candidate.answer)
        or {h.chunk_id for h in kept[number].chunks} & {h.chunk_id for h in candidate.chunks}
        for number, score in close
    )


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
