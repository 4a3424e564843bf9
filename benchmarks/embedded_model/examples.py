"""Training examples: questions set among passages, answerable and not."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.embedded_model.sources import Article, Row, content_words
from benchmarks.embedded_model.synthesis import cloze, phrases, recurring
from rag_fti import prompts


@dataclass(frozen=True)
class Example:
    """One prompt and its answer."""

    kind: str
    question: str
    passages: tuple[prompts.Passage, ...]
    answer: str
    """Empty where the passages do not tell."""
    gold: int = -1
    """Index of the passage that tells."""
    start: int = -1
    """Character offset of the answer in its passage, -1 where unknown or ambiguous."""
    accepted: tuple[str, ...] = field(default=())
    """Other right answers (development only)."""


@dataclass(frozen=True)
class Sources:
    """Everything examples are drawn from."""

    rows: tuple[Row, ...]
    articles: dict[str, list[Article]]

    def by_document(self) -> dict[str, list[str]]:
        """Sentences of each labelled document, in file order."""
        found: dict[str, dict[str, None]] = collections.defaultdict(dict)
        for row in self.rows:
            found[row.document][row.sentence] = None
        return {document: list(parts) for document, parts in found.items()}


_SOURCE_WEIGHTS = {
    "hotpotqa": 5.0,
    "scifact": 4.0,
    "webpages": 4.0,
    "texts": 1.5,
    "cranfield": 1.0,
    "peps": 0.7,
}


class Builder:
    """Draws examples; the same seed draws the same ones."""

    def __init__(self, sources: Sources, seed: int) -> None:
        self.rows = sources.rows
        self.documents = sources.by_document()
        self.articles = sources.articles
        self.rng = random.Random(seed)
        self.names = [name for name in _SOURCE_WEIGHTS if self.articles.get(name)]
        self.weights = [_SOURCE_WEIGHTS[name] for name in self.names]
        self.qamr_documents = sorted({r.document for r in self.rows if r.source == "qamr"})

    # -- passages ---------------------------------------------------------------------------

    def article(self) -> Article:
        """A random article, Wikipedia-like ones more often."""
        name = self.rng.choices(self.names, self.weights)[0]
        return self.rng.choice(self.articles[name])

    def window(self, article: Article, around: int, most: int) -> tuple[int, int]:
        """Sentence range of at most ``most`` sentences that includes ``around``."""
        size = min(len(article.sentences), self.rng.randint(1, most))
        latest = min(around, len(article.sentences) - size)
        first = self.rng.randint(max(0, around - size + 1), latest)
        return first, first + size

    def stranger(self, avoid: str = "") -> prompts.Passage:
        """A passage from somewhere else that does not hold the words ``avoid``."""
        for _ in range(20):
            if self.rng.random() < 0.5:
                parts = self.documents[self.rng.choice(self.qamr_documents)]
                text = " ".join(self.rng.sample(parts, min(len(parts), self.rng.randint(1, 4))))
                title = ""
            else:
                article = self.article()
                at = self.rng.randrange(len(article.sentences))
                first, last = self.window(article, at, 4)
                text = " ".join(article.sentences[first:last])
                title = article.title if self.rng.random() < 0.5 else ""
            if not avoid or avoid.lower() not in text.lower():
                return prompts.Passage(text, title=title)
        return prompts.Passage("Nothing else is known.")

    def titled(self, text: str, title: str = "") -> prompts.Passage:
        """The text as a passage, under a title or heading now and then."""
        heading = ""
        if self.rng.random() < 0.15:
            names = [p.text for p in phrases(text) if p.kind == "name"]
            heading = self.rng.choice(names) if names else ""
        shown = title if self.rng.random() < 0.5 else ""
        return prompts.Passage(text, title=shown, heading=heading)

    def neighbours(self, row: Row, most: int) -> list[str]:
        """Other sentences of the row's document."""
        others = [s for s in self.documents[row.document] if s != row.sentence]
        return self.rng.sample(others, min(len(others), self.rng.randint(0, most)))

    def paragraph(self, row: Row, most: int = 6) -> tuple[str, int]:
        """The row's sentence among others, and where in the text it starts."""
        before = self.neighbours(row, most)
        if self.rng.random() < 0.25:
            article = self.article()
            first, last = self.window(article, self.rng.randrange(len(article.sentences)), 3)
            before += article.sentences[first:last]
        at = self.rng.randint(0, len(before))
        parts = [*before[:at], row.sentence, *before[at:]]
        return " ".join(parts), sum(len(part) + 1 for part in before[:at])

    def place(
        self,
        kind: str,
        question: str,
        answer: str,
        gold: prompts.Passage,
        start: int,
        distractors: Sequence[prompts.Passage],
    ) -> Example:
        """The gold passage at a random rank among the distractors."""
        rank = self.rng.randint(0, len(distractors))
        passages = (*distractors[:rank], gold, *distractors[rank:])
        return Example(kind, question, passages, answer, rank, start)

    # -- kinds ------------------------------------------------------------------------------

    def single(self, row: Row) -> Example:
        """A labelled question with the paragraph that answers it."""
        kind = {"policyqa": "policy", "covidqa": "covid"}.get(row.source, "qamr")
        if row.source == "qamr":
            text, offset = self.paragraph(row)
        else:
            text, offset = row.sentence, 0
        start = offset + row.sentence.index(row.answer)
        return self.place(kind, row.question, row.answer, self.titled(text), start, [])

    def multi(self, row: Row) -> Example:
        """A labelled question whose paragraph stands among others."""
        text, offset = self.paragraph(row, 3)
        start = offset + row.sentence.index(row.answer)
        distractors = []
        near = [s for s in self.documents[row.document] if s not in text]
        self.rng.shuffle(near)
        for _ in range(self.rng.choice([1, 1, 2, 2, 3, 4, 4])):
            if near and self.rng.random() < 0.6:
                size = self.rng.randint(1, 4)
                taken, near = near[:size], near[size:]
                distractors.append(self.titled(" ".join(taken)))
            else:
                distractors.append(self.stranger())
        return self.place("multi", row.question, row.answer, self.titled(text), start, distractors)

    def absent(self, row: Row) -> Example:
        """A labelled question with paragraphs that do not answer it."""
        near = [
            s
            for s in self.documents[row.document]
            if s != row.sentence and row.answer.lower() not in s.lower()
        ]
        passages = []
        count = self.rng.choice([1, 1, 1, 2, 3, 4, 5])
        for _ in range(count):
            if near and self.rng.random() < 0.7 and row.source == "qamr":
                size = self.rng.randint(1, 6 if count == 1 else 3)
                taken = self.rng.sample(near, min(size, len(near)))
                passages.append(self.titled(" ".join(taken)))
            else:
                passages.append(self.stranger(row.answer))
        return Example("absent", row.question, tuple(passages), "")

    def near_miss(self, row: Row) -> Example | None:
        """A labelled question with the text of its document that is most like it, answer left out.

        None where nothing in the document is like the question.
        """
        asked = set(content_words(row.question))
        near = [
            (len(asked & set(content_words(s))) + self.rng.random(), s)
            for s in self.documents[row.document]
            if s != row.sentence and row.answer.lower() not in s.lower()
        ]
        near.sort(reverse=True)
        closest = [s for overlap, s in near[: self.rng.randint(1, 8)] if overlap >= 1]
        if not closest:
            return None
        self.rng.shuffle(closest)
        passages = []
        while closest:
            size = self.rng.randint(1, 4)
            passages.append(self.titled(" ".join(closest[:size])))
            closest = closest[size:]
        if self.rng.random() < 0.3:
            passages.append(self.stranger(row.answer))
        self.rng.shuffle(passages)
        return Example("near_miss", row.question, tuple(passages), "")

    def other_name(self, row: Row) -> Example | None:
        """A labelled question about somebody else: a name of it is replaced by another.

        The paragraph answers the question before the replacement, and does not hold the name
        after it. None where the question names nothing of the sentence.
        """
        first_word = row.question.split(" ", 1)[0]
        names = [
            p.text
            for p in phrases(row.question)
            if p.kind == "name" and p.text in row.sentence and p.text != first_word
        ]
        if not names:
            return None
        text, _ = self.paragraph(row, 4)
        others = [
            p.text
            for s in self.documents[row.document]
            for p in phrases(s)
            if p.kind == "name" and p.text not in text and p.text not in row.question
        ]
        if not others:
            return None
        asked = row.question.replace(self.rng.choice(names), self.rng.choice(others))
        return Example("near_miss", asked, (self.titled(text),), "")

    def question(self, row: Row) -> Example:
        """Write the question that the answer answers."""
        text, offset = self.paragraph(row, 2) if row.source == "qamr" else (row.sentence, 0)
        start = offset + row.sentence.index(row.answer)
        return Example("question", row.question, (self.titled(text),), row.answer, 0, start)

    def synthetic(self) -> Example | None:
        """A cloze or recurring-span question from raw text, alone, among others or unanswerable."""
        article = self.article()
        made = (recurring if self.rng.random() < 0.3 else cloze)(article, self.rng)
        if made is None:
            return None
        first, last = self.window(article, made.sentence, 7)
        parts = [
            (index, article.sentences[index])
            for index in range(first, last)
            if index != made.without
        ]
        title = article.title
        rest = [
            s
            for i, s in enumerate(article.sentences)
            if not first <= i < last and i != made.without
        ]
        kind = "cloze" if made.without is None else "recurring"
        draw = self.rng.random()
        if draw < 0.15:
            away = [
                s
                for s in (*(s for i, s in parts if i != made.sentence), *rest)
                if made.answer.lower() not in s.lower()
            ]
            if not away or self.rng.random() < 0.3:
                return Example(kind, made.question, (self.stranger(made.answer),), "")
            text = " ".join(away[: self.rng.randint(1, 7)])
            return Example(kind, made.question, (self.titled(text, title),), "")
        text = " ".join(sentence for _, sentence in parts)
        before = sum(len(sentence) + 1 for index, sentence in parts if index < made.sentence)
        start = -1 if made.start < 0 else before + made.start
        distractors = []
        if draw < 0.35:
            if rest and self.rng.random() < 0.6:
                distractors.append(self.titled(" ".join(rest[:5]), title))
            distractors += [self.stranger() for _ in range(self.rng.choice([0, 1, 1, 2]))]
        gold = self.titled(text, title)
        return self.place(kind, made.question, made.answer, gold, start, distractors)


