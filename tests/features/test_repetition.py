from __future__ import annotations

from pathlib import Path

import lancedb
import pytest

from pipelines import ingest
from pipelines.commands.features import render_ingest
from rag_fti.config import load_settings
from rag_fti.feature_store import FeatureStore
from rag_fti.features.totals import NearDuplicate
from tests.features.made_up import HashEmbedder, make_ingestor, write_corpus


def nearly(path: Path) -> str:
    """A text with one word changed."""
    return path.read_text().replace("word1x1x5", "another")


def pairs(found: list[NearDuplicate]) -> set[tuple[str, str]]:
    return {(pair.source, pair.like) for pair in found}


def test_near_duplicates_are_reported_within_a_batch_and_against_the_store(
    store: FeatureStore,
) -> None:
    write_corpus(Path("docs"), documents=5)
    Path("docs/same.md").write_text(nearly(Path("docs/doc-1.md")))
    ingestor = make_ingestor(store)
    first = ingestor.ingest(["docs"])
    assert {frozenset(pair) for pair in pairs(first.near_duplicates)} == {
        frozenset(("docs/doc-1.md", "docs/same.md"))
    }
    assert 0.8 <= first.near_duplicates[0].similarity < 1
    assert ingestor.ingest(["docs"]).near_duplicates == []
    Path("docs/late.md").write_text(nearly(Path("docs/doc-1.md")) + "\nThe end.\n")
    late = ingestor.ingest(["docs"])
    assert pairs(late.near_duplicates) == {
        ("docs/late.md", "docs/doc-1.md"),
        ("docs/late.md", "docs/same.md"),
    }


@pytest.mark.parametrize("edit", ["", "\nThe end.\n"])
@pytest.mark.parametrize("earlier_run", [True, False])
def test_a_moved_file_is_not_like_its_old_place_that_is_pruned(
    store: FeatureStore, edit: str, earlier_run: bool
) -> None:
    write_corpus(Path("docs"), documents=3)
    make_ingestor(store).ingest(["docs"])
    moved = Path("docs/doc-1.md").rename("docs/moved.md")
    moved.write_text(moved.read_text() + edit)
    if earlier_run:
        make_ingestor(store).ingest(["docs"])
    totals = make_ingestor(store).ingest(["docs"], prune=True)
    assert totals.deleted == 1
    assert totals.near_duplicates == []


def test_documents_of_other_collections_and_empty_ones_are_left_out(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=2)
    make_ingestor(store).ingest(["docs"])
    Path("other").mkdir()
    Path("other/copy.md").write_text(nearly(Path("docs/doc-1.md")))
    Path("other/a.md").write_text("***\n")
    Path("other/b.md").write_text("---\n")
    assert make_ingestor(store, collection="other").ingest(["other"]).near_duplicates == []


def test_the_summary_names_them(tmp_path: Path) -> None:
    settings = load_settings(values={"storage.root": str(tmp_path / "root")})
    write_corpus(Path("docs"), documents=2)
    Path("docs/same.md").write_text(nearly(Path("docs/doc-1.md")))
    summary = ingest.run(settings, ["docs"], embedder=HashEmbedder(max_tokens=300)).to_dict()
    assert len(summary["near_duplicates"]) == 1
    assert "Near duplicates: 1, such as docs/" in render_ingest(summary)


def test_a_store_from_before_there_were_sketches_gets_them(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=2)
    make_ingestor(store).ingest(["docs"])
    lancedb.connect(store.uri).open_table("documents").drop_columns(["sketch"])
    again = FeatureStore.open(store.uri)
    Path("docs/same.md").write_text(nearly(Path("docs/doc-1.md")))
    totals = make_ingestor(again).ingest(["docs"])
    assert (totals.added, totals.unchanged) == (1, 2)
    assert totals.near_duplicates == []  # the old rows have none
    assert again.documents(columns=["sketch"])["sketch"].null_count == 2
