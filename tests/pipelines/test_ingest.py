from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import ingest
from pipelines.cli import app
from pipelines.commands.features import render_ingest
from rag_fti.config import Settings, load_settings
from rag_fti.errors import ContractViolation
from tests.features.made_up import HashEmbedder, write_corpus


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings(
        values={
            "storage.root": str(tmp_path / "data"),
            "chunking.max_tokens": 40,
            "chunking.min_tokens": 8,
        }
    )


def test_the_summary_has_the_promised_keys(settings: Settings) -> None:
    write_corpus(Path("docs"))
    Path("docs/bad.json").write_text("{")
    summary = ingest.run(settings, ["docs"], embedder=HashEmbedder()).to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["documents"] == {
        "added": 5, "updated": 0, "unchanged": 0, "deleted": 0, "failed": 1,
    }  # fmt: skip
    assert set(summary["chunks"]) == {"added", "reused", "deleted", "total"}
    assert summary["chunks"]["total"] == summary["chunks"]["added"] > 5
    assert [failure["source"] for failure in summary["failures"]] == ["docs/bad.json"]
    assert summary["failures"][0]["reason"]
    assert summary["contract"]["ok"]
    report = json.loads(Path(summary["contract"]["report"]).read_text())
    assert {r["name"] for r in report["results"]} >= {"full coverage", "exact spans"}
    assert summary["snapshot"].startswith("d")
    assert summary["seconds"] >= 0


def test_skipped_files_are_named_and_no_failures(settings: Settings) -> None:
    write_corpus(Path("docs"), documents=1)
    for name in ("a.bin", "b.bin", "c.bin", "old.doc"):
        Path("docs", name).write_bytes(b"\0")
    summary = ingest.run(settings, ["docs"], embedder=HashEmbedder()).to_dict()
    assert (summary["failures"], summary["skipped"]) == ([], 4)
    assert [file["source"] for file in summary["skipped_files"]] == [
        "docs/old.doc", "docs/a.bin", "docs/b.bin", "docs/c.bin",
    ]  # fmt: skip
    assert (
        "Skipped: 4 files: docs/old.doc (old binary Office format; save it as .docx), "
        "docs/a.bin (unknown type), docs/b.bin (unknown type); more are in --json"
    ) in render_ingest(summary)


def test_a_second_run_changes_nothing(settings: Settings) -> None:
    write_corpus(Path("docs"))
    first = ingest.run(settings, ["docs"], embedder=HashEmbedder())
    second = ingest.run(settings, ["docs"], embedder=HashEmbedder())
    assert second.documents["unchanged"] == 5
    assert second.snapshot == first.snapshot
    assert second.chunks == {"added": 0, "reused": 0, "deleted": 0, "total": first.chunks["total"]}


def test_another_embedder_breaks_the_precondition(settings: Settings) -> None:
    write_corpus(Path("docs"))
    ingest.run(settings, ["docs"], embedder=HashEmbedder())
    with pytest.raises(ContractViolation, match="max_tokens"):
        ingest.run(settings, ["docs"], embedder=HashEmbedder(max_tokens=99))


def test_a_dry_run_makes_no_store(settings: Settings) -> None:
    write_corpus(Path("docs"))
    summary = ingest.run(settings, ["docs"], embedder=HashEmbedder(), dry_run=True)
    assert summary.documents["added"] == 5
    assert not Path(settings.storage.features_uri).exists()


def test_importing_the_pipelines_loads_nothing_heavy() -> None:
    code = (
        "import sys; import pipelines.ingest, pipelines.feature_validation;"
        "import pipelines.feature_monitoring;"
        "assert not {'torch', 'lancedb', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def run(*words: str) -> tuple[int, dict]:
    result = CliRunner().invoke(app, [*words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_commands_from_ingest_to_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAG_FTI_ROOT", str(tmp_path / "data"))
    Path("docs").mkdir()
    Path("docs/tea.md").write_text("# Tea\n\nThe teapot is kept on the upper shelf.\n")
    Path("docs/fox.md").write_text("# Fox\n\nThe fox sleeps under the old bridge at night.\n")
    code, summary = run("ingest", "docs")
    assert (code, summary["documents"]["added"]) == (0, 2)
    code, found = run("search", "where does the fox sleep", "-k", "1")
    hit = found["hits"][0]
    assert (code, hit["source"], hit["title"]) == (0, "docs/fox.md", "Fox")
    assert Path("docs/fox.md").read_text()[hit["start"] : hit["end"]] == hit["text"]
    code, summary = run("ingest", "docs", "missing.md")
    assert (code, summary["documents"]["failed"]) == (1, 1)
    code, summary = run("ingest", "docs", "missing.md", "ingest.fail_on_quarantine=false")
    assert code == 0
    code, error = run("ingest")
    assert (code, error["error"]["type"]) == (2, "ConfigError")
    code, error = run("ingest", "docs", "chunking.max_tokens=300")
    assert (code, error["error"]["type"]) == (2, "ConfigError")
    code, judged = run("validate", "feature_validation.sample_rows=10")
    assert (code, judged["validated"]) == (0, True)
    code, measured = run("monitor", "feature_monitoring.sample_rows=10")
    assert (code, measured["metrics"]["documents"]) == (0, 2)
    assert all(Path(file).stat().st_size for file in measured["files"].values())
    code, deleted = run("delete", "docs/fox.md")
    assert (code, deleted["pinned_by"]) == (0, ["validated"])
    code, found = run("search", "where does the fox sleep", "-k", "5")
    assert [hit["source"] for hit in found["hits"]] == ["docs/tea.md"]
    code, found = run("search", "where does the fox sleep", "--at", "validated", "-k", "1")
    assert found["hits"][0]["source"] == "docs/fox.md"
    code, error = run("delete", "docs/fox.md")
    assert (code, error["error"]["type"]) == (1, "SourceError")
    code, error = run("search", "fox", "--at", "never")
    assert (code, error["error"]["type"]) == (1, "SnapshotNotFound")
