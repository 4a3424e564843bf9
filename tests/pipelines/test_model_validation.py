from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import instruction_dataset, model_validation, training
from rag_fti.config import Settings
from rag_fti.config.evaluation import GateConfig
from rag_fti.errors import ContractViolation, ModelNotFound
from rag_fti.registry import Registry
from tests.features.made_up import HashEmbedder
from tests.pipelines.flow import ingested
from tests.training.tiny import LIBRARY_WARNINGS, build_llama

pytestmark = LIBRARY_WARNINGS

LENIENT = (GateConfig(name="answers", metric="f1", against="base", minimum=-1.0),)
STRICT = (
    GateConfig(name="is perfect", metric="f1", minimum=1.1, reads="test_split"),
    GateConfig(name="runs", metric="f1", minimum=0.0, reads="question_files"),
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    llama = build_llama(tmp_path_factory.mktemp("llama"))
    settings = ingested(tmp_path_factory.mktemp("project"), llama)
    instruction_dataset.run(settings, embedder=HashEmbedder())
    training.run(settings)
    training.run(with_section(settings, "training", seed=18))
    return settings


def with_section(settings: Settings, section: str, **values: object) -> Settings:
    part = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: part})


def judge(settings: Settings, version: str, gates: tuple[GateConfig, ...]) -> dict[str, Any]:
    return model_validation.run(
        with_section(settings, "evaluation", gates=gates), version, embedder=HashEmbedder()
    ).to_dict()


def test_validation_promotes_or_says_why_not(settings: Settings) -> None:
    registry = Registry.open(settings.storage.registry_uri)
    refused = judge(settings, "assistant@1", STRICT)
    assert not refused["promoted"] and "is perfect" in refused["verdict"]
    assert registry.aliases("assistant") == {"challenger": 2}
    read = {gate["name"]: gate["questions"] for gate in refused["gates"]}
    assert read["is perfect"] + read["runs"] == refused["scores"]["base"]["questions"]
    assert min(read.values()) > 0

    first = judge(settings, "assistant@1", LENIENT)
    assert json.loads(json.dumps(first)) == first
    assert first["promoted"] and first["contract"]["ok"]
    assert set(first["scores"]) == {"base", "champion", "challenger"}
    assert first["scores"]["champion"] is None
    assert set(first["gates"][0]) >= {"name", "ok", "value", "threshold"}
    report = Path(first["report"])
    content = json.loads(report.read_text())
    assert set(content["by_source"]) == {"questions.jsonl", "test split"}
    assert set(content["differences_by_source"]["test split"]["base"]) >= {"f1", "f1_answerable"}
    assert content["scores"]["base"]["questions"] == len(content["answers"]["base"])
    assert (report.parent / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "## Gates" in (report.parent / "report.md").read_text()
    change = registry.history("assistant")[-1]
    assert (change.alias, change.to_version, change.report) == ("champion", 1, str(report))

    second = judge(settings, "challenger", LENIENT)
    assert second["version"] == "assistant@2" and second["scores"]["champion"]
    assert registry.aliases("assistant")["champion"] == 2
    assert registry.rollback("assistant").to_version == 1


def test_a_dry_run_moves_nothing(settings: Settings) -> None:
    registry = Registry.open(settings.storage.registry_uri)
    before = registry.history("assistant")
    written = set(settings.storage.root.rglob("*"))
    summary = model_validation.run(
        with_section(settings, "evaluation", gates=LENIENT), "2", embedder=HashEmbedder(),
        dry_run=True,
    )  # fmt: skip
    assert not summary.promoted and "dry run" in summary.verdict
    assert registry.history("assistant") == before
    assert summary.report == ""
    assert set(settings.storage.root.rglob("*")) == written


def test_questions_that_were_trained_on_are_refused(settings: Settings, tmp_path: Path) -> None:
    lines = settings.evaluation.questions[0].read_text().splitlines()
    seen = tmp_path / "seen.jsonl"
    seen.write_text("\n".join(line for line in lines if '"held_out": false' in line) + "\n")
    with pytest.raises(ContractViolation, match="questions unseen"):
        judge(with_section(settings, "evaluation", questions=(seen,)), "1", LENIENT)


def test_without_its_dataset_nobody_knows_what_a_version_has_seen(settings: Settings) -> None:
    registry = Registry.open(settings.storage.registry_uri)
    first = registry.version("assistant", 1)
    manifest = {**first.manifest, "dataset": "gone@000000000000"}
    version = registry.publish("assistant", first.path, manifest)
    summary = model_validation.run(
        with_section(settings, "evaluation", gates=LENIENT, promote=False),
        version.ref,
        embedder=HashEmbedder(),
    )
    checks = json.loads(Path(summary.contract["report"]).read_text())["results"]
    (unseen,) = [check for check in checks if check["name"] == "questions unseen"]
    assert (unseen["ok"], unseen["value"]) == (True, "unknown")
    assert json.loads(Path(summary.report).read_text())["of them near training rows"] == "unknown"


def test_a_verdict_from_questions_that_rules_made_says_so(settings: Settings) -> None:
    ruled = with_section(
        settings, "dataset", name="ruled", generators=("structure",), pairs=(), test_share=0.4
    )
    dataset = instruction_dataset.run(ruled, embedder=HashEmbedder())
    registry = Registry.open(settings.storage.registry_uri)
    first = registry.version("assistant", 1)
    manifest = {**first.manifest, "dataset": dataset.dataset}
    version = registry.publish("assistant", first.path, manifest)
    for questions, remarked in (((), True), (settings.evaluation.questions, False)):
        asked = with_section(
            settings, "evaluation", gates=LENIENT, promote=False, questions=questions
        )
        verdict = model_validation.run(asked, version.ref, embedder=HashEmbedder()).verdict
        assert ("evaluation.questions" in verdict) == remarked


def test_a_damaged_version_is_refused(settings: Settings) -> None:
    registry = Registry.open(settings.storage.registry_uri)
    version = registry.publish("assistant", registry.version("assistant", 1).path, {"dataset": ""})
    card = version.path / "README.md"
    card.chmod(0o644)
    card.write_text("changed")
    with pytest.raises(ContractViolation, match="version intact"):
        judge(settings, version.ref, LENIENT)
    with pytest.raises(ModelNotFound, match="no assistant@99"):
        judge(settings, "assistant@99", LENIENT)
