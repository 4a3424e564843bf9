"""Texts that say nearly the same: exact Jaccard similarity without comparing all pairs.

Two sets with Jaccard similarity of at least ``t`` share an element among the first
``|x| - ceil(t |x|) + 1`` of each, in any order common to both (prefix filter, Chaudhuri et al.
2006). Only these elements are indexed, so unrelated texts never meet.
"""

from __future__ import annotations

import heapq
import math
import re
import zlib
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_SAMPLED_ABOVE = 2000
_SKETCH = 4
_ROUNDING = 1e-9


def question_shingles(text: str, *, width: int = 4) -> frozenset[int]:
    """Hashes of the character 4-grams of a question's words; case and punctuation aside."""
    plain = " " + " ".join(re.findall(r"\w+", text.casefold())) + " "
    return frozenset(
        zlib.crc32(plain[n : n + width].encode()) for n in range(max(1, len(plain) - width + 1))
    )


@dataclass(frozen=True)
class DocumentShingles:
    """Hashes of the word 5-grams of a document."""

    count: int
    """How many there are."""
    whole: frozenset[int] | None
    """All of them; None for long documents."""
    sampled: frozenset[int]
    """Those divisible by 8: the same ones in each document, so similarities stay what they are
    on average."""

    def similarity(self, other: DocumentShingles) -> float:
        """Jaccard similarity in [0, 1]; of samples where one of both documents is long."""
        if self.whole is not None and other.whole is not None:
            return jaccard(self.whole, other.whole)
        return jaccard(self.sampled, other.sampled)


def document_shingles(text: str) -> DocumentShingles:
    """What is compared of a document."""
    hashes = _word_grams(text)
    return DocumentShingles(
        len(hashes),
        hashes if len(hashes) <= _SAMPLED_ABOVE else None,
        frozenset(value for value in hashes if value % 8 == 0),
    )


def document_sketch(text: str) -> list[int]:
    """The 4 smallest hashes of a document's word 5-grams; none for a text without words.

    Hashing orders all 5-grams at random, so of two documents with Jaccard similarity ``j`` the
    sketches share nothing with a probability of about ``(1 - j) ** 4`` only: .002 at .8 (Broder,
    1997).
    """
    return heapq.nsmallest(_SKETCH, _word_grams(text)) if re.search(r"\w", text) else []


def _word_grams(text: str, *, width: int = 5) -> frozenset[int]:
    words = re.findall(r"\w+", text.casefold())
    return frozenset(
        zlib.crc32(" ".join(words[n : n + width]).encode())
        for n in range(max(1, len(words) - width + 1))
    )


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared elements by all elements, in [0, 1]."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if one or other else 1.0


class NearDuplicates(Generic[Key]):
    """An index of texts that finds near duplicates of another text.

    Args:
        similarity: Jaccard similarity from which two texts are near duplicates, in (0, 1].
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._sets: dict[Key, frozenset[int]] = {}
        self._postings: dict[int, list[Key]] = {}

    def add(self, key: Key, shingles: frozenset[int]) -> None:
        """Put a text into the index."""
        self._sets[key] = shingles
        for element in self._prefix(shingles):
            self._postings.setdefault(element, []).append(key)

    def find(self, shingles: frozenset[int]) -> list[tuple[Key, float]]:
        """Near duplicates in the index with their similarity, most similar first."""
        met: set[Key] = set()
        for element in self._prefix(shingles):
            met.update(self._postings.get(element, ()))
        size = len(shingles)
        scored = [
            (key, jaccard(shingles, self._sets[key]))
            for key in met
            # Sets whose sizes differ more cannot be that similar.
            if self._similarity * size - _ROUNDING <= len(self._sets[key])
            and self._similarity * len(self._sets[key]) - _ROUNDING <= size
        ]
        close = [(key, score) for key, score in scored if score >= self._similarity]
        return sorted(close, key=lambda pair: (-pair[1], str(pair[0])))

    def _prefix(self, shingles: frozenset[int]) -> list[int]:
        count = len(shingles) - math.ceil(self._similarity * len(shingles) - _ROUNDING) + 1
        return sorted(shingles)[:count]


class Groups:
    """Disjoint sets of names (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        """The name that stands for the set of ``name``."""
        root = name
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while self._parent[name] != root:
            self._parent[name], name = root, self._parent[name]
        return root

    def join(self, names: Iterable[str]) -> None:
        """Put several names into one set; the smallest of their names stands for it."""
        roots = sorted({self.find(name) for name in names})
        for root in roots[1:]:
            self._parent[root] = roots[0]


def group_documents(texts: Mapping[str, str], *, similarity: float, groups: Groups) -> None:
    """Join documents that are near duplicates of one another.

    Args:
        texts: Text by document id.
        similarity: Jaccard similarity of word 5-grams from which two are joined.
        groups: Receives the result.
    """
    whole: NearDuplicates[str] = NearDuplicates(similarity)
    sampled: NearDuplicates[str] = NearDuplicates(similarity)
    for document, text in texts.items():
        shingles = document_shingles(text)
        groups.join([document])
        if shingles.whole is not None:
            groups.join([document, *(other for other, _ in whole.find(shingles.whole))])
            whole.add(document, shingles.whole)
        # A short document can be the near duplicate of a long one only if it is nearly as long.
        if shingles.count > _SAMPLED_ABOVE * similarity:
            groups.join([document, *(other for other, _ in sampled.find(shingles.sampled))])
            sampled.add(document, shingles.sampled)
