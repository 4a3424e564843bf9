"""Which language a text is in, roughly: by its script and its commonest words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORDS = {
    "en": "the and of to in is that for it with as was on be are this by from at not or have an if "
    "what which who how when where does can has must before",
    "de": "der die und das ist nicht von mit den zu ein eine auf im für sich des dem auch werden "
    "wie was wer wo wann es sie wird sind vor oder welches",
    "fr": "le la les et des est une dans pour que qui par sur pas au du avec ce il nous sont de ne "
    "se où quelle quel quand combien cette aux ou avant",
    "es": "el la los las de que en un una por con para se del es no su al lo como más qué cuál "
    "cuándo dónde quién hay está son antes",
    "it": "il la che di un una per con non del della in sono si dei le gli anche come qual quando "
    "dove chi ci nel nella alla da prima",
    "pt": "as de que em um uma para não do da se por dos mais como foi qual quando onde quem na no "
    "há está são ao antes até pela pelo este esta seu sua também",
    "nl": "de het een en van in is dat op te voor met niet zijn aan er ook als bij wordt wat wie "
    "waar hoe worden die deze uit",
    "sv": "och att det som en på är av för med till den har inte om ett var jag de kan vad vem när "
    "hur finns från under innan",
    "pl": "na do się nie to że jest za po przez dla od jak ale czy być kto gdzie kiedy ile jakie "
    "jaki są przed przy oraz",
}
"""Without words of one letter, and Portuguese ``os`` and ``com``: tables, addresses and code have
them too."""
_SCRIPTS = {
    "CYRILLIC": "ru", "GREEK": "el", "HEBREW": "he", "ARABIC": "ar", "HANGUL": "ko",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "THAI": "th", "DEVANAGARI": "hi",
}  # fmt: skip
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_SAMPLE_CHARS = 8000
_LEAST_SHARE = 0.05
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str:
    """Two-letter code of a text's language; empty where nothing tells."""
    sample = text[:_SAMPLE_CHARS].lower()
    letters = [char for char in sample[:: 1 + len(sample) // 1000] if char.isalpha()]
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    if letters and scripts:
        if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * len(letters):
            return "ja"
        script, count = scripts.most_common(1)[0]
        if script in _SCRIPTS and count > 0.4 * len(letters):
            return _SCRIPTS[script]
    words = Counter(_WORD.findall(sample))
    scores = {lang: sum(words[word] for word in common) for lang, common in _COMMON.items()}
    best, second = sorted(scores, key=lambda lang: scores[lang], reverse=True)[:2]
    enough = max(scores[second] + 1, _LEAST_SHARE * words.total())
    several = len(words.keys() & _COMMON[best]) > 1
    return best if several and scores[best] >= enough else ""
