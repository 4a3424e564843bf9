"""Questions from raw text: clozes worded as questions, and spans that recur.

- *Cloze* (after Lewis, Denoyer & Riedel 2019, "Unsupervised Question Answering by Cloze
  Translation"): a phrase of a sentence is the answer, what stands around it becomes the question,
  with a question word for the phrase, words dropped, moved and inflected.
- *Recurring span* (after Ram et al. 2021, "Splinter"): a phrase that stands in two sentences of an
  article; the question is one sentence without it, the passage holds only the other.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from benchmarks.embedded_model.sources import STOP_WORDS, Article

_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"^[£$€]?\d[\d,.]*(%|th|st|nd|rd|m|km|bn)?$")
_YEAR = re.compile(r"^(1[0-9]|20)\d\d$")
_SIGNS = ".,;:!?()[]\"'\u201c\u201d\u2018\u2019"
_OPENING = "([\"'\u201c\u2018"
_LINKS = {"of", "the", "de", "and", "for", "&"}


@dataclass(frozen=True)
class Phrase:
    """A candidate answer inside a sentence."""

    text: str
    start: int
    end: int
    kind: str
    """``year``, ``number``, ``name`` or ``thing``."""


@dataclass(frozen=True)
class Synthetic:
    """A question made from raw text."""

    question: str
    answer: str
    sentence: int
    """Index of the sentence that holds the answer."""
    start: int
    """Character offset of the answer in that sentence, -1 where several spots are right."""
    without: int | None
    """Index of the sentence that must not be shown, as the question was made from it."""


def phrases(sentence: str) -> list[Phrase]:
    """Runs of words without stop words or punctuation inside, at most five words."""
    found: list[Phrase] = []
    run: list[tuple[int, int, str]] = []

    def close() -> None:
        words = list(run)
        run.clear()
        while words and words[-1][2].lower() in STOP_WORDS:
            words.pop()
        lone_verb = len(words) == 1 and words[0][2].endswith(("ed", "ing", "ly"))
        if words and len(words) <= 5 and not lone_verb:
            start, end = words[0][0], words[-1][1]
            found.append(Phrase(sentence[start:end], start, end, _kind(words)))

    for match in _WORD.finditer(sentence):
        raw = match.group()
        core = raw.strip(_SIGNS)
        if not core:
            close()
            continue
        start = match.start() + raw.index(core)
        if raw[0] in _OPENING:
            close()
        lower = core.lower()
        named = bool(run) and run[-1][2][:1].isupper()
        if lower not in STOP_WORDS or (lower in _LINKS and named and lower != "and"):
            run.append((start, start + len(core), core))
        else:
            close()
        if not raw.endswith(core):
            close()
    close()
    return found


def _kind(words: list[tuple[int, int, str]]) -> str:
    texts = [word for _, _, word in words]
    if any(_YEAR.match(text) for text in texts):
        return "year"
    if any(_NUMBER.match(text) for text in texts):
        return "number"
    if all(text[:1].isupper() or text in _LINKS for text in texts) and words[0][0] > 0:
        return "name"
    return "thing"


_ASK = {
    "year": ["when", "when", "what year", "in what year", "what date"],
    "number": ["how many", "how many", "how much", "what number of", "what amount"],
    "name": ["who", "who", "what", "which", "where", "whose", "what is the name of"],
    "thing": ["what", "what", "what", "what kind of", "which", "how", "what type of thing"],
}
_WEIGHT = {"year": 4.0, "number": 3.0, "name": 3.5, "thing": 1.3}
_AUXILIARIES = ["did", "was", "is", "does", "were", "has", "are", "do"]


def _answer_part(phrase: Phrase, rng: random.Random) -> Phrase:
    """The phrase, or sometimes only the number in it: "30 million" of "30 million people"."""
    words = phrase.text.split()
    if phrase.kind == "number" and len(words) > 1 and rng.random() < 0.6:
        cut = 2 if words[1].lower() in ("million", "billion", "thousand", "percent") else 1
        text = " ".join(words[:cut])
        if sentence_safe(text):
            return Phrase(text, phrase.start, phrase.start + len(text), "number")
    return phrase


def sentence_safe(text: str) -> bool:
    """Whether an answer is worth asking for."""
    return len(text) >= 1 and any(c.isalnum() for c in text) and len(text.split()) <= 6


def _inflect(word: str, rng: random.Random) -> str:
    if rng.random() > 0.25 or len(word) < 5:
        return word
    for ending, other in (("ing", "e"), ("ed", ""), ("ies", "y"), ("s", ""), ("ly", "")):
        if word.endswith(ending):
            return word[: -len(ending)] + other
    return word


def worded(sentence: str, phrase: Phrase, rng: random.Random, *, wide: bool = False) -> str:
    """The sentence as a question for the phrase."""
    before = sentence[: phrase.start].split()
    after = sentence[phrase.end :].split()
    reach = rng.randint(4, 12) * (2 if wide else 1)
    share = rng.random()
    left = before[-max(1, round(reach * share)) :] if before else []
    right = after[: max(2, reach - len(left))]
    noisy = []
    for part in (left, right):
        words = []
        for raw in part:
            word = raw.strip(_SIGNS).lower()
            stop = word in STOP_WORDS
            if not word or rng.random() < (0.3 if stop else 0.12):
                continue
            words.append(word if stop else _inflect(word, rng))
        if len(words) > 3 and rng.random() < 0.2:
            at = rng.randrange(len(words) - 1)
            words[at], words[at + 1] = words[at + 1], words[at]
        noisy.append(words)
    left, right = noisy
    ask = rng.choice(_ASK[phrase.kind]).split()
    if rng.random() < 0.4:
        ask = [*ask, rng.choice(_AUXILIARIES)]
    shape = rng.random()
    if shape < 0.3:
        words = [*left, *ask, *right]
    elif shape < 0.65:
        words = [*ask, *right, *left]
    else:
        words = [*ask, *left, *right]
    return " ".join(words) + rng.choice(["?", "?", "?", " ?", ""])


def cloze(article: Article, rng: random.Random) -> Synthetic | None:
    """A question about one phrase of the article, or None where the draw is no good."""
    index = rng.randrange(len(article.sentences))
    sentence = article.sentences[index]
    found = [p for p in phrases(sentence) if sentence_safe(p.text)]
    if len(found) < 2:
        return None
    weights = [_WEIGHT[p.kind] for p in found]
    phrase = _answer_part(rng.choices(found, weights)[0], rng)
    question = worded(sentence, phrase, rng)
    content = [w for w in re.findall(r"\w+", question) if w not in STOP_WORDS]
    if len(content) < 3:
        return None
    return Synthetic(question, phrase.text, index, phrase.start, None)


def recurring(article: Article, rng: random.Random) -> Synthetic | None:
    """A question whose answer is a phrase that the article says twice, or None."""
    spots: dict[str, list[tuple[int, Phrase]]] = {}
    for index, sentence in enumerate(article.sentences):
        for phrase in phrases(sentence):
            if len(phrase.text) > 3:
                spots.setdefault(phrase.text.lower(), []).append((index, phrase))
    twice = [s for s in spots.values() if len({index for index, _ in s}) == 2]
    if not twice:
        return None
    chosen = rng.choice(twice)
    first, second = rng.sample(chosen, 2)
    if first[0] == second[0]:
        return None
    asked, phrase = first
    question = worded(article.sentences[asked], phrase, rng, wide=True)
    place, answer = second
    only = article.sentences[place].lower().count(answer.text.lower()) == 1
    return Synthetic(question, answer.text, place, answer.start if only else -1, asked)
