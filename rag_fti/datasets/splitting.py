"""Train, validation and test: by document and near-duplicate group, never by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rag_fti import ids
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.near_duplicates import (
    Groups,
    NearDuplicates,
    group_documents,
    question_shingles,
)


def group_of_each(
    candidates: Sequence[Candidate], texts: Iterable[tuple[str, str]], *, similarity: float
) -> list[str]:
    """The group that each candidate must stay together with.

    Candidates share a group when their answers lie in the same document or in near-duplicate
    documents, or when their questions are near duplicates; and so on along the chain.

    Args:
        candidates: Candidates; those without a chunk are grouped by their question alone.
        texts: Document ids with their texts, of all documents with candidates; read once.
        similarity: Jaccard similarity that counts as a near duplicate.

    Returns:
        One group name per candidate.
    """
    groups = Groups()
    group_documents(texts, similarity=similarity, groups=groups)
    index: NearDuplicates[int] = NearDuplicates(similarity)
    names: list[str] = []
    for number, candidate in enumerate(candidates):
        documents = sorted({hit.document_id for hit in candidate.chunks})
        name = documents[0] if documents else f"question {number}"
        groups.join([name, *documents])
        shingles = question_shingles(candidate.question)
        groups.join([name, *(names[other] for other, _ in index.find(shingles))])
        index.add(number, shingles)
        names.append(name)
    return [ids.content_id("group", groups.find(name))[:16] for name in names]


@dataclass(frozen=True)
class Shares:
    """Shares of the rows, in [0, 1)."""

    validation: float
    test: float


def assign_splits(groups: Sequence[str], *, shares: Shares, seed: int) -> dict[str, str]:
    """Give whole groups to splits so that the shares of rows come close to what is asked.

    Args:
        groups: Group of each row.
        shares: Wanted shares.
        seed: Decides which groups go where.

    Returns:
        Split of each group. The largest group always trains.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    order = sorted(sizes, key=lambda group: ids.content_id("split", str(seed), group))
    largest = max(sizes, key=lambda group: (sizes[group], group), default="")
    wanted = {"test": shares.test * len(groups), "validation": shares.validation * len(groups)}
    have = {"test": 0, "validation": 0}
    result = {}
    for group in order:
        split = "train"
        if group != largest:
            for name in ("test", "validation"):
                # Half a group too many is nearer than half a group too few.
                if wanted[name] and have[name] + sizes[group] / 2 <= wanted[name]:
                    split = name
                    have[name] += sizes[group]
                    break
        result[group] = split
    return result


@dataclass(frozen=True)
class Leakage:
    """What two splits share; all empty in a clean dataset."""

    groups: int
    documents: int
    questions: int

    @property
    def total(self) -> int:
        """Everything shared."""
        return self.groups + self.documents + self.questions


def measure_leakage(
    candidates: Sequence[Candidate],
    groups: Sequence[str],
    splits: Sequence[str],
    *,
    similarity: float,
) -> Leakage:
    """Check a split by its result alone, without trusting how it was made.

    Args:
        candidates: Candidates.
        groups: Group of each.
        splits: Split of each.
        similarity: Jaccard similarity that counts as a near duplicate.

    Returns:
        Groups and answer documents that are in more than one split, and questions with a near
        duplicate in another split.
    """
    where_groups: dict[str, set[str]] = {}
    where_documents: dict[str, set[str]] = {}
    index: NearDuplicates[int] = NearDuplicates(similarity)
    questions = 0
    for number, (candidate, group, split) in enumerate(
        zip(candidates, groups, splits, strict=True)
    ):
        where_groups.setdefault(group, set()).add(split)
        for hit in candidate.chunks:
            where_documents.setdefault(hit.document_id, set()).add(split)
        shingles = question_shingles(candidate.question)
        questions += any(splits[other] != split for other, _ in index.find(shingles))
        index.add(number, shingles)
    return Leakage(
        groups=sum(len(found) > 1 for found in where_groups.values()),
        documents=sum(len(found) > 1 for found in where_documents.values()),
        questions=questions,
    )
