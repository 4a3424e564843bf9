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
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key", bound=Hashable)

_KEPT = 2000
_SKETCH = 4
_MISSED = 1e-6
_ROUNDING = 1e-9


def question_shingles(text: str, *, width: int = 4) -> frozenset[int]:
    """Hashes of the character 4-grams of a question's words; case and punctuation aside."""
    plain = " " + " ".join(re.findall(r"\w+", text.casefold())) + " "
    return frozenset(
        zlib.crc32(plain[n : n + width].encode()) for n in range(max(1, len(plain) - width + 1))
    )


@dataclass(frozen=True)
class DocumentShingles:
    """Hashes of the word 5-grams of a document: 8 KB at most, however long it is."""

    count: int
    """How many there are."""
    smallest: npt.NDArray[np.uint32]
    """The 2,000 smallest of them, ascending: all of most documents."""

    def similarity(self, other: DocumentShingles) -> float:
        """Jaccard similarity in [0, 1].

        Exact where all hashes of both are kept. Otherwise the share among the 2,000 smallest
        hashes of both together that both have: hashing orders 5-grams at random, so that is off
        by about .01 (bottom-k sketch, Cohen and Kaplan 2007).
        """
        shared = np.intersect1d(self.smallest, other.smallest, assume_unique=True)
        if max(self.count, other.count) <= _KEPT:
            every = self.count + other.count - len(shared)
            return len(shared) / every if every else 1.0
        together = np.union1d(self.smallest, other.smallest)[:_KEPT]
        return int(np.count_nonzero(shared <= together[-1])) / len(together)


def document_shingles(text: str) -> DocumentShingles:
    """What is compared of a document."""
    hashes = _word_grams(text)
    ordered = np.sort(np.fromiter(hashes, dtype=np.uint32, count=len(hashes)))
    return DocumentShingles(len(hashes), ordered[:_KEPT].copy())


def document_sketch(text: str) -> list[int]:
    """The 4 smallest hashes of a document's word 5-grams; none for a text without words.

    Hashing orders all 5-grams at random, so of two documents with Jaccard similarity ``j`` the
    sketches share nothing with a probability of about ``(1 - j) ** 4`` only: .002 at .8 (Broder,
    1997).
    """
    return heapq.nsmallest(_SKETCH, _word_grams(text))


def _word_grams(text: str, *, width: int = 5) -> frozenset[int]:
    """None for a text without words, one for a text of up to ``width`` words."""
    words = re.findall(r"\w+", text.casefold())
    return frozenset(
        zlib.crc32(" ".join(words[n : n + width]).encode())
        for n in range(max(len(words) - width + 1, min(1, len(words))))
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


def question_index(questions: Iterable[str], *, similarity: float) -> NearDuplicates[int]:
    """An index of questions, numbered from 0."""
    index: NearDuplicates[int] = NearDuplicates(similarity)
    for number, question in enumerate(questions):
        index.add(number, question_shingles(question))
    return index


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


def group_documents(texts: Iterable[tuple[str, str]], *, similarity: float, groups: Groups) -> None:
    """Join documents that are near duplicates of one another.

    Compared are documents that share one of their smallest hashes, so many of them that two
    documents of just this similarity share none once in a million times. Texts are read one by
    one; kept are 8 KB of hashes per document at most.

    Args:
        texts: Document ids with their texts.
        similarity: Jaccard similarity of word 5-grams from which two are joined, in (0, 1].
        groups: Receives the result.
    """
    sketch = math.ceil(math.log(_MISSED) / math.log1p(-min(similarity, 1 - _MISSED)))
    known: dict[str, DocumentShingles] = {}
    postings: dict[int, list[str]] = {}
    for document, text in texts:
        shingles = document_shingles(text)
        groups.join([document])
        elements = shingles.smallest[:sketch].tolist()
        for other in sorted({name for element in elements for name in postings.get(element, ())}):
            if (
                groups.find(other) != groups.find(document)
                and shingles.similarity(known[other]) >= similarity
            ):
                groups.join([document, other])
        known[document] = shingles
        for element in elements:
            postings.setdefault(element, []).append(document)
