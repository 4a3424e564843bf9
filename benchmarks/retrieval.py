"""Retrieval quality: nDCG@10 and recall of vector, text and hybrid search.

    python benchmarks/retrieval.py --sets scifact cranfield chunking
    python benchmarks/retrieval.py --sets hotpotqa xquad --sweep     # the sets settings come from
    python benchmarks/retrieval.py --sets chunking xquad --headings  # with and without headings

Data: RAG_FTI_SHARED_DATA (see docs/benchmarks.md). Documents go through the real ingestor and
the real retriever. Document-level sets score the best chunk of a document; ``chunking`` scores
characters of gold spans covered by the first 5 chunks.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rag_fti.config import load_settings
from rag_fti.feature_store import FeatureStore
from rag_fti.features.chunking import embedded_text
from rag_fti.features.ingestion import build_ingestor
from rag_fti.features.loading import LoadTask
from rag_fti.models.embedder import build_embedder
from rag_fti.protocols import Embedder, Vectors
from rag_fti.retrieval import Retriever
from rag_fti.schemas import Hit

DATA = Path(os.environ.get("RAG_FTI_SHARED_DATA", "../shared/data"))
DEPTH = 100


@dataclass
class Collection:
    """Documents, questions and what answers them."""

    documents: dict[str, str]
    """Source to Markdown."""
    questions: dict[str, str]
    relevant: dict[str, dict[str, int]] = field(default_factory=dict)
    """Question id to source to grade."""
    spans: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    """Question id to gold spans, for sets scored by characters."""


def beir(name: str) -> Collection:
    """A set in BEIR form."""
    root = DATA / name
    corpus = [json.loads(line) for line in (root / "corpus.jsonl").open(encoding="utf-8")]
    documents = {
        f"{row['_id']}.md": f"# {row['title']}\n\n{row['text']}\n"
        if row.get("title")
        else f"{row['text']}\n"
        for row in corpus
    }
    queries = {
        row["_id"]: row["text"]
        for row in map(json.loads, (root / "queries.jsonl").open(encoding="utf-8"))
    }
    relevant: dict[str, dict[str, int]] = {}
    with (root / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if int(row["score"]) > 0:
                relevant.setdefault(row["query-id"], {})[f"{row['corpus-id']}.md"] = int(
                    row["score"]
                )
    return Collection(documents, {key: queries[key] for key in relevant}, relevant)


def hotpotqa() -> Collection:
    """Multi-hop questions over titled passages."""
    root = DATA / "hotpotqa"
    passages = json.loads((root / "hotpotqa_train_corpus.json").read_text(encoding="utf-8"))
    names = {title: f"{number}.md" for number, title in enumerate(passages)}
    documents = {names[t]: f"# {t}\n\n{''.join(lines)}\n" for t, lines in passages.items()}
    rows = json.loads((root / "hotpotqa_train.json").read_text(encoding="utf-8"))
    return Collection(
        documents,
        {str(number): row["question"] for number, row in enumerate(rows)},
        {
            str(number): {names[title]: 1 for title, _ in row["supporting_facts"]}
            for number, row in enumerate(rows)
        },
    )


def xquad() -> Collection:
    """Questions over Wikipedia paragraphs; each paragraph is a document under its article."""
    rows = json.loads((DATA / "xquad" / "xquad_en_open.json").read_text(encoding="utf-8"))["data"]
    found = Collection({}, {})
    for article in rows:
        title = article["title"].replace("_", " ")
        for number, paragraph in enumerate(article["paragraphs"]):
            source = f"{article['title']}-{number}.md"
            found.documents[source] = f"# {title}\n\n{paragraph['context']}\n"
            for question in paragraph["qas"]:
                found.questions[question["id"]] = question["question"]
                found.relevant[question["id"]] = {source: 1}
    return found


def chunking() -> Collection:
    """Long documents with gold character spans."""
    root = DATA / "chunking"
    found = Collection({}, {})
    texts = {p.stem: p.read_text(encoding="utf-8") for p in (root / "corpora").glob("*.md")}
    found.documents = {f"{name}.md": text for name, text in texts.items()}
    with (root / "questions.csv").open(encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            if row["corpus_id"] in texts:
                found.questions[str(number)] = row["question"]
                found.spans[str(number)] = [
                    (f"{row['corpus_id']}.md", r["start_index"], r["end_index"])
                    for r in json.loads(row["references"])
                ]
    return found


SETS = {
    "scifact": lambda: beir("scifact"),
    "cranfield": lambda: beir("cranfield"),
    "hotpotqa": hotpotqa,
    "xquad": xquad,
    "chunking": chunking,
}


def ndcg(ranked: Sequence[str], grades: dict[str, int], k: int = 10) -> float:
    """Normalised discounted cumulative gain (linear gain, as trec_eval)."""
    gain = sum(grades.get(s, 0) / math.log2(n + 2) for n, s in enumerate(ranked[:k]))
    best = sorted(grades.values(), reverse=True)[:k]
    return gain / sum(grade / math.log2(n + 2) for n, grade in enumerate(best))


def documents_of(hits: Sequence[Hit]) -> list[str]:
    """Documents in the order of their best chunk."""
    return list(dict.fromkeys(hit.source for hit in hits))


def covered(hits: Sequence[Hit], spans: Sequence[tuple[str, int, int]]) -> float:
    """Share of the gold characters that the hits show."""
    total = shown = 0
    for source, start, end in spans:
        wanted = set(range(start, end))
        total += len(wanted)
        for hit in hits:
            if hit.source == source:
                wanted -= set(range(hit.start, hit.end))
        shown += end - start - len(wanted)
    return shown / max(1, total)


def score(collection: Collection, retriever: Retriever, mode: Any) -> dict[str, float]:
    """Mean scores of one search mode."""
    names = list(collection.questions)
    found = retriever.retrieve_many(
        [collection.questions[name] for name in names], k=DEPTH, mode=mode
    )
    if collection.spans:
        rows = [
            (covered(r.hits[:5], collection.spans[n]), covered(r.hits[:10], collection.spans[n]))
            for n, r in zip(names, found, strict=True)
        ]
        keys = ("char_recall@5", "char_recall@10")
    else:
        rows = []
        for name, result in zip(names, found, strict=True):
            ranked, grades = documents_of(result.hits), collection.relevant[name]
            hit = len(set(ranked[:10]) & set(grades)) / len(grades)
            rows.append((ndcg(ranked, grades), hit))
        keys = ("ndcg@10", "recall@10")
    return {k: round(sum(row[n] for row in rows) / len(rows), 4) for n, k in enumerate(keys)}


class TextOnly:
    """An embedder that leaves out the title and headings that stand before a chunk's text.

    Args:
        embedder: Computes vectors.
        texts: What is embedded of every chunk to the chunk's own text.
    """

    def __init__(self, embedder: Embedder, texts: dict[str, str]) -> None:
        self._embedder = embedder
        self._texts = texts
        self.fingerprint = embedder.fingerprint
        self.encode_queries = embedder.encode_queries
        self.count_tokens = embedder.count_tokens

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of stored texts, float32 of shape ``(len(texts), dimension)``."""
        return self._embedder.encode_documents([self._texts[text] for text in texts])


