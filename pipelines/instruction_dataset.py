"""The instruction dataset pipeline: a snapshot of the feature store becomes training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rag_fti import contracts, prompts
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun, Outcome
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import field_table, instructions_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_fti.datasets.building import Built
    from rag_fti.datasets.candidates import Candidate
    from rag_fti.datasets.filters import EvaluationQuestion
    from rag_fti.datasets.questions import ChunksBySource
    from rag_fti.feature_store import FeatureStore
    from rag_fti.protocols import Embedder
    from rag_fti.schemas import Hit

PIPELINE = "instruction_dataset"
_SHARE_TOLERANCE = 0.1


def _share_near(facts: Mapping[str, Any]) -> Outcome:
    got, wanted = facts["unanswerable_share"], facts["wanted_unanswerable_share"]
    ok = (
        facts["rows"] < 50
        or abs(got - wanted) <= _SHARE_TOLERANCE
        or facts["natural_share"] > wanted
    )
    return Outcome(ok, round(got, 3), f"{wanted} within {_SHARE_TOLERANCE}")


CONTRACT = Contract(
    pipeline=PIPELINE,
    purpose="Make data that teaches a model to answer from retrieved passages, as it is served.",
    inputs={
        "feature store": "documents and chunks of one pinned snapshot",
        "question files": "JSONL or CSV; lines marked held_out are never used",
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


@dataclass
class _Inputs:
    """What is read from the store."""

    snapshot: str
    hits: list[Hit]
    texts: dict[str, str]
    """Document text by id."""
    collections: list[str] | None
    dropped: Counter[str] = field(default_factory=Counter)
    preferences: tuple[dict[str, Any], ...] = ()
    """Preference pairs from feedback."""


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
        dry_run: Generate and filter, write nothing.

    Raises:
        ContractViolation: If a check fails; nothing is published then.
        StoreError: If the store cannot be read.
        SourceError: If a question file is wrong.
    """
    from rag_fti.datasets.building import build_rows
    from rag_fti.datasets.filters import filter_candidates
    from rag_fti.datasets.questions import ChunksBySource
    from rag_fti.datasets.splitting import Shares, assign_splits, group_of_each
    from rag_fti.feature_store import FeatureStore
    from rag_fti.features.language import language_of
    from rag_fti.models.causal import load_tokenizer, resolve_base_model
    from rag_fti.models.embedder import build_embedder
    from rag_fti.retrieval import build_retriever

    config = settings.dataset
    run_id = contracts.new_run_id(PIPELINE)
    report_path = settings.storage.reports / PIPELINE / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    if not store.exists():
        contract.require({"documents": 0, "embedder_mismatch": ""})
    inputs = _read(store, settings)
    embedder = embedder or build_embedder(settings.embedder)
    mismatch = store.embedder_mismatch(embedder.fingerprint)
    contract.require({"documents": len(inputs.texts), "embedder_mismatch": mismatch})
    retriever = build_retriever(settings, store=store, embedder=embedder)
    progress.note(f"{len(inputs.texts)} documents, {len(inputs.hits)} chunks at {inputs.snapshot}")

    places = ChunksBySource(inputs.hits)
    evaluation = _evaluation(settings, places)
    candidates = _generate(settings, store, inputs, places, progress)
    filtered = filter_candidates(
        candidates,
        similarity=config.near_duplicate_similarity,
        evaluation=evaluation,
        language_of=language_of,
    )
    inputs.dropped.update(filtered.dropped)
    kept = _limited(filtered.kept, config.max_examples, config.seed)
    progress.note(f"{len(candidates)} candidates, {len(kept)} kept")

    groups = group_of_each(kept, inputs.texts, similarity=config.near_duplicate_similarity)
    splits = assign_splits(
        groups, shares=Shares(config.validation_share, config.test_share), seed=config.seed
    )
    tokenizer = load_tokenizer(
        resolve_base_model(
            settings.training.base_model, revision=settings.training.revision
        ).location
    )
    built = build_rows(
        kept,
        groups=groups,
        splits=splits,
        retriever=retriever,
        snapshot=inputs.snapshot,
        collections=inputs.collections,
        passages=config.passages or settings.retrieval.k,
        unanswerable_share=config.unanswerable_share,
        count_tokens=_counter(tokenizer),
        budget=settings.retrieval.context_tokens,
        seed=config.seed,
        progress=progress,
    )
    inputs.dropped.update(built.dropped)
    _keep_unseen_preferences(inputs, evaluation, built, settings)
    facts = _facts(settings, built, evaluation)
    contract.hold(facts)
    contract.ensure(facts)
    report = contract.finish(facts)
    counts = _Counts(built, inputs.dropped)
    if dry_run:
        return DatasetSummary(
            run_id, "", inputs.snapshot, counts.splits, counts.generators, counts.filters,
            counts.rules, facts["retrieval_recall"], False, "", report.seconds,
            report.summary(report_path),
        )  # fmt: skip
    version, created = _write(
        settings, store, inputs, built, counts, tokenizer.chat_template, report.to_dict()
    )
    return DatasetSummary(
        run_id, version.ref, inputs.snapshot, counts.splits, counts.generators, counts.filters,
        counts.rules, facts["retrieval_recall"], created, str(version.path), report.seconds,
        report.summary(report_path),
    )  # fmt: skip


