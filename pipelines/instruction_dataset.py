"""The instruction dataset pipeline: a snapshot of the feature store becomes training data."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts, prompts
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun, Outcome
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import field_table, instructions_schema

if TYPE_CHECKING:
    from rag_fti.datasets import DatasetVersion
    from rag_fti.datasets.building import Built
    from rag_fti.datasets.candidates import Candidate
    from rag_fti.datasets.questions import ChunksBySource, Lines
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.instructions_teacher import Taught
    from rag_fti.protocols import Embedder
    from rag_fti.schemas import Hit

PIPELINE = "instruction_dataset"
_SHARE_TOLERANCE = 0.1
_HELD_PREFERENCE = "preference of a held-out question or document"


def _share_near(facts: Mapping[str, Any]) -> Outcome:
    got, wanted = facts["unanswerable_share"], facts["wanted_unanswerable_share"]
    ok = (
        facts["rows"] < 50
        or abs(got - wanted) <= _SHARE_TOLERANCE
        or facts["natural_share"] > wanted
    )
    return Outcome(ok, round(got, 3), f"{wanted:.3g} within {_SHARE_TOLERANCE}")


CONTRACT = Contract(
    pipeline=PIPELINE,
    purpose="Make data that teaches a model to answer from retrieved passages, as it is served.",
    inputs={
        "feature store": "documents and chunks of one pinned snapshot",
        "question files": "JSONL or CSV; lines marked held_out are never trained on",
    },
    outputs={
        "train, validation, test": field_table(instructions_schema()),
        "manifest.json": "snapshot, digests, counts, file digests; written last",
    },
    preconditions=(
        Check(
            "documents",
            "the snapshot has at least one document in the collection",
            contracts.at_least("documents", 1),
            "Ingest documents first: rag-fti ingest PATH.",
        ),
        Check(
            "one recipe",
            "the store was built with the configured embedder",
            contracts.equals("embedder_mismatch", ""),
            "Ingest again, or set embedder.model to the store's.",
        ),
    ),
    invariants=(
        Check(
            "answers are supported",
            "every answer stands verbatim in the passage whose marker follows it",
            contracts.equals("unsupported_rows", 0),
        ),
        Check(
            "abstentions are right",
            "a row without a supporting passage has the abstention text as its target",
            contracts.equals("wrong_abstentions", 0),
        ),
    ),
    postconditions=(
        Check(
            "rows to train on",
            "the training split has at least one row",
            contracts.at_least("train_rows", 1),
            "Add question files (dataset.pairs) or documents; see the filter counts.",
        ),
        Check(
            "no leakage",
            "splits share no group, no answer document and no near-duplicate question",
            contracts.equals("leaks", 0),
        ),
        Check(
            "evaluation stays unseen",
            "no row is a near duplicate of an evaluation question",
            contracts.equals("evaluation_leaks", 0),
        ),
        Check("unanswerable share", "the share of rows without an answer is as asked", _share_near),
    ),
    service_levels=(
        Check("duration", "a build takes at most an hour", contracts.at_most("seconds", 3600)),
        Check(
            "retrieval",
            "the serving retriever finds the answer of at least half of the questions",
            contracts.at_least("retrieval_recall", 0.5),
            "Tune retrieval (mode, k, chunking) before training.",
        ),
    ),
)


@dataclass(frozen=True)
class DatasetSummary:
    """What a build did."""

    run_id: str
    dataset: str
    """``name@version``; empty for a dry run."""
    snapshot: str
    splits: dict[str, int]
    generators: dict[str, int]
    """Rows by generator."""
    filters: dict[str, int]
    """Candidates left out, by reason."""
    rules: dict[str, int]
    """Rows by what made them."""
    retrieval_recall: float
    created: bool
    """False where this version was there already."""
    path: str
    seconds: float
    contract: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def run(
    settings: Settings,
    *,
    embedder: Embedder | None = None,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    dry_run: bool = False,
) -> DatasetSummary:
    """Run the pipeline.

    Args:
        settings: All settings; ``dataset``, ``retrieval``, ``embedder``, ``storage`` and the base
            model of ``training`` (whose tokenizer counts tokens) count.
        embedder: A loaded embedder; None loads the configured one.
        progress: Receives progress.
        dry_run: Generate and filter; write nothing and ask no teacher (its replies so far count).

    Raises:
        ContractViolation: If a check fails; nothing is published then.
        StoreError: If the store cannot be read.
        SourceError: If a question file is wrong.
    """
    from rag_fti.datasets.building import build_rows
    from rag_fti.datasets.checking import measure
    from rag_fti.datasets.feedback import unseen_preferences
    from rag_fti.datasets.filters import drawn, filter_candidates
    from rag_fti.datasets.questions import ChunksBySource, read_evaluation
    from rag_fti.datasets.splitting import Shares, assign_splits, group_of_each
    from rag_fti.feature_store import FeatureStore, sql_string
    from rag_fti.features.language import language_of
    from rag_fti.models.causal import load_tokenizer, resolve_base_model
    from rag_fti.models.embedder import build_embedder
    from rag_fti.retrieval import build_retriever

    config = settings.dataset
    similarity = config.near_duplicate_similarity
    run_id = contracts.new_run_id(PIPELINE)
    reports = settings.storage.reports / PIPELINE
    report_path = None if dry_run else reports / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    if not store.exists():
        contract.require({"documents": 0, "embedder_mismatch": ""})
    snapshot = store.resolve(config.at)
    where = f"collection = {sql_string(config.collection)}" if config.collection else None
    documents = store.documents(where=where, at=snapshot, columns=["document_id"]).num_rows
    embedder = embedder or build_embedder(settings.embedder)
    mismatch = store.embedder_mismatch(embedder.fingerprint)
    contract.require({"documents": documents, "embedder_mismatch": mismatch})
    retriever = build_retriever(settings, store=store, embedder=embedder)
    chunks = store.hits(where=where, at=snapshot)
    progress.note(f"{documents} documents, {len(chunks)} chunks at {snapshot}")

    places = ChunksBySource(chunks)
    # Of a file that several keys name, the lines of the last one count: it takes most.
    asked_later = settings.evaluation
    judged_by: dict[Path, Lines] = {
        **dict.fromkeys(config.pairs, "held out"),
        **dict.fromkeys(config.evaluation_questions, "held out or all"),
        **dict.fromkeys(
            asked_later.questions, "held out or all" if asked_later.held_out_only else "all"
        ),
    }
    evaluation = read_evaluation(judged_by, places)
    generated = _generate(settings, store, chunks, places, progress, dry_run=dry_run)
    filtered = filter_candidates(
        generated.candidates, similarity=similarity, evaluation=evaluation, language_of=language_of
    )
    kept = drawn(filtered.kept, config.max_examples, seed=config.seed)
    progress.note(f"{len(generated.candidates)} candidates, {len(kept)} kept")

    texts = store.document_texts(where=where, at=snapshot)
    groups = group_of_each(kept, texts, similarity=similarity)
    splits = assign_splits(
        groups, shares=Shares(config.validation_share, config.test_share), seed=config.seed
    )
    base = resolve_base_model(settings.training.base_model, revision=settings.training.revision)
    tokenizer = load_tokenizer(base.location)
    built = build_rows(
        kept,
        groups=groups,
        splits=splits,
        retriever=retriever,
        snapshot=snapshot,
        collections=[config.collection] if config.collection else None,
        passages=config.passages or settings.retrieval.k,
        unanswerable_share=config.unanswerable_share,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        budget=settings.retrieval.context_tokens,
        seed=config.seed,
        progress=progress,
    )
    preferences = unseen_preferences(
        generated.preferences, held=built.held, evaluation=evaluation, similarity=similarity
    )
    facts = {
        **measure(built, evaluation=evaluation, similarity=similarity),
        "wanted_unanswerable_share": built.wanted_unanswerable_share,
    }
    contract.hold(facts)
    contract.ensure(facts)
    report = contract.finish(facts)
    dropped = Counter(generated.dropped) + Counter(filtered.dropped) + Counter(built.dropped)
    dropped[_HELD_PREFERENCE] = len(generated.preferences) - len(preferences)
    filters = dict(sorted((+dropped).items()))
    version, created = None, False
    if not dry_run:
        version, created = _write(
            settings, store, snapshot, built, preferences, filters, tokenizer.chat_template,
            report.to_dict(),
        )  # fmt: skip
    return DatasetSummary(
        run_id=run_id,
        dataset=version.ref if version else "",
        snapshot=snapshot,
        splits=built.splits,
        generators=built.generators,
        filters=filters,
        rules=built.rules,
        retrieval_recall=facts["retrieval_recall"],
        created=created,
        path=version.location if version else "",
        seconds=report.seconds,
        contract=report.summary(report_path),
    )


@dataclass(frozen=True)
class _Generated:
    """What the generators made."""

    candidates: list[Candidate]
    preferences: Sequence[dict[str, Any]]
    """Preference pairs from feedback."""
    dropped: Mapping[str, int]


def _generate(
    settings: Settings,
    store: FeatureStore,
    chunks: Sequence[Hit],
    places: ChunksBySource,
    progress: Progress,
    *,
    dry_run: bool,
) -> _Generated:
    """Candidates of every configured generator; the user's own come first."""
    from rag_fti.datasets.feedback import from_feedback, read_feedback
    from rag_fti.datasets.questions import read_pairs
    from rag_fti.features.instructions_structure import generate

    config = settings.dataset
    dropped: Counter[str] = Counter()
    preferences: list[dict[str, Any]] = []

    def by_user() -> Sequence[Candidate]:
        found, left_out = read_pairs(config.pairs, places)
        dropped.update(left_out)
        return found

    def by_feedback() -> Sequence[Candidate]:
        found = from_feedback(*read_feedback(store), {hit.chunk_id: hit for hit in chunks})
        dropped.update(found.dropped)
        preferences.extend(found.preferences)
        return found.candidates

    def by_teacher() -> Sequence[Candidate]:
        taught = _teach(settings, chunks, progress, dry_run=dry_run)
        dropped.update(taught.dropped)
        return taught.candidates

    def by_rules() -> Sequence[Candidate]:
        return generate(chunks, per_chunk=config.questions_per_chunk)

    makers: dict[str, Callable[[], Sequence[Candidate]]] = {
        "pairs": by_user,
        "feedback": by_feedback,
        "teacher": by_teacher,
        "model": lambda: _worded_by_model(settings, by_rules(), progress),
        "structure": by_rules,
    }
    candidates: list[Candidate] = []
    for name, make in makers.items():
        if name in config.generators:
            made = make()
            progress.note(f"{name}: {len(made)} candidates")
            candidates += made
    return _Generated(candidates, preferences, dropped)


