"""Questions from the structure of a text, without any model.

Every rule turns a place whose meaning is plain (a definition, a table row, a question heading, a
simple statement) into a question whose answer is a verbatim part of the chunk. Rules prefer
saying nothing to saying something clumsy: what does not fit exactly is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rag_fti.datasets.candidates import RULES, Candidate
from rag_fti.schemas import Hit

_MAX_ANSWER_WORDS = 24
_MAX_KIND_WORDS = 9
_MAX_SUBJECT_WORDS = 9
_COUNTING_WORD = (
    "[Oo]ne|[Tt]wo|[Tt]hree|[Ff]our|[Ff]ive|[Ss]ix|[Ss]even|[Ee]ight|[Nn]ine|[Tt]en|[Ee]leven|"
    "[Tt]welve|[Tt]wenty"
)
_NUMBER = rf"(?:\d[\d.,:]*|{_COUNTING_WORD})"
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = (
    rf"(?:\d{{1,2}} (?:{_MONTH})(?: \d{{4}})?|(?:{_MONTH}) \d{{4}}|\d{{4}}-\d{{2}}-\d{{2}}|"
    r"(?:1[89]|20)\d\d)"
)
_NAME_WORD = "[A-Z][\\w\u2019'-]+"
_NAME = rf"(?:{_NAME_WORD}(?: (?:of|de|van|von|the))?(?: {_NAME_WORD})+)"
_BE = "is|are|was|were"
_PARTICIPLE = r"\w+(?:ed|en|wn|lt|ld|de|ne|ght|pt|un|ut|et|id|nt|ft)\b"
_AUX = "is|are|was|were|has been|have been|had been|will be|must be|can be|may be|should be"
_SUBJECT = r"(?P<subject>[A-Z][^,;:()|]{1,80}?)"
_LEANING = re.compile(
    r"^(?:it|its|they|their|this|that|these|those|he|his|she|her|we|our|you|your|i|my|there|here|"
    r"each|both|some|many|most|all|another|others?|one|nobody|everybody|everything|nothing|"
    r"if|when|where|while|because|although|but|and|or|so|then|also|by|in|on|at|for|with|from|to|"
    r"after|before|since|until|under|during|within|abroad|above|below|between|over|outside|inside|"
    r"every|everyone|as|what|which|who|how|why|note|please|do|never|always|full|half)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=[A-Z“\"*])")
_MARKUP = re.compile(r"^\s*(?:#{1,6}\s|>|[-*+]\s|\d+[.)]\s|\||```)")
_FINITE = re.compile(
    r"\b(?:that|which|who|this|these|its|their|is|are|was|were|be|been|has|had|have|if|there|may|"
    r"must|can|will|stands?|says?|said|explained|not)\b"
)
_VAGUE = re.compile(
    r"\b(?:first|second|third|fourth|last|next|other|others|rest|result|reason|point|way|same|case|"
    r"following|the|a|an|latter|former)$",
    re.IGNORECASE,
)
_DURATION = re.compile(r"\b(?:second|minute|hour|day|week|month|year)s?\b")
_ROLE = re.compile(
    r"^the (?:\w+ ){0,2}(?:chief|head|manager|director|captain|master|chair|secretary|skipper|"
    r"owner|author|founder|president|editor|maintainer|leader|officer|engineer|treasurer)\b"
)
_PERSON = re.compile(
    r"(?:actor|actress|artist|author|captain|coach|composer|director|drummer|editor|engineer|"
    r"entrepreneur|footballer|guitarist|historian|journalist|judge|lawyer|manager|mathematician|"
    r"musician|novelist|officer|painter|philosopher|physicist|player|poet|politician|producer|"
    r"professor|rapper|scientist|screenwriter|singer|songwriter|swimmer|teacher|wrestler|writer)$",
    re.IGNORECASE,
)
_LATER = re.compile(
    r",|;| (?:that|which|who|whose|where|in which|when|and (?:is|was|has))\b"
    r"| (?:\w+ed|written|known|built|held|made|set|shot)(?: and \w+(?:ed|en))? "
    r"(?:by|in|on|at|from|for|as|to|with|near|under|of)\b"
)
"""Where a definition goes on to say more than what kind of thing it is."""
_NO_NOUN = re.compile(
    r"(?:^|\b)(?:from|to|for|by|who|when|where|why|how|holds|remarks|notes|names?)$"
)
_GENERIC = re.compile(
    r"^(?:items?|values?|key|property|field|name|what|setting|figures?|details?)$", re.IGNORECASE
)

_PLURAL = re.compile(r"[a-hj-rtv-z]s(?: |$)")
_PREPOSITION = re.compile(r" (?:at|by|for|from|in|of|on|per|to|with)\b")
_LINK_OR_CODE = re.compile(r"\]\(|`|://")


@dataclass(frozen=True)
class _Found:
    rule: str
    question: str
    answer: str


def generate(chunks: Sequence[Hit], *, per_chunk: int) -> list[Candidate]:
    """Questions that the rules find.

    Args:
        chunks: Chunks of the feature store.
        per_chunk: Most questions per chunk; rules that came up least so far in the chunk go
            first, so that one table does not crowd out the rest.

    Returns:
        Candidates whose answers are verbatim in their chunk.
    """
    found = []
    for chunk in chunks:
        unique = {item.question: item for item in _find(chunk) if item.answer in chunk.text}
        for item in _mixed(list(unique.values()))[:per_chunk]:
            found.append(Candidate(item.question, item.answer, RULES, (chunk,), item.rule))
    return found


def _mixed(items: list[_Found]) -> list[_Found]:
    """Round-robin over the rules, in order of appearance."""
    queues: dict[str, list[_Found]] = {}
    for item in items:
        queues.setdefault(item.rule, []).append(item)
    result = []
    while queues:
        for rule in list(queues):
            result.append(queues[rule].pop(0))
            if not queues[rule]:
                del queues[rule]
    return result


def _find(chunk: Hit) -> Iterator[_Found]:
    yield from _questions_as_headings(chunk)
    yield from _question_answer_lines(chunk)
    yield from _bold_definitions(chunk)
    yield from _table_rows(chunk)
    for sentence in _sentences(chunk.text):
        for rule in _SENTENCE_RULES:
            item = rule.apply(sentence, chunk)
            if item is not None:
                yield item
                break
        for rule in _RULES_OF_DEFINITIONS:
            item = rule.apply(sentence, chunk)
            if item is not None:
                yield item


# Structure


def _questions_as_headings(chunk: Hit) -> Iterator[_Found]:
    heading = chunk.heading.rpartition(" > ")[2].strip()
    if heading.endswith("?") and len(heading.split()) >= 3:
        for sentence in _sentences(chunk.text):
            if sentence.strip() != heading and len(sentence.split()) <= _MAX_ANSWER_WORDS:
                yield _Found("faq heading", heading, sentence.rstrip(".").strip())
            break


def _question_answer_lines(chunk: Hit) -> Iterator[_Found]:
    pattern = re.compile(
        # No run of blank lines is looked through more than once.
        r"^[^\w\n]*(?:Q|Question)\W{1,3}(?P<q>[^\n?]{8,160}\?)[^\w\n]*\n\W*(?:A|Answer)\W{1,3}"
        r"(?P<a>[^\n]+)",
        re.MULTILINE,
    )
    for match in pattern.finditer(chunk.text):
        answer = _sentences(match["a"])[0].rstrip(".").strip()
        if len(answer.split()) <= _MAX_ANSWER_WORDS:
            yield _Found("question and answer", match["q"].strip(), answer)


def _bold_definitions(chunk: Hit) -> Iterator[_Found]:
    pattern = re.compile(
        r"^(?:[-*+]\s+)?\*\*(?P<term>[^*\n]{2,60}?)[.:]?\*\*[.:]?\s+(?P<text>[A-Z][^\n]{8,})",
        re.MULTILINE,
    )
    for match in pattern.finditer(chunk.text):
        answer = re.split(r"(?<=[.!?])\s", match["text"])[0].rstrip(".")
        term = match["term"].strip()
        # "**Place.** Net Loft" heads a note; a definition says what kind of thing it is.
        defines = re.match(r"(?:An?|The|One|Any|Every|All|Words?|Someone|Anything)\b", answer)
        if defines and len(answer.split()) <= _MAX_ANSWER_WORDS and not term.endswith("?"):
            yield _Found("definition list", f"What is meant by “{term}”?", answer)


def _table_rows(chunk: Hit) -> Iterator[_Found]:
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in chunk.text.splitlines()
        if line.strip().startswith("|") and line.strip().endswith("|")
    ]
    rule = next(
        (n for n, row in enumerate(rows) if all(re.fullmatch(r":?-{2,}:?", c) for c in row)), None
    )
    if rule != 1 or len(rows[0]) < 2:
        return
    header, body = rows[0], rows[2:]
    for number, row in enumerate(body):
        if len(row) != len(header) or not _is_label(row[0]):
            continue
        column = 1 + number % (len(header) - 1)
        question = _row_question(header, row, column, chunk)
        if question and 0 < len(row[column].split()) <= _MAX_ANSWER_WORDS and row[column] != "-":
            yield _Found("table", question, row[column])


def _row_question(header: Sequence[str], row: Sequence[str], column: int, chunk: Hit) -> str:
    wanted, key = header[column], row[0]
    if not _is_label(wanted):
        return ""
    if _GENERIC.match(header[0]) and _GENERIC.match(wanted):
        if not chunk.title:
            return ""
        if re.search(r"(?:s|(?<!spe)ed)$", key):
            return f"What is given under “{key}” for {_title(chunk)}?"
        return f"What is the {_lower(key)} of {_title(chunk)}?"
    if _NO_NOUN.search(wanted.lower()):
        return ""
    if re.search(r"\d", wanted) and not _names_something(key):
        return f"What is the {_lower(key)} for {wanted}{_according_to(chunk)}?"
    # A row that names nothing ("Total") stands in many tables.
    where = "" if _names_something(key) else _according_to(chunk)
    if _PLURAL.search(_PREPOSITION.split(wanted)[0]):
        return f"How many {_lower(wanted)} are given for {key}{where}?"
    return f"What is the {_lower(wanted)} for {key}{where}?"


def _is_label(text: str) -> bool:
    return (
        bool(re.search(r"[A-Za-z]", text))
        and len(text.split()) <= _MAX_SUBJECT_WORDS
        and not _LINK_OR_CODE.search(text)
    )


def _names_something(text: str) -> bool:
    """Whether a table key is a name or code rather than an ordinary word or two."""
    return bool(re.search(r"\d|[A-Z]{2}|\w [A-Z]|^[A-Z][\w'-]*$", text)) and text != "Total"


def _title(chunk: Hit) -> str:
    return chunk.title.capitalize() if chunk.title.isupper() else chunk.title


def _according_to(chunk: Hit) -> str:
    return f", according to “{_title(chunk)}”" if chunk.title else ""


# Sentences


def _sentences(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not _MARKUP.match(line)]
    paragraphs = re.split(r"\n\s*\n", text)
    result = []
    for paragraph in paragraphs:
        plain = [line for line in paragraph.splitlines() if line in lines]
        if plain:
            result += _SENTENCE_END.split(" ".join(plain))
    # A sentence that was put together over a line end is not verbatim; rules check that later.
    return [sentence.strip() for sentence in result if sentence.strip()] or [""]


def _subject(text: str, chunk: Hit) -> str:
    """A subject that can be understood alone; empty where this one cannot."""
    words = text.split()
    if not words or len(words) > _MAX_SUBJECT_WORDS or _LEANING.match(text):
        return ""
    if _FINITE.search(text) or _VAGUE.search(text):
        return ""
    if len(words) == 1 and not re.search(rf"[a-z,] {re.escape(text)}\b|\d", chunk.text + text):
        # One capital at the start of a sentence says nothing: is it a name or just a word?
        return ""
    if words[0] in ("The", "A", "An"):
        return " ".join([words[0].lower(), *words[1:]])
    return text


def _ask(words: str, subject: str, chunk: Hit) -> str:
    """The question, with the document named where the subject names nothing itself."""
    named = re.search(r"\b[A-Z][\w-]*|\d", subject)
    return f"{words}{'' if named else _according_to(chunk)}?"


def _lower(text: str) -> str:
    """First letter small, unless the first word is a name or an abbreviation."""
    first = text.split()[0]
    return text if first.isupper() or not first[1:].islower() else text[0].lower() + text[1:]


@dataclass(frozen=True)
class _Rule:
    """A shape of sentence, and the question it answers.

    ``draft`` gets the match, whose groups ``subject`` and ``answer`` are checked already, and
    the subject as it stands in a question.
    """

    pattern: re.Pattern[str]
    draft: Callable[[re.Match[str], str, Hit], _Found | None]
    most_words: int = _MAX_ANSWER_WORDS

    def apply(self, sentence: str, chunk: Hit) -> _Found | None:
        match = self.pattern.match(sentence)
        if match is None or len(match["answer"].split()) > self.most_words:
            return None
        subject = _subject(match["subject"], chunk)
        return self.draft(match, subject, chunk) if subject else None


def _definition(match: re.Match[str], subject: str, chunk: Hit) -> _Found | None:
    answer = match["answer"]
    if " and is " in answer:
        return None
    if re.match(r"^(?:an?|the|one of the) (?:same|case|only|first|last|second)\b", answer):
        return None
    kind = _LATER.split(answer, maxsplit=1)[0]
    if not 2 < len(kind.split()) <= _MAX_KIND_WORDS:
        return None
    if re.fullmatch(_NAME, match["subject"]) and _ROLE.match(answer):
        role = re.split(r" (?:and|who|but) |[,:]", answer)[0]
        where = "" if re.search(r"[A-Z]", role) else _according_to(chunk)
        return _Found("role", f"Who is {role}{where}?", match["subject"])
    person = re.fullmatch(_NAME, match["subject"]) and _PERSON.search(kind.split(" and ")[0])
    words = f"{'Who' if person else 'What'} {match['be']} {subject}"
    return _Found("definition", _ask(words, subject, chunk), kind)


def _of_definition(match: re.Match[str], subject: str, chunk: Hit) -> _Found | None:
    if _FINITE.search(match["kind"]) or re.search(r"\b(?:about|based|from)\b", match["kind"]):
        return None  # what follows may be said of another thing
    rule, ask, tense = next(
        (name, words, tense)
        for name, words, tense in (
            ("by whom", "By whom", ("was", "were")),
            ("when", "When", ("was", "were")),
            ("where", "Where", ("is", "are")),
        )
        if match.re is _TAILS[name]
    )
    be = tense[match["be"] in ("are", "were")]
    return _Found(
        rule, _ask(f"{ask} {be} {subject} {match['verb']}", subject, chunk), match["answer"]
    )


def _quantity(match: re.Match[str], subject: str, chunk: Hit) -> _Found:
    question = _ask(f"What {match['be']} {subject}", subject, chunk)
    return _Found("quantity", question, match["answer"])


def _when(match: re.Match[str], subject: str, chunk: Hit) -> _Found:
    first, _, rest = match["aux"].partition(" ")
    ask = {"until": "Until when", "since": "Since when", "from": "From when", "by": "By when"}
    words = f"{ask.get(match['prep'], 'When')} {first} {subject} {rest} {match['verb']}"
    return _Found("when", _ask(" ".join(words.split()), subject, chunk), match["answer"])


def _by_whom(match: re.Match[str], subject: str, chunk: Hit) -> _Found:
    first, _, rest = match["aux"].partition(" ")
    words = f"By whom {first} {subject} {rest} {match['verb']}"
    return _Found("by whom", _ask(" ".join(words.split()), subject, chunk), match["answer"])


def _has_count(match: re.Match[str], subject: str, chunk: Hit) -> _Found | None:
    if match["noun"].split()[0] in ("or", "to", "times"):
        return None
    lemma = {"has": "have", "carries": "carry"}.get(match["verb"], match["verb"].rstrip("s"))
    do = "do" if match["verb"] in ("have", "hold", "carry", "need", "use", "give") else "does"
    words = f"How many {match['noun']} {do} {subject} {lemma}"
    return _Found("count", _ask(words, subject, chunk), match["answer"])


def _measure(match: re.Match[str], subject: str, chunk: Hit) -> _Found | None:
    verb = match["verb"].removesuffix("s")
    if verb in ("take", "last") and not _DURATION.search(match["answer"]):
        return None
    how = {"cost": "How much", "weigh": "How much"}.get(verb, "How long")
    return _Found(verb, _ask(f"{how} does {subject} {verb}", subject, chunk), match["answer"])


_DEFINED = rf"^{_SUBJECT} (?P<be>{_BE}) (?P<kind>(?:an?|the) [^,;:.]{{3,80}}?) "
_TAILS = {
    "by whom": re.compile(
        _DEFINED
        + r"(?P<verb>(?:built|composed|created|designed|developed|directed|edited|founded|headed|"
        r"invented|led|owned|produced|published|recorded|run|written))"
        rf"(?: and \w+(?:ed|en))? by (?P<answer>{_NAME})\b"
    ),
    "when": re.compile(
        _DEFINED
        + r"(?P<verb>built|completed|created|established|formed|founded|introduced|launched|opened|"
        rf"published|recorded|released) (?:in|on) (?P<answer>{_DATE})\b"
    ),
    "where": re.compile(
        _DEFINED + r"(?P<verb>located|situated|headquartered) (?:in|at|on|near) "
        rf"(?P<answer>(?:the )?{_NAME_WORD}(?: (?:of )?{_NAME_WORD})*(?:, {_NAME_WORD})?)"
    ),
}
"""What a definition says further: "… is a film directed by Ada Lund", "… located in Port Ansel"."""
_RULES_OF_DEFINITIONS = tuple(_Rule(pattern, _of_definition) for pattern in _TAILS.values())

_SENTENCE_RULES = (
    _Rule(
        re.compile(
            rf"^{_SUBJECT} (?P<aux>{_AUX}) (?P<verb>{_PARTICIPLE}[^,;.]{{0,50}}?)"
            rf" (?P<prep>on|in|at|by|until|since|from) (?P<answer>{_DATE})[.]$"
        ),
        _when,
    ),
    _Rule(
        re.compile(
            rf"^{_SUBJECT} (?P<aux>{_AUX}) (?P<verb>\w+(?:ed|en|wn|lt|ld|ght)\b[^,;.]{{0,30}}?) by "
            rf"(?P<answer>{_NAME})(?:,[^.]*| (?:in|on|at) [^.]*)?[.]$"
        ),
        _by_whom,
    ),
    _Rule(
        re.compile(
            rf"^{_SUBJECT} "
            rf"(?P<verb>has|have|holds|hold|carries|carry|needs|need|uses|use|gives|give) "
            rf"(?P<answer>{_NUMBER}) (?P<noun>[a-z][a-z-]+(?: [a-z-]+)?)"
            rf"(?:, [^.]*| (?:of|in|at|for|and|to|on) [^.]*)?[.]$"
        ),
        _has_count,
    ),
    _Rule(
        re.compile(
            rf"^{_SUBJECT} (?P<verb>costs|takes|lasts|weighs) "
            rf"(?P<answer>(?:about |at most |at least |up to )?{_NUMBER}[^,;.]{{0,30}}?)"
            rf"(?:, [^.]*| (?:from|for|and|in|at|to|if) [^.]*)?[.]$"
        ),
        _measure,
        most_words=8,
    ),
    _Rule(
        re.compile(
            rf"^{_SUBJECT} (?P<be>{_BE}) (?P<answer>(?:about |at most |at least |up to )?"
            rf"(?!(?:1[89]|20)\d\d\b){_NUMBER} [^,:;.]{{2,40}}?)"
            rf"(?:, [^.]*| (?:in|at|from|for|and|but|when|so) [^.]*)?[.]$"
        ),
        _quantity,
        most_words=8,
    ),
    _Rule(
        re.compile(
            rf"^{_SUBJECT} (?P<be>is|are) (?P<answer>(?:an?|the|one of the) [^;]{{6,}}?)[.]$"
        ),
        _definition,
    ),
)
