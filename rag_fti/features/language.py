"""Which language a text is in, roughly: by its script and its commonest words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "en": "the and of to in is that for it with as was on be are this by from at not or have",
    "de": "der die und das ist nicht von mit den zu ein eine auf im für sich des dem auch werden",
    "fr": "le la les et des est une dans pour que qui par sur pas au du avec ce il nous sont",
    "es": "el la los las y de que en un una por con para se del es no su al lo como más",
    "it": "il la che di e un una per con non del della in sono si dei le gli anche come",
    "pt": "o a os as e de que em um uma para com não do da se por dos mais como foi",
    "nl": "de het een en van in is dat op te voor met niet zijn aan er ook als bij wordt",
    "sv": "och att det som en på är av för med till den har inte om ett var jag de kan",
    "pl": "i w na z do się nie to że jest o za po przez dla od jak ale czy być",
}
_SCRIPTS = {
    "CYRILLIC": "ru", "GREEK": "el", "HEBREW": "he", "ARABIC": "ar", "HANGUL": "ko",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "THAI": "th", "DEVANAGARI": "hi",
}  # fmt: skip
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_SAMPLE_CHARS = 8000
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str:
    """Two-letter code of a text's language; empty where nothing tells."""
    sample = text[:_SAMPLE_CHARS].lower()
    letters = [char for char in sample[::7] if char.isalpha()]
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    if letters and scripts:
        if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * len(letters):
            return "ja"
        script, count = scripts.most_common(1)[0]
        if script in _SCRIPTS and count > 0.4 * len(letters):
            return _SCRIPTS[script]
    words = Counter(_WORD.findall(sample))
    total = sum(words.values())
    scores = {lang: sum(words[word] for word in common) for lang, common in _COMMON.items()}
    best = max(scores, key=lambda lang: scores[lang])
    return best if total and scores[best] >= 0.05 * total else ""