def specific(row: Row, least: int) -> bool:
    """Whether a question says enough to be asked of more than its own sentence."""
    asked = set(content_words(row.question)) - {"kind", "type", "something", "someone"}
    return len(asked) >= least and row.answer.lower() not in row.question.lower()


def build(sources: Sources, *, seed: int, synthetic: int, scale: float = 1.0) -> Iterator[Example]:
    """The whole pool of training examples, in no useful order.

    Args:
        sources: Labelled rows and raw text of the training split.
        seed: Decides every draw.
        synthetic: Number of examples made from raw text.
        scale: Share of the labelled rows to use, for trying things out.
    """
    make = Builder(sources, seed)
    rows = list(sources.rows)
    make.rng.shuffle(rows)
    rows = rows[: round(len(rows) * scale)]
    for row in rows:
        if row.source != "qamr" or specific(row, 2):
            yield make.single(row)
    for row in rows:
        if row.source == "qamr" and specific(row, 2) and make.rng.random() < 0.75:
            yield make.multi(row)
        if row.source == "covidqa":
            yield make.multi(row)
        if (specific(row, 3) or row.source == "covidqa") and make.rng.random() < 0.6:
            yield make.absent(row)
        if row.source != "policyqa" and specific(row, 2) and make.rng.random() < 0.4:
            yield make.question(row)
    made = 0
    while made < synthetic:
        example = make.synthetic()
        if example is not None:
            made += 1
            yield example
    yield from near_misses(Builder(sources, seed + 1), rows)


def near_misses(make: Builder, rows: Sequence[Row]) -> Iterator[Example]:
    """Questions that the passages nearly answer."""
    for row in rows:
        if row.source != "qamr" or not specific(row, 3):
            continue
        draw = make.rng.random()
        example = make.other_name(row) if draw < 0.2 else None
        if example is None and draw < 0.7:
            example = make.near_miss(row)
        if example is not None:
            yield example
