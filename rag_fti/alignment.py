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

_SIGNS = "".join(c for c in map(chr, range(0x0900, 0x0E00)) if unicodedata.category(c) == "Mc")
"""Vowel signs of Indian scripts that are no accents: ``\\w`` does not know them."""

_LETTER = (
    r"(?:[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
    rf"|[{_SIGNS}])"
)
"""What a word cannot begin after or end before: letters and digits of scripts with spaces."""

_PARTICLE = unicodedata.normalize(
    "NFKD",
    "(?:께서|께|에게서|에게|에서|에|한테|으로서|로서|으로써|로써|으로|로|까지|부터|마다|처럼|보다|만)?"
    "(?:은|는|도|만|의)?"
    "|이|가|을|를|와|과|이나|이라고|이라는|이란|이며|이고|이다|입니다|이었다|였다|이었습니다|였습니다",
)
"""What follows a Korean noun without a space (case, topic, copula), as folded text has it."""

_UNKNOWN_WORD = (
    r"(?:[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    rf"|(?:[^\W\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[{_SIGNS}])++|[^\w\s]{{1,8}}?)"
)
"""What wordpiece tokenizers make one unknown token of; possessive, so that several cost little."""

_ROW = re.compile(r"\s*\|.*(?<!\\)\|\s*")
"""A line of a Markdown table; a line of code that has a bar does not begin and end with one."""

_BAR = re.compile(r"(?<!\\)\|")

_FIELD = (
    r"[ \t]*(?:[-*+] |:)?[*`\"']*[\w./()%\[\]-]+(?: [\w./()%-]+){0,3}[*`\"']*:[*`\"']*[ \t]+(?=\S)"
)
"""The name of a ``name: value`` line: a header field, a row of a sheet, a setting."""

_NAME = re.compile(_FIELD)
_NEXT_FIELD = re.compile(r"\n" + _FIELD)
_NUMBERS = re.compile(r"[ \t]*\d[\d.,% ]*")
"""A line that is a number: the cell of a table whose lines a PDF does not keep together."""

_NEXT_NUMBER = re.compile(r"\n[ \t]*\d")
_LIST_NUMBER = re.compile(r"[.!?](\s*\n\s*\d+(?:\.\d+)*\.?)$")
_WRAPPED = re.compile(rf"(?<=\S)\n(?!{_FIELD}|\d+[.)] )(?=[\"'(\u201c\u201e\u00ab]?[^\W_])")
"""A line break between words; lists, tables, fields and empty lines have others."""

_ADDRESS = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
    r"|(?P<url>(?:https?://|ftp://|www\.)[^\s<>()\[\]\"'`|*]*[\w/])"
)
_WITHIN_NAMES = frozenset(".-_~%+=&@")
"""Signs inside a host, path or value; at others an address has parts that answer by themselves."""

_OUTER = (
    " \t\n.,;:!?\"'()[]\u201c\u201d\u2018\u2019\u00ab\u00bb\u2026\u0964\u060c\u061b\u061f"
    "\u3001\u3002\u300a\u300b\u300c\u300d\u300e\u300f\u3010\u3011"
    "\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
)


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
            end += _closes(passage[start:end], passage[end : end + 1])
            return Alignment(passage[start:end], start, end)
    return None


def as_copied(found: Alignment, passage: str) -> Alignment:
    """A copied span without what it runs over behind a table's cell or row, or a line's field.

    A span that begins in the first cell, which names its row, may go on to the end of the row; one
    that begins in a later cell ends with it. One that begins in the value of a ``name: value`` line
    ends before the next such line, a number alone on its line before the next number, a sentence
    before the number of the next paragraph. E-mail addresses and URLs that it cuts through become
    whole. Else it stays as it is.

    Args:
        found: A span of ``passage``.
        passage: The text it is from.
    """
    return _with_addresses(_within_line(_within_cell(found, passage), passage), passage)


def unwrapped(text: str) -> str:
    """``text`` with spaces for the line breaks of hard-wrapped prose; the same length."""
    return _WRAPPED.sub(" ", text)