def _read(store: FeatureStore, settings: Settings) -> _Inputs:
    from rag_fti.feature_store import sql_string
    from rag_fti.schemas import Hit

    config = settings.dataset
    snapshot = store.resolve(config.at)
    where = f"collection = {sql_string(config.collection)}" if config.collection else None
    documents = store.documents(where=where, at=snapshot, columns=["document_id", "text"])
    columns = [
        "chunk_id", "document_id", "document_version", "source", "title", "heading", "page",
        "start", "end", "text", "ordinal",
    ]  # fmt: skip
    chunks = store.chunks(where=where, at=snapshot, columns=columns)
    # By batch: a dictionary per row of a large corpus would double what is held.
    hits = [
        Hit(**row, score=0.0)
        for batch in chunks.to_batches(max_chunksize=4096)
        for row in batch.select(columns).to_pylist()
    ]
    hits.sort(key=lambda hit: (hit.source, hit.document_id, hit.start))
    return _Inputs(
        snapshot=snapshot,
        hits=hits,
        texts={row["document_id"]: row["text"] for row in documents.to_pylist()},
        collections=[config.collection] if config.collection else None,
    )


def _evaluation(settings: Settings, places: ChunksBySource) -> list[EvaluationQuestion]:
    from rag_fti.datasets.questions import evaluation_questions
    from rag_fti.evaluation.questions import read_questions

    files = dict.fromkeys((*settings.dataset.evaluation_questions, *settings.evaluation.questions))
    return [item for path in files for item in evaluation_questions(read_questions(path), places)]


def _generate(
    settings: Settings,
    store: FeatureStore,
    inputs: _Inputs,
    places: ChunksBySource,
    progress: Progress,
) -> list[Candidate]:
    """Candidates of every configured generator; the user's own come first."""
    config = settings.dataset
    makers: dict[str, Callable[[], Sequence[Candidate]]] = {
        "pairs": lambda: _from_pairs(settings, places, inputs.dropped),
        "structure": lambda: _from_structure(settings, inputs.hits),
        "feedback": lambda: _from_feedback(store, inputs),
        "teacher": lambda: _from_teacher(settings, inputs, progress),
        "model": lambda: _from_model(settings, inputs.hits, progress),
    }
    candidates: list[Candidate] = []
    for name in ("pairs", "feedback", "teacher", "model", "structure"):
        if name in config.generators:
            made = makers[name]()
            progress.note(f"{name}: {len(made)} candidates")
            candidates += made
    return candidates


def _from_pairs(
    settings: Settings, places: ChunksBySource, dropped: Counter[str]
) -> Sequence[Candidate]:
    from rag_fti.datasets.questions import candidates_from
    from rag_fti.evaluation.questions import read_questions

    candidates: list[Candidate] = []
    for path in settings.dataset.pairs:
        found, left_out = candidates_from(read_questions(path), places)
        candidates += found
        dropped.update(left_out)
    return candidates


def _from_structure(settings: Settings, hits: Sequence[Hit]) -> Sequence[Candidate]:
    from rag_fti.features.instructions_structure import generate

    return generate(hits, per_chunk=settings.dataset.questions_per_chunk)


