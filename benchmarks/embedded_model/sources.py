"""Questions and raw text to train on, with the development split held out by document."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STOP = (
    "a about above after again against all also am an and any are as "
    "at be because been before being below between both but by can could did "
    "do does doing down during each even few for from further had has have "
    "having he her here hers him himself his how however i if in into "
    "is it its itself just may me might more most much must my no "
    "nor not of off on once only or other our out over own same "
    "she should so some such than that the their them then there these they "
    "this those through to too under until up upon us use used very was "
    "we were what when where which while who whom whose why will with within "
    "without would you your "
)
STOP_WORDS = frozenset(_STOP.split())
_DEV_SHARE = 20
_XQUAD_GRAM = 8


@dataclass(frozen=True)
class Row:
    """One labelled question."""

    question: str
    sentence: str
    """The text that holds the answer: a sentence (QAMR) or a window."""
    answer: str
    document: str
    source: str


@dataclass(frozen=True)
class Article:
    """Raw text as sentences, in order."""

    title: str
    sentences: tuple[str, ...]
    source: str


def data_root() -> Path:
    """The shared data: ``RAG_FTI_SHARED_DATA``, or ``../shared/data`` beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("RAG_FTI_SHARED_DATA", beside))


def content_words(text: str) -> list[str]:
    """Lower-case words of ``text`` that are not stop words."""
    return [w for w in re.findall(r"\w+", text.lower()) if w not in STOP_WORDS]


def sentences(text: str) -> list[str]:
    """A plain sentence splitter: good enough for building training data."""
    text = re.sub(r"\s+", " ", text).strip()
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z\"'(\[])", text)
    return [part for part in (p.strip() for p in parts) if len(part.split()) >= 4]


def held_out(document: str, *, one_in: int = _DEV_SHARE) -> bool:
    """Whether a document belongs to the development split (always the same share of them)."""
    return int(hashlib.sha256(document.encode()).hexdigest(), 16) % one_in == 0


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    for start in range(len(words) - _XQUAD_GRAM + 1):
        yield tuple(words[start : start + _XQUAD_GRAM])


def shares_text(text: str, grams: set[tuple[str, ...]]) -> bool:
    """Whether ``text`` holds one of the word sequences."""
    return not grams.isdisjoint(_grams(text))


def test_grams(root: Path) -> set[tuple[str, ...]]:
    """Word 8-grams of the XQuAD paragraphs: text that shares one is left out of training."""
    data = json.loads((root / "xquad" / "xquad_en_open.json").read_text())["data"]
    contexts = (p["context"] for article in data for p in article["paragraphs"])
    return {gram for context in contexts for gram in _grams(context)}


def read_rows(root: Path) -> tuple[list[Row], list[Row]]:
    """Labelled questions for training and for development."""
    tested = test_grams(root)
    train: list[Row] = []
    dev: list[Row] = []
    seen: set[tuple[str, str, str]] = set()
    clean: dict[str, bool] = {}
    for name in ("qamr", "policyqa", "covidqa"):
        for line in (root / "qa_train" / f"{name}.jsonl").read_text().splitlines():
            raw = json.loads(line)
            context, answer = raw["context"], raw["answer"].strip()
            if context not in clean:
                clean[context] = tested.isdisjoint(_grams(context))
            key = (raw["question"].lower().strip(), context, answer.lower())
            if not clean[context] or key in seen or answer not in context:
                continue
            seen.add(key)
            document = raw["document"] or _paper(context)
            row = Row(raw["question"].strip(), context, answer, document, name)
            (dev if held_out(document) else train).append(row)
    return train, dev


def _paper(context: str) -> str:
    """A stand-in for the document of a COVID-QA window, which does not name its paper."""
    return " ".join(context.split()[:6])


def read_articles(root: Path) -> dict[str, list[Article]]:
    """Raw text by source; never XQuAD, nor passages that the HotpotQA dev questions need."""
    tested = test_grams(root)
    found: dict[str, list[Article]] = collections.defaultdict(list)
    for source, title, parts in _raw_articles(root):
        kept = [part for part in parts if 5 <= len(part.split()) <= 60]
        if len(kept) >= 2 and all(tested.isdisjoint(_grams(part)) for part in kept):
            found[source].append(Article(title, tuple(kept), source))
    return dict(found)


def _raw_articles(root: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Source, title and sentences of every text."""
    questions = json.loads((root / "hotpotqa" / "hotpotqa_train.json").read_text())
    needed = {title for q in questions for title, _ in q["supporting_facts"]}
    corpus = json.loads((root / "hotpotqa" / "hotpotqa_train_corpus.json").read_text())
    for title, parts in corpus.items():
        if title not in needed:
            yield "hotpotqa", title, [part.strip() for part in parts]
    for name in ("scifact", "cranfield"):
        for line in (root / name / "corpus.jsonl").read_text().splitlines():
            raw = json.loads(line)
            text = raw["text"]
            if name == "cranfield":
                text = re.sub(r" \. (\w)", lambda m: f". {m[1].upper()}", text)
            yield name, raw["title"], sentences(text)
    yield from _chunked_articles(root)


def _chunked_articles(root: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Long texts, a dozen sentences at a time."""
    for page in json.loads((root / "webpages" / "ground-truth.json").read_text()).values():
        for chunk in _chunks(sentences(page["articleBody"]), 12):
            yield "webpages", "", chunk
    for path in sorted((root / "texts").rglob("*.md")):
        title = path.stem.replace("-", " ").replace("_", " ")
        for chunk in _chunks(sentences(_prose(path.read_text(errors="replace"))), 12):
            yield "texts", title, chunk
    for path in sorted((root / "peps").glob("*.rst"))[::6]:
        for chunk in _chunks(sentences(_prose(path.read_text(errors="replace"))), 12)[:6]:
            yield "peps", "", chunk


def _chunks(parts: list[str], size: int) -> list[list[str]]:
    return [parts[start : start + size] for start in range(0, len(parts), size)]


def _prose(markup: str) -> str:
    """Paragraphs of running text: no code, tables, headings or link targets."""
    markup = re.sub(r"```.*?```", " ", markup, flags=re.DOTALL)
    markup = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", markup)
    kept = []
    for block in re.split(r"\n\s*\n", markup):
        plain = re.sub(r"[`*_]{1,3}", "", " ".join(block.split()))
        if re.match(r"^[A-Z][^|#<>{}=]{60,}[.!?]$", plain):
            kept.append(plain)
    return " ".join(kept)