def _teach(
    settings: Settings, chunks: Sequence[Hit], progress: Progress, *, dry_run: bool
) -> Taught:
    from rag_fti.features.instructions_teacher import Budget, configured_teacher, teach

    config = settings.dataset.teacher
    taught = teach(
        chunks,
        ask=configured_teacher(config, environment=os.environ),
        model=config.model,
        per_chunk=settings.dataset.questions_per_chunk,
        journal=settings.storage.root / "cache" / f"teacher-{settings.dataset.name}.jsonl",
        budget=Budget(0 if dry_run else config.max_requests, config.max_tokens_total),
        concurrency=config.concurrency,
        progress=progress,
    )
    progress.note(f"teacher: {taught.requests} requests, {taught.tokens} tokens")
    return taught


def _worded_by_model(
    settings: Settings, candidates: Sequence[Candidate], progress: Progress
) -> Sequence[Candidate]:
    """The rules say what to ask about, the configured generator words the question."""
    from rag_fti.features.instructions_teacher import write_questions
    from rag_fti.inference import open_model

    served = open_model(settings)
    try:
        return write_questions(candidates, served.generator, progress=progress)
    finally:
        served.close()


def _write(
    settings: Settings,
    store: FeatureStore,
    snapshot: str,
    built: Built,
    preferences: Sequence[Mapping[str, Any]],
    filters: Mapping[str, int],
    chat_template: str | None,
    report: Mapping[str, Any],
) -> tuple[DatasetVersion, bool]:
    """The version, and whether it is new."""
    from rag_fti.datasets import dataset_versions, write_dataset
    from rag_fti.datasets.card import render_card
    from rag_fti.datasets.feedback import preferences_table
    from rag_fti.datasets.storage import PREFERENCES
    from rag_fti.retrieval import retrieval_settings
    from rag_fti.roots import datasets_root

    config = settings.dataset
    root = datasets_root(settings.storage)
    recipe = store.recipe()
    retrieval = retrieval_settings(settings)
    before = {v.manifest_digest for v in dataset_versions(root, config.name)}
    tables = built.tables()
    if preferences:
        tables[PREFERENCES] = preferences_table(preferences)
    version = write_dataset(
        root,
        config.name,
        tables,
        origin={
            "snapshot": snapshot,
            "embedder": recipe.embedder.to_dict(),
            "chunker_digest": recipe.chunker_digest,
            "prompt_digest": prompts.prompt_digest(chat_template, retrieval),
            "retrieval": retrieval,
        },
        details={
            "generators": built.generators,
            "rules": built.rules,
            "filters": filters,
            "retrieval_recall": round(built.retrieval_recall, 4),
            "search": settings.retrieval.model_dump(mode="json"),
            "settings": config.model_dump(mode="json", exclude={"pairs", "evaluation_questions"}),
        },
        card=render_card(
            name=config.name,
            splits=built.splits,
            generators=built.generators,
            filters=filters,
            facts={
                "snapshot": snapshot,
                "rows whose answer the retriever finds by itself": f"{built.retrieval_recall:.1%}",
            },
        ),
        extra_files={"contract.json": dict(report)},
    )
    # The tag keeps clean-up away from the state that the rows refer to.
    store.tag(f"dataset-{version.name}-{version.version}", snapshot)
    return version, version.manifest_digest not in before


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["dataset", "build", *sys.argv[1:]])
