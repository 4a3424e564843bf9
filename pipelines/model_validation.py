"""The model validation pipeline: a registry version is judged and, if it earns it, promoted.

Base model, champion and challenger answer the same questions through the real inference engine
over the same store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_fti import contracts
from rag_fti.config import Settings
from rag_fti.contracts import Check, Contract, ContractRun, Outcome
from rag_fti.errors import DatasetError, IncompatibleArtifact, RegistryError
from rag_fti.evaluation.gates import Gate
from rag_fti.evaluation.verdict import BASE, CHALLENGER, CHAMPION, Verdict, reach_verdict
from rag_fti.progress import Progress, Silent
from rag_fti.registry import ModelVersion, Registry
from rag_fti.roots import datasets_root, open_registry

if TYPE_CHECKING:
    from rag_fti.evaluation.asking import Asked, Item
    from rag_fti.evaluation.scoring import Judged
    from rag_fti.feature_store import FeatureStore
    from rag_fti.protocols import Embedder

PIPELINE = "model_validation"
UNKNOWN = "unknown"


def _unseen(facts: Mapping[str, Any]) -> Outcome:
    seen = facts["seen_questions"]
    return Outcome(seen in (0, UNKNOWN), seen, "== 0, where the training rows are known")


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
            _unseen,
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
    """Path of ``report.json``; empty on a dry run."""
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
        dry_run: Judge, promote nothing and write no report.

    Raises:
        ConfigError: If a gate names a metric that is not there.
        ModelNotFound: If there is no such version.
        ContractViolation: If a check fails.
        IncompatibleArtifact: If version, store and settings do not fit together.
    """
    from rag_fti.evaluation.reporting import differences_to_dict
    from rag_fti.feature_store import FeatureStore

    config = settings.evaluation
    gates = [Gate(**gate.model_dump()) for gate in config.gates]
    run_id = contracts.new_run_id(PIPELINE)
    reports = settings.storage.reports / PIPELINE
    report_path = None if dry_run else reports / f"{run_id}.json"
    contract = ContractRun(CONTRACT, run_id=run_id, report_path=report_path)
    registry = open_registry(settings.storage)
    reference = f"{config.model_name}@{version}" if version.isdecimal() else version
    challenger = registry.resolve(reference)
    champion = _champion(registry, challenger)
    store = FeatureStore.open(settings.storage.features_uri, options=settings.storage.options)
    items = list(_items(settings, challenger, store, progress))
    seen = _seen(settings, challenger, items)
    contract.require(
        {
            "version_intact": _intact(registry, challenger),
            "questions": len(items),
            "seen_questions": seen,
        }
    )
    models = {BASE: BASE, CHALLENGER: challenger.ref}
    if champion is not None and champion.ref != challenger.ref:
        models[CHAMPION] = champion.ref
    asked = _ask_models(settings, models, items, store, embedder, progress)
    rival = champion.ref if champion is not None else "none"
    if CHAMPION in models and CHAMPION not in asked:
        rival += ", which cannot be loaded with this base model, store and settings"
    if champion is not None and champion.ref == challenger.ref:
        asked[CHAMPION] = asked[CHALLENGER]
    first, *others = asked.values()
    contract.hold({"same_questions": all(o.snapshots == first.snapshots for o in others)})

    judged = {name: answers.judged for name, answers in asked.items()}
    verdict = reach_verdict(
        judged,
        gates=gates,
        samples=config.bootstrap_samples,
        seed=config.seed,
    )
    promote = verdict.passed and config.promote and not dry_run
    sentence = _sentence(
        verdict, challenger, promote=promote, dry_run=dry_run, wanted=config.promote
    )
    if all(item.by_rules for item in items):
        sentence += (
            " It was judged by questions that rules made, in the words of the text: how it answers "
            "people's, evaluation.questions would tell."
        )
    facts: dict[str, Any] = {}
    path: Path | None = None
    if not dry_run:
        path = _write(
            settings,
            run_id,
            challenger,
            verdict,
            judged,
            sentence=sentence,
            source_of={item.id: item.source for item in items},
            facts={"champion before": rival, "of them near training rows": seen},
        )
        if promote:
            registry.set_alias(
                challenger.name, CHAMPION, challenger.version, why=sentence, report=str(path)
            )
        moved = any(
            change.alias == CHAMPION and change.report == str(path)
            for change in registry.history(challenger.name)
        )
        facts = {
            "report_written": path.is_file(),
            "promotion_follows_gates": moved == promote and (verdict.passed or not moved),
        }
        contract.ensure(facts)
    report = contract.finish(facts)
    return ValidationSummary(
        run_id=run_id,
        version=challenger.ref,
        report=str(path or ""),
        scores=verdict.scores,
        differences=differences_to_dict(verdict.differences),
        gates=[gate.to_dict() for gate in verdict.gates],
        promoted=promote,
        verdict=sentence,
        seconds=report.seconds,
        contract=report.summary(report_path),
    )