def _from_feedback(store: FeatureStore, inputs: _Inputs) -> Sequence[Candidate]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from rag_fti.datasets.feedback import from_feedback

    feedback = store.rows("feedback").to_pylist()
    responses = pa.array({row["response_id"] for row in feedback}, pa.string())
    log = store.rows(
        "inference_log",
        columns=["response_id", "question", "answer", "abstained", "chunk_ids"],
    )
    found = from_feedback(
        log.filter(pc.is_in(log["response_id"], value_set=responses)).to_pylist(),
        feedback,
        {hit.chunk_id: hit for hit in inputs.hits},
    )
    inputs.dropped.update(found.dropped)
    inputs.preferences = found.preferences
    return found.candidates


def _keep_unseen_preferences(
    inputs: _Inputs, evaluation: Sequence[EvaluationQuestion], built: Built, settings: Settings
) -> None:
    """Leave out preference pairs, which are trained on, that give away what models are judged by.

    That is near duplicates of evaluation questions and of validation and test rows, and answers
    in a document of those rows.
    """
    from rag_fti.datasets.near_duplicates import NearDuplicates, question_shingles

    held: NearDuplicates[int] = NearDuplicates(settings.dataset.near_duplicate_similarity)
    others = [
        candidate
        for candidate, row in zip(built.candidates, built.rows, strict=True)
        if row["split"] != "train"
    ]
    asked = [*(item.question for item in evaluation), *(other.question for other in others)]
    for number, question in enumerate(asked):
        held.add(number, question_shingles(question))
    documents = {hit.document_id for candidate in others for hit in candidate.chunks}
    kept = tuple(
        pair
        for pair in inputs.preferences
        if documents.isdisjoint(pair["answer_document_ids"])
        and not held.find(question_shingles(pair["question"]))
    )
    if len(kept) < len(inputs.preferences):
        inputs.dropped["preference of a held-out question or document"] += len(
            inputs.preferences
        ) - len(kept)
    inputs.preferences = kept


def _from_teacher(settings: Settings, inputs: _Inputs, progress: Progress) -> Sequence[Candidate]:
    import os

    from rag_fti.errors import ConfigError
    from rag_fti.features.instructions_teacher import Budget, openai_teacher, teach

    config = settings.dataset.teacher
    base_url = config.base_url or os.environ.get("OPENAI_API_BASE", "")
    if not config.model or not base_url:
        raise ConfigError(
            "The teacher generator needs dataset.teacher.model and an endpoint.",
            next_step="Set dataset.teacher.model and dataset.teacher.base_url (or "
            "OPENAI_API_BASE), or leave teacher out of dataset.generators.",
        )
    taught = teach(
        inputs.hits,
        ask=openai_teacher(
            base_url=base_url,
            model=config.model,
            api_key=os.environ.get(config.api_key_env, ""),
            timeout_seconds=config.timeout_seconds,
        ),
        model=config.model,
        per_chunk=settings.dataset.questions_per_chunk,
        journal=settings.storage.root / "cache" / f"teacher-{settings.dataset.name}.jsonl",
        budget=Budget(config.max_requests, config.max_tokens_total),
        concurrency=config.concurrency,
        progress=progress,
    )
    inputs.dropped.update(taught.dropped)
    progress.note(f"teacher: {taught.requests} requests, {taught.tokens} tokens")
    return taught.candidates


def _from_model(settings: Settings, hits: Sequence[Hit], progress: Progress) -> Sequence[Candidate]:
    """The rules say what to ask about, the configured generator words the question."""
    from rag_fti.features.instructions_teacher import write_questions
    from rag_fti.inference import open_model

    served = open_model(settings)
    try:
        return write_questions(
            list(_from_structure(settings, hits)), served.generator, progress=progress
        )
    finally:
        served.close()


def _limited(candidates: Sequence[Candidate], most: int, seed: int) -> list[Candidate]:
    from rag_fti import ids

    if not most or len(candidates) <= most:
        return list(candidates)
    order = sorted(
        range(len(candidates)),
        key=lambda n: ids.content_id(str(seed), candidates[n].question, candidates[n].answer),
    )
    return [candidates[n] for n in sorted(order[:most])]


