"""Passages as users' documents give them, for the questions of ``written/``.

Texts are loaded and cut by the feature pipeline's own code, so that tables, lists, code and
headings look as they do when they are retrieved. The same data gives the same passages under the
same names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.embedded_model.sources import read_rows, shares_text, test_grams
from rag_fti import prompts
from rag_fti.config.features import ChunkingConfig
from rag_fti.config.models import EmbedderConfig
from rag_fti.features.chunking import Chunker, build_chunker
from rag_fti.features.documents import document_of
from rag_fti.features.loading import Loaded, LoadTask, load
from rag_fti.features.loading.parsed import Limits
from rag_fti.models.embedder import build_embedder

WORDS = (45, 260)
"""Shortest and longest passage; what is shorter says too little to ask about."""
QUOTAS = {
    "hotpotqa": 800,
    "qamr": 520,
    "webpages": 600,
    "texts": 600,
    "peps": 300,
    "scifact": 320,
    "cranfield": 60,
    "policyqa": 100,
    "covidqa": 100,
}


@dataclass(frozen=True)
class Source:
    """A passage to ask about."""

    name: str
    """Where it stands: source and place in it."""
    passage: prompts.Passage

    @property
    def digest(self) -> str:
        """Of its text, to notice that the data changed."""
        return hashlib.sha256(self.passage.text.encode()).hexdigest()[:12]


def read_passages(root: Path) -> list[Source]:
    """The passages, sources mixed so that any first part of the list is like the whole."""
    tested = test_grams(root)
    chosen: list[tuple[float, Source]] = []
    for kind, quota in QUOTAS.items():
        usable = [
            source
            for source in _READERS[kind](root)
            if WORDS[0] <= len(source.passage.text.split()) <= WORDS[1]
            and not shares_text(source.passage.text, tested)
        ]
        usable.sort(key=lambda source: hashlib.sha256(source.name.encode()).digest())
        kept = usable[:quota]
        chosen += [((at + 0.5) / len(kept), source) for at, source in enumerate(kept)]
    chosen.sort(key=lambda pair: (pair[0], pair[1].name))
    return [source for _, source in chosen]


def _hotpotqa(root: Path) -> Iterator[Source]:
    """Encyclopaedia articles' first paragraphs; none that the development questions need."""
    questions = json.loads((root / "hotpotqa" / "hotpotqa_train.json").read_text())
    needed = {title for q in questions for title, _ in q["supporting_facts"]}
    corpus = json.loads((root / "hotpotqa" / "hotpotqa_train_corpus.json").read_text())
    for title, parts in corpus.items():
        if title not in needed:
            text = "".join(parts).strip()
            yield Source(f"hotpotqa/{title}", prompts.Passage(text, title=title))


def _abstracts(name: str, root: Path) -> Iterator[Source]:
    for line in (root / name / "corpus.jsonl").read_text().splitlines():
        raw = json.loads(line)
        text = re.sub(r"\s+", " ", raw["text"]).strip()
        yield Source(f"{name}/{raw['_id']}", prompts.Passage(text, title=raw["title"]))


def _windows(name: str, root: Path) -> Iterator[Source]:
    """Paragraphs that questions of others are about."""
    rows, _ = read_rows(root)
    for context in dict.fromkeys(row.sentence for row in rows if row.source == name):
        digest = hashlib.sha256(context.encode()).hexdigest()[:12]
        yield Source(f"{name}/{digest}", prompts.Passage(context))


def _qamr(root: Path) -> Iterator[Source]:
    """Five sentences of one article."""
    rows, _ = read_rows(root)
    documents: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.source == "qamr":
            documents.setdefault(row.document, {})[row.sentence] = None
    for document, sentences in documents.items():
        parts = list(sentences)
        for number, start in enumerate(range(0, len(parts), 5)):
            text = " ".join(parts[start : start + 5])
            yield Source(f"qamr/{document}#{number}", prompts.Passage(text))


def _webpages(root: Path) -> Iterator[Source]:
    chunker = _chunker()
    pages = json.loads((root / "webpages" / "ground-truth.json").read_text())
    for name, page in pages.items():
        loaded = Loaded(text=page["articleBody"], title="", media_type="text/plain")
        for source in _chunks(f"webpages/{name[:12]}", loaded, chunker):
            # The name of such a page is a digest, which says nothing.
            yield Source(source.name, prompts.Passage(source.passage.text))


def _files(folder: str, paths: Iterable[Path], root: Path) -> Iterator[Source]:
    chunker = _chunker()
    for path in paths:
        name = f"{folder}/{path.relative_to(root / folder)}"
        task = LoadTask(source=str(path), path=path)
        yield from _chunks(name, load(task, Limits()), chunker)


def _chunker() -> Chunker:
    return build_chunker(ChunkingConfig(), build_embedder(EmbedderConfig()))


def _chunks(name: str, loaded: Loaded, chunker: Chunker) -> Iterator[Source]:
    document = document_of(loaded, source=name, collection="default", raw_digest="")
    for number, chunk in enumerate(chunker.chunk(document)):
        passage = prompts.Passage(chunk.text, title=document.title, heading=chunk.heading)
        yield Source(f"{name}#{number}", passage)


_READERS = {
    "hotpotqa": _hotpotqa,
    "qamr": _qamr,
    "webpages": _webpages,
    "texts": lambda root: _files("texts", sorted((root / "texts").rglob("*.md")), root),
    "peps": lambda root: _files("peps", sorted((root / "peps").glob("*.rst"))[::6], root),
    "scifact": lambda root: _abstracts("scifact", root),
    "cranfield": lambda root: _abstracts("cranfield", root),
    "policyqa": lambda root: _windows("policyqa", root),
    "covidqa": lambda root: _windows("covidqa", root),
}
