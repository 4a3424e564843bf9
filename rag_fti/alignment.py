"""From generated words back to the passage's own: the verbatim span and where it stands.

A model with an uncased wordpiece vocabulary says ``u. s. $ 5, 000``; the reader of an answer wants
``U.S. $5,000`` and its character range. :func:`align` finds it, ignoring case, accents, kind of
whitespace, invisible characters and the spaces that a wordpiece decoder puts around punctuation,
and nothing else: words must match whole and in order.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

UNKNOWN = "[UNK]"
"""How wordpiece decoders write a token that is not in the vocabulary; matches any one word."""

_WORD = re.compile(r"[^\W\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
"""What :func:`align` wants in one piece."""

_LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
"""What a word cannot begin after or end before: letters and digits of scripts with spaces."""

_OUTER = " \t\n.,;:!?\"'()[]\u201c\u201d\u2018\u2019"


@dataclass(frozen=True)
class Alignment:
    """A verbatim span: ``passage[start:end] == text``, offsets in characters."""

    text: str
    start: int
    end: int


def align(answer: str, passage: str) -> Alignment | None:
    """The first span of ``passage`` that says ``answer``.

    Args:
        answer: Generated text without citation markers.
        passage: The text it should have been taken from.

    Returns:
        The span in the passage's own spelling, or None where the passage does not say it. Where
        only punctuation at the ends differs, the span without it.
    """
    folded, origins = _fold(passage)
    for candidate in dict.fromkeys((answer.strip(), answer.strip(_OUTER))):
        pattern = _pattern(candidate)
        match = pattern.search(folded) if pattern else None
        if match:
            start, end = origins[match.start()], origins[match.end() - 1] + 1
            while end < len(passage) and unicodedata.combining(passage[end]):
                end += 1
            return Alignment(passage[start:end], start, end)
    return None


def folded(text: str) -> str:
    """``text`` as :func:`align` compares it: for :func:`may_say`."""
    return _fold(text)[0]


def may_say(answer: str, passage: str) -> bool:
    """Whether a folded passage has the longest word of an answer; :func:`align` needs it.

    Many passages are ruled out at a hundredth of the cost.

    Args:
        answer: As for :func:`align`.
        passage: As :func:`folded` gives it.
    """
    if UNKNOWN in answer:
        return True
    return max(_WORD.findall(folded(answer)), key=len, default="") in passage


def _fold(text: str) -> tuple[str, list[int]]:
    """``text`` without case, accents and invisible characters, and each character's origin."""
    folded: list[str] = []
    origins: list[int] = []
    for index, character in enumerate(text):
        if character.isspace():
            folded.append(" ")
            origins.append(index)
            continue
        for part in unicodedata.normalize("NFKD", character.casefold()):
            if unicodedata.category(part) in ("Mn", "Cf", "Cc"):
                continue
            folded.append(part)
            origins.append(index)
    return "".join(folded), origins


def _pattern(answer: str) -> re.Pattern[str] | None:
    """What to look for in folded text; None where the answer has no word or sign."""
    pieces: list[str] = []
    last = " "
    spaced = False
    for number, part in enumerate(answer.split(UNKNOWN)):
        if number:
            pieces.append(r"\s*" if pieces else "")
            pieces.append(r"\S+?")
            last, spaced = ".", True
        for character in _fold(part)[0]:
            if character == " ":
                spaced = True
                continue
            if pieces:
                pieces.append(_gap(last, character, spaced))
            pieces.append(re.escape(character))
            last, spaced = character, False
    if not pieces:
        return None
    left = f"(?<!{_LETTER})" if _joins(answer[0]) else ""
    right = f"(?!{_LETTER})" if _joins(last) or answer.endswith(UNKNOWN) else ""
    return re.compile(left + "".join(pieces) + right)


def _gap(left: str, right: str, spaced: bool) -> str:
    """Between two characters of the answer: within words spaces count, around signs they vary."""
    if not (_joins(left) and _joins(right)):
        return r"\s*"
    return r"\s+" if spaced else ""


def _joins(character: str) -> bool:
    """Whether the character makes one word with others of its kind beside it."""
    return (character.isalnum() or character == "_") and not _is_ideograph(character)


def _is_ideograph(character: str) -> bool:
    """Whether wordpiece tokenizers set the character off as a word of its own."""
    return any(a <= character <= b for a, b in (("㐀", "䶿"), ("一", "鿿"), ("豈", "﫿")))