def _sentence(
    verdict: Verdict, version: ModelVersion, *, promote: bool, dry_run: bool, wanted: bool
) -> str:
    if not verdict.passed:
        return f"{version.ref} is not promoted: {verdict.failed}."
    if promote:
        return f"{version.ref} is promoted to champion: all {len(verdict.gates)} gates hold."
    reason = "this is a dry run" if dry_run or wanted else "evaluation.promote is off"
    return f"{version.ref} passes all {len(verdict.gates)} gates and is not promoted: {reason}."


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
) -> Iterator[Item]:
    from rag_fti.datasets import open_dataset
    from rag_fti.errors import SnapshotNotFound
    from rag_fti.evaluation.asking import items_of_files, items_of_test_split

    config = settings.evaluation
    yield from items_of_files(
        config.questions,
        held_out_only=config.held_out_only,
        most=config.max_questions,
        # Pinned once: an ingest in between must not let one model see what another did not.
        at=store.resolve(settings.inference.follow),
        progress=progress,
        seed=config.seed,
    )
    if not config.test_split:
        return
    try:
        dataset = open_dataset(
            datasets_root(settings.storage), str(version.manifest.get("dataset", ""))
        )
        snapshot = store.resolve(str(dataset.manifest["snapshot"]))
    except (DatasetError, SnapshotNotFound) as error:
        # Trained elsewhere, or on a store that is gone: the question files have to do.
        progress.note(f"no test split, and training rows may be unknown: {error}")
        return
    yield from items_of_test_split(
        dataset, most=config.max_questions, at=snapshot, seed=config.seed
    )


def _seen(settings: Settings, version: ModelVersion, items: Sequence[Item]) -> int | str:
    """How many questions the version was trained on, or nearly so; unknown without its dataset."""
    from rag_fti.datasets import open_dataset
    from rag_fti.datasets.near_duplicates import question_index, question_shingles

    try:
        dataset = open_dataset(
            datasets_root(settings.storage), str(version.manifest.get("dataset"))
        )
    except DatasetError:
        return UNKNOWN
    trained = question_index(
        dataset.rows("train").column("question").to_pylist(),
        similarity=settings.dataset.near_duplicate_similarity,
    )
    return sum(bool(trained.find(question_shingles(item.question))) for item in items)


def _ask_models(
    settings: Settings,
    models: Mapping[str, str],
    items: Sequence[Item],
    store: FeatureStore,
    embedder: Embedder | None,
    progress: Progress,
) -> dict[str, Asked]:
    """Let each model answer everything; one model is in memory at a time."""
    from rag_fti.evaluation.asking import ask
    from rag_fti.inference import build_engine
    from rag_fti.models.embedder import build_embedder

    embedder = embedder or build_embedder(settings.embedder)
    asked = {}
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
            asked[name] = ask(
                engine,
                items,
                batch=settings.batch.batch_size,
                stage=f"{name} answering",
                progress=progress,
            )
        finally:
            engine.served.close()
    return asked


def _write(
    settings: Settings,
    run_id: str,
    challenger: ModelVersion,
    verdict: Verdict,
    judged: Mapping[str, Sequence[Judged]],
    *,
    sentence: str,
    source_of: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Path:
    from rag_fti.evaluation.reporting import write_report
    from rag_fti.evaluation.scoring import scores
    from rag_fti.evaluation.verdict import by_source, differences

    config = settings.evaluation
    parts = by_source(judged, source_of)
    return write_report(
        settings.storage.root / "evaluations" / challenger.name / run_id,
        title=f"Validation of {challenger.ref}",
        facts={
            "run": run_id,
            "version": challenger.ref,
            "base model": (challenger.manifest.get("base_model") or {}).get("reference", ""),
            "questions": len(source_of),
            "bootstrap samples": config.bootstrap_samples,
            **facts,
        },
        scores=verdict.scores,
        by_source={
            source: {name: scores(answers) for name, answers in part.items()}
            for source, part in parts.items()
        },
        differences=verdict.differences,
        differences_by_source={
            source: differences(part, samples=config.bootstrap_samples, seed=config.seed)
            for source, part in parts.items()
        },
        gates=verdict.gates,
        verdict=sentence,
        judged=judged,
    )


if __name__ == "__main__":
    import sys

    from pipelines.cli import app

    app(["evaluate", *sys.argv[1:]])