def _counter(tokenizer: Any) -> Callable[[str], int]:
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _facts(
    settings: Settings, built: Built, evaluation: Sequence[EvaluationQuestion]
) -> dict[str, Any]:
    """Measure the rows themselves, whatever the steps before believed."""
    from rag_fti.datasets.checking import check_rows
    from rag_fti.datasets.near_duplicates import NearDuplicates, question_shingles
    from rag_fti.datasets.splitting import measure_leakage

    similarity = settings.dataset.near_duplicate_similarity
    leakage = measure_leakage(
        built.candidates,
        [row["group"] for row in built.rows],
        [row["split"] for row in built.rows],
        similarity=similarity,
    )
    held: NearDuplicates[int] = NearDuplicates(similarity)
    for number, item in enumerate(evaluation):
        held.add(number, question_shingles(item.question))
    checked = check_rows(built.rows)
    rows = max(1, len(built.rows))
    return {
        "rows": len(built.rows),
        "train_rows": sum(row["split"] == "train" for row in built.rows),
        "unsupported_rows": checked.unsupported,
        "wrong_abstentions": checked.wrong_abstentions,
        "leaks": leakage.total,
        "evaluation_leaks": sum(
            bool(held.find(question_shingles(row["question"]))) for row in built.rows
        ),
        "unanswerable_share": sum(not row["answerable"] for row in built.rows) / rows,
        "natural_share": sum(not c.answerable for c in built.candidates) / rows,
        "wanted_unanswerable_share": settings.dataset.unanswerable_share,
        "retrieval_recall": round(built.retrieval_recall, 4),
    }


class _Counts:
    """Counts for manifest, card and summary."""

    def __init__(self, built: Built, dropped: Mapping[str, int]) -> None:
        self.splits = {
            split: sum(row["split"] == split for row in built.rows)
            for split in ("train", "validation", "test")
        }
        self.generators = dict(sorted(Counter(r["generator"] for r in built.rows).items()))
        self.rules = dict(Counter(c.rule or c.generator for c in built.candidates).most_common())
        self.filters = dict(sorted(dropped.items()))


def _write(
    settings: Settings,
    store: FeatureStore,
    inputs: _Inputs,
    built: Built,
    counts: _Counts,
    chat_template: str | None,
    report: Mapping[str, Any],
) -> tuple[Any, bool]:
    from rag_fti.datasets import dataset_versions, write_dataset
    from rag_fti.datasets.card import render_card
    from rag_fti.datasets.feedback import preferences_table
    from rag_fti.datasets.storage import PREFERENCES
    from rag_fti.retrieval import retrieval_settings

    config = settings.dataset
    recipe = store.recipe()
    retrieval = retrieval_settings(settings)
    before = {v.ref for v in dataset_versions(settings.storage.datasets_uri, config.name)}
    tables = built.tables()
    if inputs.preferences:
        tables[PREFERENCES] = preferences_table(inputs.preferences)
    version = write_dataset(
        settings.storage.datasets_uri,
        config.name,
        tables,
        origin={
            "snapshot": inputs.snapshot,
            "embedder": recipe.embedder.to_dict(),
            "chunker_digest": recipe.chunker_digest,
            "prompt_digest": prompts.prompt_digest(chat_template, retrieval),
            "retrieval": retrieval,
        },
        details={
            "generators": counts.generators,
            "rules": counts.rules,
            "filters": counts.filters,
            "retrieval_recall": round(built.retrieval_recall, 4),
            "search": settings.retrieval.model_dump(mode="json"),
            "settings": config.model_dump(mode="json", exclude={"pairs", "evaluation_questions"}),
        },
        card=render_card(
            name=config.name,
            splits=counts.splits,
            generators=counts.generators,
            filters=counts.filters,
            facts={
                "snapshot": inputs.snapshot,
                "rows whose answer the retriever finds by itself": f"{built.retrieval_recall:.1%}",
            },
        ),
        extra_files={"contract.json": dict(report)},
    )
    # The tag keeps clean-up away from the state that the rows refer to.
    store.tag(f"dataset-{version.name}-{version.version}", inputs.snapshot)
    return version, version.ref not in before


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["dataset", "build", *sys.argv[1:]])