def _within_cell(found: Alignment, passage: str) -> Alignment:
    row_start = passage.rfind("\n", 0, found.start) + 1
    row_end = passage.find("\n", found.start)
    row_end = len(passage) if row_end < 0 else row_end
    if not _ROW.fullmatch(passage, row_start, row_end):
        return found
    bars = len(_BAR.findall(passage, row_start, found.start))
    border = _BAR.search(passage, found.start, row_end)
    limit = border.start() if border and bars > 1 else row_end
    text = passage[found.start : min(found.end, limit)].rstrip()
    if bars:
        text = text.removesuffix("|").rstrip()
    if not any(character.isalnum() for character in text):
        return found
    return Alignment(text, found.start, found.start + len(text))


def _within_line(found: Alignment, passage: str) -> Alignment:
    line = passage.rfind("\n", 0, found.start) + 1
    line_end = passage.find("\n", line) % (len(passage) + 1)
    following = None
    if (name := _NAME.match(passage, line)) and name.end() <= found.start:
        following = _NEXT_FIELD.search(passage, found.start)
    elif _NUMBERS.fullmatch(passage, line, line_end):
        following = _NEXT_NUMBER.match(passage, line_end)
    end = min(found.end, following.start()) if following else found.end
    text = passage[found.start : end].rstrip()
    if number := _LIST_NUMBER.search(text):
        text = text[: number.start(1)]
    return Alignment(text, found.start, found.start + len(text))


def _with_addresses(found: Alignment, passage: str) -> Alignment:
    start, end = found.start, found.end
    left = start
    while left > 0 and not passage[left - 1].isspace():
        left -= 1
    right = end
    while right < len(passage) and not passage[right].isspace():
        right += 1
    for address in _ADDRESS.finditer(passage, left, right):
        first, last = address.span()
        borders = {passage[i] for i in (start - 1, start) if first <= i < last}
        borders |= {passage[i] for i in (end - 1, end) if first <= i < last}
        part = address["url"] and first <= start and end <= last
        if first < end and start < last and not (part and borders.isdisjoint(_WITHIN_NAMES)):
            start, end = min(start, first), max(end, last)
    return Alignment(passage[start:end], start, end)


def _closes(span: str, following: str) -> bool:
    """Whether the next character closes a quotation or bracket that the span leaves open."""
    opener = {"`": "`", '"': '"', ")": "(", "]": "[", "\u201d": "\u201c"}.get(following)
    if opener is None:
        return False
    left = span.count(opener) - (0 if opener == following else span.count(following))
    return left % 2 == 1 if opener == following else left > 0


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


def decomposed(text: str, index: int) -> str:
    """The character at ``index`` in its compatible form (Unicode's NFKD).

    A fraction, and a raised digit after a digit, stay what they are: 1½ is not 11, 10⁵ not 105.
    """
    kind = unicodedata.decomposition(text[index])
    raised = kind.startswith("<super>") and index > 0 and text[index - 1].isdigit()
    number = raised or kind.startswith("<fraction>")
    return unicodedata.normalize("NFD" if number else "NFKD", text[index])


def _fold(text: str) -> tuple[str, list[int]]:
    """``text`` without case, accents and invisible characters, and each character's origin."""
    folded: list[str] = []
    origins: list[int] = []
    for index, character in enumerate(text):
        if character.isspace():
            folded.append(" ")
            origins.append(index)
            continue
        for part in decomposed(text, index).casefold():
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
            pieces.append(_UNKNOWN_WORD)
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
    if right and _may_take_particle(answer):
        right = f"(?=(?:{_PARTICLE}){right})"
    return re.compile(left + "".join(pieces) + right)


def _gap(left: str, right: str, spaced: bool) -> str:
    """Between two characters of the answer: within words spaces count, around signs they vary."""
    # Wordpiece decoders set an underscore off like a sign.
    if "_" in (left, right) or not (_joins(left) and _joins(right)):
        return r"\s*"
    return r"\s+" if spaced else ""


def _joins(character: str) -> bool:
    """Whether the character makes one word with others of its kind beside it."""
    return (character.isalnum() or character == "_" or character in _SIGNS) and not _is_ideograph(
        character
    )


def _may_take_particle(answer: str) -> bool:
    """Whether the last word is known and longer than one syllable, which may begin any word."""
    if answer.endswith(UNKNOWN):
        return False
    return len(unicodedata.normalize("NFC", answer).split()[-1]) > 1


def _is_ideograph(character: str) -> bool:
    """Whether wordpiece tokenizers set the character off as a word of its own."""
    return any(a <= character <= b for a, b in (("㐀", "䶿"), ("一", "鿿"), ("豈", "﫿")))