def without_headings(collection: Collection, work: Path, overrides: Sequence[str]) -> Retriever:
    """The chunks of the store at ``work`` in one of their own, embedded without headings.

    Full text still looks in them, so that only what the vectors know differs.
    """
    settings = load_settings(values={"storage.root": str(work)})
    store = FeatureStore.open(settings.storage.features_uri)
    rows = store.chunks(columns=["indexed_text", "title", "source", "text"]).to_pylist()
    texts = {
        embedded_text(row["indexed_text"], title=row["title"], source=row["source"]): row["text"]
        for row in rows
    }
    return build("plain", collection, work, overrides, texts=texts)


def build(
    name: str,
    collection: Collection,
    work: Path,
    overrides: Sequence[str],
    *,
    texts: dict[str, str] | None = None,
) -> Retriever:
    """The collection's store, filled on first use, and its retriever.

    Args:
        name: Of its folder.
        collection: What goes in.
        work: Where stores are kept.
        overrides: Settings.
        texts: What is embedded in place of the indexed texts.
    """
    settings = load_settings(overrides=overrides, values={"storage.root": str(work / name)})
    store = FeatureStore.open(settings.storage.features_uri)
    embedder = build_embedder(settings.embedder)
    if texts is not None:
        embedder = TextOnly(embedder, texts)
    ingestor = build_ingestor(settings, store=store, embedder=embedder, run_id="benchmark")
    started = time.monotonic()
    tasks: Iterator[LoadTask] = (
        LoadTask(source, data=text.encode("utf-8")) for source, text in collection.documents.items()
    )
    totals = ingestor.ingest_tasks(tasks)
    if totals.changed:
        store.optimize()
    print(
        f"{name}: {len(collection.documents)} documents, {store.count_chunks()} chunks, "
        f"{totals.chunks_added} embedded in {time.monotonic() - started:.0f} s; "
        f"{len(collection.questions)} questions",
        flush=True,
    )
    options = settings.retrieval
    return Retriever(
        store=store,
        embedder=embedder,
        candidates=DEPTH,
        fusion=options.fusion,
        vector_weight=options.vector_weight,
        rrf_constant=options.rrf_constant,
    )


def score_all(
    name: str,
    collection: Collection,
    retriever: Retriever,
    results: dict[str, Any],
    *,
    sweep: bool,
) -> None:
    """Score every mode, print it and put it into ``results``."""

    def add(label: str, mode: str) -> None:
        results[f"{name} {label}"] = score(collection, retriever, mode)
        print(f"  {label:10s} {results[f'{name} {label}']}", flush=True)

    for mode in ("vector", "text", "hybrid"):
        add(mode, mode)
    fusion, weight = retriever.fusion, retriever.vector_weight
    retriever.fusion = "rrf"
    add("rrf", "hybrid")
    for tried in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8) if sweep else ():
        retriever.fusion, retriever.vector_weight = "convex", tried
        add(f"convex {tried}", "hybrid")
    retriever.fusion, retriever.vector_weight = fusion, weight


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=["scifact", "cranfield"])
    parser.add_argument("--work", type=Path, default=Path("build/retrieval"))
    parser.add_argument("--sweep", action="store_true", help="also try fusion weights")
    parser.add_argument(
        "--headings", action="store_true", help="also without headings in the embedded text"
    )
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("overrides", nargs="*", help="settings such as chunking.max_tokens=128")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.sets:
        collection = SETS[name]()
        retriever = build(name, collection, arguments.work, arguments.overrides)
        score_all(name, collection, retriever, results, sweep=arguments.sweep)
        if arguments.headings:
            plain = without_headings(collection, arguments.work / name, arguments.overrides)
            score_all(f"{name}, no headings", collection, plain, results, sweep=arguments.sweep)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
