"""The model validation pipeline: a registry version is judged and, if it earns it, promoted.

Base model, champion and challenger answer the same questions through the real inference engine
over the same store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun
from rag_fti.errors import DatasetError, IncompatibleArtifact, RegistryError
from rag_fti.progress import Progress, Silent
from rag_fti.registry import ModelVersion, Registry

if TYPE_CHECKING:
    from rag_fti.evaluation.gates import GateResult
    from rag_fti.evaluation.scoring import Interval, Judged
    from rag_fti.feature_store import FeatureStore
    from rag_fti.inference import Engine
    from rag_fti.protocols import Embedder
    from rag_fti.schemas import Answer

PIPELINE = "model_validation"
BASE = "base"
CHAMPION = "champion"
CHALLENGER = "challenger"
TEST_SPLIT = "test split"

CONTRACT = Contract(
    pipeline=PIPELINE,
    purpose="Judge a version against the base model and the champion; promote it or say why not.",
    inputs={
        "version": "a registry version whose files match its manifest",
        "feature store": "the documents that answers are found in",
        "question files": "JSONL or CSV with accepted answers and spans",
        "test split": "of the dataset the version was trained on",
    },
    outputs={
        "report": "report.json, report.md, scores.png",
        "alias": "champion, when every gate holds",
    },
    preconditions=(
        Check(
            "version intact",
            "every file of the version has the digest its manifest states",
            contracts.is_true("version_intact"),
            "Import or train the version again.",
        ),
        Check(
            "questions to ask",
            "there is at least one question",
            contracts.at_least("questions", 1),
            "Set evaluation.questions, or build a dataset with a test split.",
        ),
        Check(
            "questions unseen",
            "no held-out question is a near duplicate of a training row",
            contracts.equals("seen_questions", 0),
            "Build the dataset with evaluation.questions set, and train again.",
        ),
    ),
    invariants=(
        Check(
            "same questions",
            "all models answered the same questions on the same snapshot",
            contracts.is_true("same_questions"),
        ),
    ),
    postconditions=(
        Check("report", "the report is on disk", contracts.is_true("report_written")),
        Check(
            "promotion follows the gates",
            "the champion moved only if every gate held",
            contracts.is_true("promotion_follows_gates"),
        ),
    ),
    service_levels=(
        Check("duration", "a validation takes at most an hour", contracts.at_most("seconds", 3600)),
    ),
)


@dataclass(frozen=True)
class ValidationSummary:
    """What a validation found."""

    run_id: str
    version: str
    report: str
    """Path of ``report.json``."""
    scores: dict[str, Any]
    differences: dict[str, Any]
    gates: list[dict[str, Any]]
    promoted: bool
    verdict: str
    seconds: float
    contract: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The promised keys of ``evaluate --json`` and more."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class _Item:
    """One question to ask."""

    id: str
    source: str
    question: str
    accepted: tuple[str, ...]
    answerable: bool
    spans: tuple[Mapping[str, Any], ...] = ()
    supporting: frozenset[str] = frozenset()
    withheld: tuple[str, ...] = ()
    at: str = ""
    collection: str = ""
    """The only one to search; empty searches all."""


@dataclass
class _Outcome:
    """The answers of one model."""

    judged: list[Judged] = field(default_factory=list)
    snapshots: set[tuple[str, str]] = field(default_factory=set)


def run(
    settings: Settings,
    version: str,
    *,
    embedder: Embedder | None = None,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    dry_run: bool = False,
) -> ValidationSummary:
    """Run the pipeline.

    Args:
        settings: All settings; ``evaluation``, ``retrieval``, ``inference``, ``generator`` and
            ``storage`` count.
        version: ``name@3``, an alias, or a bare number of ``evaluation.model_name``.
        embedder: A loaded embedder; None loads the configured one.
        progress: Receives progress.
        dry_run: Judge, and promote nothing.

    Raises:
        ModelNotFound: If there is no such version.
        ContractViolation: If a check fails.
        IncompatibleArtifact: If version, store and settings do not fit together.
    """
    from rag_fti.evaluation.reporting import differences_to_dict
    from rag_fti.feature_store import FeatureStore

    config = settings.evaluation
    run_id = contracts.new_run_id(PIPELINE)
    report_path = settings.storage.reports / PIPELINE / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    registry = Registry.open(settings.storage.registry_uri)
    reference = f"{config.model_name}@{version}" if version.isdecimal() else version
    challenger = registry.resolve(reference)
    champion = _champion(registry, challenger)
    store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    items = list(_items(settings, challenger, store, progress))
    contract.require(
        {
            "version_intact": _intact(registry, challenger),
            "questions": len(items),
            "seen_questions": _seen(settings, challenger, items),
        }
    )
    models = {BASE: BASE, CHALLENGER: challenger.ref}
    if champion is not None and champion.ref != challenger.ref:
        models[CHAMPION] = champion.ref
    outcomes = _answer(settings, models, items, store, embedder, progress)
    rival = champion.ref if champion is not None else "none"
    if CHAMPION in models and CHAMPION not in outcomes:
        rival += ", which cannot be loaded with this base model, store and settings"
    if champion is not None and champion.ref == challenger.ref:
        outcomes[CHAMPION] = outcomes[CHALLENGER]
    contract.hold({"same_questions": _same_questions(outcomes)})

    judged = {name: outcome.judged for name, outcome in outcomes.items()}
    verdicts = _Verdict(settings, judged)
    promote = verdicts.passed and config.promote and not dry_run
    verdict = _sentence(
        verdicts, challenger, promote=promote, dry_run=dry_run, wanted=config.promote
    )
    path = _write(settings, run_id, challenger, rival, items, verdicts, judged, verdict)
    if promote:
        registry.set_alias(
            challenger.name, CHAMPION, challenger.version, why=verdict, report=str(path)
        )
    moved = any(
        change.alias == CHAMPION and change.report == str(path)
        for change in registry.history(challenger.name)
    )
    facts = {
        "report_written": path.is_file(),
        "promotion_follows_gates": moved == promote and (verdicts.passed or not moved),
    }
    contract.ensure(facts)
    report = contract.finish(facts)
    return ValidationSummary(
        run_id=run_id,
        version=challenger.ref,
        report=str(path),
        scores=verdicts.scores,
        differences=differences_to_dict(verdicts.differences),
        gates=[gate.to_dict() for gate in verdicts.gates],
        promoted=promote,
        verdict=verdict,
        seconds=report.seconds,
        contract=report.summary(report_path),
    )


class _Verdict:
    """Scores, differences and gates."""

    def __init__(self, settings: Settings, judged: Mapping[str, Sequence[Judged]]) -> None:
        from rag_fti.evaluation.gates import Gate, check_gate
        from rag_fti.evaluation.scoring import scores

        config = settings.evaluation
        self.scores: dict[str, Any] = {
            name: scores(judged[name]) if name in judged else None
            for name in (BASE, CHAMPION, CHALLENGER)
        }
        self.differences = _differences(settings, judged)
        self.gates: list[GateResult] = [
            check_gate(
                Gate(**gate.model_dump()),
                judged=judged,
                samples=config.bootstrap_samples,
                seed=config.seed,
            )
            for gate in config.gates
        ]

    @property
    def passed(self) -> bool:
        return all(gate.ok for gate in self.gates)

    @property
    def failed(self) -> list[str]:
        return [
            f"{gate.name} (got {gate.value}, wanted {gate.threshold})"
            for gate in self.gates
            if not gate.ok
        ]


def _differences(
    settings: Settings, judged: Mapping[str, Sequence[Judged]]
) -> dict[str, dict[str, Interval]]:
    """Challenger minus the others, question by question."""
    from rag_fti.evaluation.scoring import by_question, paired_difference

    config = settings.evaluation
    found: dict[str, dict[str, Interval]] = {}
    for other in (BASE, CHAMPION):
        if other not in judged:
            continue
        found[other] = {}
        for metric in ("f1", "exact_match", "f1_answerable"):
            mine, theirs = (by_question(judged[name], metric) for name in (CHALLENGER, other))
            found[other][metric] = paired_difference(
                list(mine.values()),
                [theirs[name] for name in mine],
                samples=config.bootstrap_samples,
                seed=config.seed,
            )
    return found


def _sentence(
    verdicts: _Verdict, version: ModelVersion, *, promote: bool, dry_run: bool, wanted: bool
) -> str:
    if not verdicts.passed:
        return f"{version.ref} is not promoted: {'; '.join(verdicts.failed)}."
    if promote:
        return f"{version.ref} is promoted to champion: all {len(verdicts.gates)} gates hold."
    reason = "this is a dry run" if dry_run or wanted else "evaluation.promote is off"
    return f"{version.ref} passes all {len(verdicts.gates)} gates and is not promoted: {reason}."


def _champion(registry: Registry, challenger: ModelVersion) -> ModelVersion | None:
    number = registry.aliases(challenger.name).get(CHAMPION)
    return registry.version(challenger.name, number) if number is not None else None


def _intact(registry: Registry, version: ModelVersion) -> bool:
    try:
        registry.verify(version)
    except RegistryError:
        return False
    return True


def _items(
    settings: Settings, version: ModelVersion, store: FeatureStore, progress: Progress
) -> Iterator[_Item]:
    from rag_fti.evaluation.questions import read_questions

    config = settings.evaluation
    # Pinned once: an ingest in between must not let one model see what another did not.
    snapshot = store.resolve(settings.inference.follow)
    names = Counter(path.name for path in config.questions)
    for path in dict.fromkeys(config.questions):
        source = path.name if names[path.name] == 1 else str(path)
        questions = read_questions(path)
        if config.held_out_only and any(question.held_out for question in questions):
            questions = [question for question in questions if question.held_out]
        judgeable = [question for question in questions if question.judgeable]
        if len(judgeable) < len(questions):
            progress.note(
                f"{path}: {len(questions) - len(judgeable)} questions without an accepted answer, "
                "and not marked unanswerable, cannot be judged and are left out"
            )
        questions = judgeable
        for question in questions[: config.max_questions or None]:
            yield _Item(
                id=f"{source}:{question.id}",
                source=source,
                question=question.question,
                accepted=question.answers,
                answerable=question.answerable,
                spans=question.spans,
                at=snapshot,
            )
    if config.test_split:
        yield from _test_items(settings, version, store, progress)


def _test_items(
    settings: Settings, version: ModelVersion, store: FeatureStore, progress: Progress
) -> Iterator[_Item]:
    from rag_fti.datasets import open_dataset
    from rag_fti.errors import SnapshotNotFound

    reference = str(version.manifest.get("dataset", ""))
    try:
        dataset = open_dataset(settings.storage.datasets_uri, reference)
        snapshot = store.resolve(str(dataset.manifest["snapshot"]))
    except (DatasetError, SnapshotNotFound) as error:
        # Trained elsewhere, or on a store that is gone: the question files have to do.
        progress.note(f"no test split, and training rows may be unknown: {error}")
        return
    # What the dataset's contexts were retrieved from.
    collection = str((dataset.manifest.get("settings") or {}).get("collection") or "")
    rows = dataset.rows("test").to_pylist()
    for row in rows[: settings.evaluation.max_questions or None]:
        yield _Item(
            id=f"test:{row['example_id']}",
            source=TEST_SPLIT,
            question=row["question"],
            accepted=(row["answer"],) if row["answerable"] else (),
            answerable=row["answerable"],
            supporting=frozenset(row["supporting_chunk_ids"]),
            withheld=tuple(row["withheld_chunk_ids"] or ()),
            at=snapshot,
            collection=collection,
        )


def _seen(settings: Settings, version: ModelVersion, items: Sequence[_Item]) -> int:
    """Questions that the version was trained on, or nearly so."""
    from rag_fti.datasets import open_dataset
    from rag_fti.datasets.near_duplicates import NearDuplicates, question_shingles

    try:
        dataset = open_dataset(settings.storage.datasets_uri, str(version.manifest.get("dataset")))
    except DatasetError:
        return 0
    trained: NearDuplicates[int] = NearDuplicates(settings.dataset.near_duplicate_similarity)
    for number, question in enumerate(dataset.rows("train").column("question").to_pylist()):
        trained.add(number, question_shingles(question))
    return sum(bool(trained.find(question_shingles(item.question))) for item in items)


def _answer(
    settings: Settings,
    models: Mapping[str, str],
    items: Sequence[_Item],
    store: FeatureStore,
    embedder: Embedder | None,
    progress: Progress,
) -> dict[str, _Outcome]:
    """Let each model answer everything; one model is in memory at a time."""
    from rag_fti.inference import build_engine
    from rag_fti.models.embedder import build_embedder

    embedder = embedder or build_embedder(settings.embedder)
    outcomes = {}
    for name, reference in models.items():
        try:
            engine = build_engine(settings, store=store, embedder=embedder, model_ref=reference)
        except IncompatibleArtifact as error:
            if name != CHAMPION:
                raise
            # What cannot be served any more is no rival; the report says so.
            progress.note(f"the champion {reference} cannot be loaded: {error}")
            continue
        try:
            outcomes[name] = _ask_all(settings, engine, items, f"{name} answering", progress)
        finally:
            engine.served.close()
    return outcomes


def _ask_all(
    settings: Settings, engine: Engine, items: Sequence[_Item], stage: str, progress: Progress
) -> _Outcome:
    outcome = _Outcome()
    batch = settings.batch.batch_size
    grouped: dict[tuple[str, str, tuple[str, ...]], list[_Item]] = {}
    for item in items:
        grouped.setdefault((item.at, item.collection, item.withheld), []).append(item)
    done = 0
    for (at, collection, withheld), group in grouped.items():
        collections = [collection] if collection else None
        where = _without(withheld)
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            answers = engine.answer_many(
                [i.question for i in part], where=where, at=at, collections=collections
            )
            for item, answer in zip(part, answers, strict=True):
                outcome.judged.append(_judge(item, answer))
                outcome.snapshots.add((item.id, answer.snapshot))
            done += len(part)
            progress.update(stage, done, len(items))
    order = {item.id: number for number, item in enumerate(items)}
    outcome.judged.sort(key=lambda judged: order[judged.question_id])
    return outcome


def _without(chunk_ids: Sequence[str]) -> str | None:
    from rag_fti.feature_store import sql_string

    if not chunk_ids:
        return None
    return f"chunk_id NOT IN ({', '.join(sql_string(chunk) for chunk in chunk_ids)})"


def _judge(item: _Item, answer: Answer) -> Judged:
    from rag_fti.evaluation.questions import supporting_chunks
    from rag_fti.evaluation.scoring import judge

    supporting = item.supporting or supporting_chunks(
        answer.hits, spans=item.spans, answers=item.accepted if item.answerable else ()
    )
    return judge(
        answer,
        question_id=item.id,
        accepted=item.accepted,
        answerable=item.answerable,
        supporting_chunks=supporting,
        question_set="test_split" if item.source == TEST_SPLIT else "question_files",
    )


def _same_questions(outcomes: Mapping[str, _Outcome]) -> bool:
    first, *others = outcomes.values()
    return all(other.snapshots == first.snapshots for other in others)


def _write(
    settings: Settings,
    run_id: str,
    challenger: ModelVersion,
    rival: str,
    items: Sequence[_Item],
    verdicts: _Verdict,
    judged: Mapping[str, Sequence[Judged]],
    verdict: str,
) -> Path:
    from rag_fti.evaluation.reporting import write_report
    from rag_fti.evaluation.scoring import scores

    source_of = {item.id: item.source for item in items}
    parts = {
        source: {
            name: [j for j in answers if source_of[j.question_id] == source]
            for name, answers in judged.items()
        }
        for source in dict.fromkeys(source_of.values())
    }
    by_source = {
        source: {name: scores(answers) for name, answers in part.items()}
        for source, part in parts.items()
    }
    return write_report(
        settings.storage.root / "evaluations" / challenger.name / run_id,
        title=f"Validation of {challenger.ref}",
        facts={
            "run": run_id,
            "version": challenger.ref,
            "champion before": rival,
            "base model": (challenger.manifest.get("base_model") or {}).get("reference", ""),
            "questions": len(items),
            "bootstrap samples": settings.evaluation.bootstrap_samples,
        },
        scores=verdicts.scores,
        by_source=by_source,
        differences=verdicts.differences,
        differences_by_source={
            source: _differences(settings, part) for source, part in parts.items()
        },
        gates=verdicts.gates,
        verdict=verdict,
        judged=judged,
    )


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["evaluate", *sys.argv[1:]])
