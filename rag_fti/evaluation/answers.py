"""How close an answer is to an accepted one: exact match and F1 as in SQuAD.

Formulas: Rajpurkar et al. 2016 (SQuAD); normalisation as in its evaluation script (lower case,
no punctuation, no articles, single spaces). Citation markers are taken off first.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rag_fti import prompts
from rag_fti.alignment import decomposed

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])"
)
"""Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, ideographs.
Each is a word of its own, as in CMRC 2018 (Cui et al. 2019) and MLQA (Lewis et al. 2020)."""


def normalise(text: str) -> str:
    """``text`` as it is compared: folded case, no markers, punctuation or articles."""
    bare = prompts.without_markers(text)
    parts = "".join(decomposed(bare, index) for index in range(len(bare)))
    folded = unicodedata.normalize("NFC", parts).casefold()
    plain = "".join(
        c for c in folded if c not in string.punctuation and unicodedata.category(c)[0] != "P"
    )
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether both are the same after :func:`normalise`."""
    return normalise(answer) == normalise(expected)


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of word precision and recall, in [0, 1]; two empty texts score 1.

    In scripts without spaces each character counts as a word.
    """
    got, wanted = _words(answer), _words(expected)
    if not got or not wanted:
        return float(got == wanted)
    common = sum((Counter(got) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(got), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return _UNSPACED.sub(r" \1 ", normalise(text)).split()


def best_exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Exact match with any of the accepted answers."""
    return any(exact_match(answer, expected) for expected in accepted)


def best_f1(answer: str, accepted: Sequence[str]) -> float:
    """F1 with the closest accepted answer; 0 where none is given."""
    return max((f1(answer, expected) for expected in accepted), default=0.0)
