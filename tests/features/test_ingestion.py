from __future__ import annotations

import os
import random
import shutil
import threading
import warnings
import zipfile
from pathlib import Path

import pytest

from rag_fti import ids
from rag_fti.errors import IncompatibleArtifact, StoreError
from rag_fti.feature_store import FeatureStore
from rag_fti.features.ingestion import recipe_digest
from rag_fti.features.loading import LoadTask
from tests.features.made_up import (
    HashEmbedder,
    contents,
    make_chunker,
    make_ingestor,
    write_corpus,
)


def sources_of(store: FeatureStore) -> list[str]:
    return sorted(store.documents(columns=["source"])["source"].to_pylist())


def test_every_file_becomes_a_document_whose_chunks_cover_it(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    totals = make_ingestor(store).ingest(["docs"])
    assert (totals.added, totals.updated, totals.unchanged) == (5, 0, 0)
    for row in store.documents().to_pylist():
        chunks = store.chunks(where=f"document_id = '{row['document_id']}'").to_pylist()
        chunks.sort(key=lambda chunk: chunk["ordinal"])
        assert "".join(chunk["text"] for chunk in chunks) == row["text"]
        assert row["text"] == Path(row["source"]).read_text(encoding="utf-8")
        assert [c["ordinal"] for c in chunks] == list(range(row["chunk_count"]))
        assert row["document_id"] == ids.document_id("default", row["source"])
    assert store.search_text("word2x3x4", k=1)[0].source == "docs/doc-2.md"


def test_an_unchanged_run_embeds_and_writes_nothing(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    embedder = HashEmbedder()
    make_ingestor(store, embedder).ingest(["docs"])
    before, embedded = store.snapshot(), len(embedder.embedded)
    totals = make_ingestor(store, embedder).ingest(["./docs"])
    assert (totals.unchanged, totals.added, totals.changed) == (5, 0, False)
    assert len(embedder.embedded) == embedded
    assert store.snapshot() == before


def test_a_changed_document_embeds_only_its_changed_chunks(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    embedder = HashEmbedder()
    first = make_ingestor(store, embedder).ingest(["docs"])
    file = Path("docs/doc-1.md")
    file.write_text(file.read_text().replace("word1x4x5", "marmalade"))
    embedder.embedded.clear()
    totals = make_ingestor(store, embedder).ingest(["docs"])
    assert (totals.updated, totals.unchanged) == (1, 4)
    assert len(embedder.embedded) == totals.chunks_added == totals.chunks_deleted == 1
    assert totals.chunks_reused == first.chunks_added // 5 - 1
    assert store.search_text("word1x4x5", k=5) == []
    assert len(store.search_text("marmalade", k=5)) == 1
    assert store.count_chunks() == first.chunks_added


def test_equal_text_in_two_documents_is_embedded_once(store: FeatureStore) -> None:
    embedder = HashEmbedder()
    Path("a.md").write_text("# Same\n\nThe same paragraph.\n")
    Path("b.md").write_text("# Same\n\nThe same paragraph.\n\n# More\n\nOther words.\n")
    make_ingestor(store, embedder).ingest(["a.md", "b.md"])
    assert len(embedder.embedded) == len(set(embedder.embedded))
    assert sources_of(store) == ["a.md", "b.md"]


def test_files_with_equal_bytes_are_stored_once_with_all_sources(store: FeatureStore) -> None:
    Path("a.md").write_text("# Title\n\nSome words.\n")
    for name in ("b.md", "c.md"):
        shutil.copy("a.md", name)
    totals = make_ingestor(store).ingest(["a.md", "b.md", "c.md"])
    assert totals.added == 3
    row = store.documents().to_pylist()[0]
    assert (row["source"], row["sources"]) == ("a.md", ["a.md", "b.md", "c.md"])
    assert store.documents().num_rows == store.chunks().num_rows == 1
    assert make_ingestor(store).ingest(["a.md", "b.md", "c.md"]).unchanged == 3


def test_a_later_copy_joins_and_a_changed_original_leaves(store: FeatureStore) -> None:
    embedder = HashEmbedder()
    Path("a.md").write_text("# Title\n\nSome words.\n")
    make_ingestor(store, embedder).ingest(["a.md"])
    shutil.copy("a.md", "b.md")
    make_ingestor(store, embedder).ingest(["b.md"])
    assert store.documents()["sources"].to_pylist() == [["a.md", "b.md"]]
    Path("a.md").write_text("# Title\n\nOther words.\n")
    totals = make_ingestor(store, embedder).ingest(["a.md"])
    assert totals.updated == 1
    rows = {row["source"]: row for row in store.documents().to_pylist()}
    assert rows["a.md"]["sources"] == ["a.md"]
    assert rows["b.md"]["sources"] == ["b.md"]
    assert "Other" in rows["a.md"]["text"]
    assert "Some" in rows["b.md"]["text"]
    assert store.chunks().num_rows == 2
    assert len(embedder.embedded) == 2
    assert store.incomplete_documents() == frozenset()


def test_removing_the_original_leaves_the_copy(store: FeatureStore) -> None:
    Path("docs").mkdir()
    Path("docs/a.md").write_text("# Title\n\nSome words.\n")
    shutil.copy("docs/a.md", "docs/b.md")
    make_ingestor(store).ingest(["docs"])
    Path("docs/a.md").unlink()
    totals = make_ingestor(store).ingest(["docs"], prune=True)
    assert totals.deleted == 1
    assert store.documents()["sources"].to_pylist() == [["docs/b.md"]]
    assert [hit.source for hit in store.search_text("words", k=5)] == ["docs/b.md"]


def test_a_document_without_title_is_named_after_the_copy_that_is_left(store: FeatureStore) -> None:
    Path("docs").mkdir()
    Path("docs/a-draft.txt").write_text("Some words.\n")
    shutil.copy("docs/a-draft.txt", "docs/final.txt")
    make_ingestor(store).ingest(["docs"])
    assert store.documents()["title"].to_pylist() == ["a draft"]
    Path("docs/a-draft.txt").unlink()
    make_ingestor(store).ingest(["docs"], prune=True)
    assert store.documents()["title"].to_pylist() == ["final"]
    assert [hit.source for hit in store.search_text("final", k=5)] == ["docs/final.txt"]


def test_prune_removes_only_what_is_gone_below_the_given_paths(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    write_corpus(Path("other"), documents=1, paragraphs=2)
    make_ingestor(store).ingest(["docs", "other"])
    Path("docs/doc-3.md").unlink()
    Path("docs/doc-4.md").rename("docs/moved.md")
    shutil.rmtree("other")
    assert make_ingestor(store).ingest(["docs"]).deleted == 0  # not without --prune
    totals = make_ingestor(store).ingest(["docs"], prune=True)
    assert totals.deleted == 2
    assert "docs/doc-3.md" not in sources_of(store)
    assert "docs/moved.md" in sources_of(store)
    assert "other/doc-0.md" in sources_of(store)
    totals = make_ingestor(store).ingest(["other"], prune=True)
    assert (totals.deleted, totals.failures) == (1, {})


def test_prune_keeps_files_that_are_there_but_not_taken(store: FeatureStore) -> None:
    Path("docs").mkdir()
    Path("docs/a.md").write_text("words of a")
    Path("docs/LICENSE").write_text("words of the licence")
    with zipfile.ZipFile("docs/old.zip", "w") as archive:
        archive.writestr("b.md", "words of b")
        archive.writestr("c.md", "words of c")
    make_ingestor(store).ingest(["docs", "docs/LICENSE"])
    kept = ["docs/LICENSE", "docs/a.md", "docs/old.zip!/b.md", "docs/old.zip!/c.md"]
    excluding = make_ingestor(store, exclude=["*.zip", "a.md"])
    assert excluding.preview(["docs"], prune=True).deleted == 0
    assert excluding.ingest(["docs"], prune=True).deleted == 0
    assert excluding.follow(["docs"]).deleted == 0
    assert sources_of(store) == kept
    with zipfile.ZipFile("docs/old.zip", "w") as archive:
        archive.writestr("b.md", "words of b")
    Path("docs/LICENSE").unlink()
    assert make_ingestor(store).ingest(["docs"], prune=True).deleted == 2
    assert sources_of(store) == ["docs/a.md", "docs/old.zip!/b.md"]


def test_a_bad_file_is_set_aside_and_the_rest_goes_in(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=2)
    Path("docs/broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    Path("docs/copy.pdf").write_bytes(b"%PDF-1.4 nothing more")
    Path("docs/secret.md").symlink_to("nowhere.md")
    totals = make_ingestor(store).ingest(["docs", "missing.md", "nothing-*.md"])
    assert sources_of(store) == ["docs/doc-0.md", "docs/doc-1.md"]
    assert set(totals.failures) == {
        "docs/broken.pdf", "docs/copy.pdf", "docs/secret.md", "missing.md", "nothing-*.md",
    }  # fmt: skip
    assert totals.added == 2


def test_a_document_that_becomes_unreadable_keeps_its_last_good_state(store: FeatureStore) -> None:
    Path("data.json").write_text('{"colour": "vermilion"}')
    make_ingestor(store).ingest(["data.json"])
    Path("data.json").write_text('{"colour": ')
    totals = make_ingestor(store).ingest(["data.json"], prune=True)
    assert "data.json" in totals.failures
    assert len(store.search_text("vermilion", k=1)) == 1


def test_documents_of_a_directory_that_cannot_be_listed_are_kept(store: FeatureStore) -> None:
    Path("docs").mkdir()
    Path("docs/a.md").write_text("words")
    # Root may list every directory, but not one whose path is too long for the system.
    path, here = "docs", os.open("docs", os.O_RDONLY)
    while len(path) < 4096:
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        path, here = f"{path}/{'d' * 200}", below
    os.close(here)
    make_ingestor(store).ingest(["docs"])
    make_ingestor(store).ingest_tasks([LoadTask(f"{path}/b.md", data=b"other words")])
    Path("docs/a.md").unlink()
    assert make_ingestor(store).preview(["docs"], prune=True).deleted == 1
    totals = make_ingestor(store).ingest(["docs"], prune=True)
    assert totals.deleted == 1
    assert "directory cannot be read" in totals.failures[path]
    assert sources_of(store) == [f"{path}/b.md"]


def test_text_that_becomes_empty_has_no_chunks_left(store: FeatureStore) -> None:
    Path("a.md").write_text("words")
    make_ingestor(store).ingest(["a.md"])
    Path("a.md").write_text("")
    make_ingestor(store).ingest(["a.md"])
    assert store.chunks().num_rows == 0
    assert store.documents()["chunk_count"].to_pylist() == [0]
    assert make_ingestor(store).ingest(["a.md"]).unchanged == 1
    assert store.incomplete_documents() == frozenset()


def test_collections_are_apart(store: FeatureStore) -> None:
    Path("a.md").write_text("words of one kind")
    make_ingestor(store, collection="one").ingest(["a.md"])
    totals = make_ingestor(store, collection="two").ingest(["a.md"])
    assert totals.added == 1
    assert store.documents().num_rows == 2
    assert len(store.search_text("words", k=9, where="collection = 'two'")) == 1
    make_ingestor(store, collection="one").remove(["a.md"])
    assert store.documents()["collection"].to_pylist() == ["two"]


def test_other_chunk_sizes_cut_documents_again(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=2)
    first = make_ingestor(store).ingest(["docs"])
    other = make_ingestor(store)
    other._chunker = make_chunker(HashEmbedder(), max_tokens=80)
    other._recipe = recipe_digest(other._chunker)
    totals = other.ingest(["docs"])
    assert totals.updated == 2
    assert store.count_chunks() < first.chunks_added
    assert store.incomplete_documents() == frozenset()


def test_another_embedder_is_refused(store: FeatureStore) -> None:
    Path("a.md").write_text("words")
    make_ingestor(store).ingest(["a.md"])
    with pytest.raises(IncompatibleArtifact, match="max_tokens"):
        make_ingestor(store, HashEmbedder(max_tokens=64))


def test_pushed_bytes_go_the_same_way_as_files(store: FeatureStore, tmp_path: Path) -> None:
    write_corpus(Path("docs"))
    make_ingestor(store).ingest(["docs"])
    pushed = FeatureStore.open(str(tmp_path / "pushed"))
    tasks = [LoadTask(str(p), data=p.read_bytes()) for p in sorted(Path("docs").iterdir())]
    make_ingestor(pushed).ingest_tasks(tasks)
    assert contents(pushed) == contents(store)


def test_a_crash_between_the_two_commits_is_repaired(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    make_ingestor(store).ingest(["docs"])
    good = contents(store)
    # A run that died after the chunks' commit leaves documents without their row.
    victims = good["documents"][:2]
    table = store._tables.get("documents")
    table.delete(f"document_id = '{victims[0]['document_id']}'")
    store._tables.get("chunks").delete(f"document_id = '{victims[1]['document_id']}'")
    assert store.incomplete_documents() == {v["document_id"] for v in victims}
    make_ingestor(store).ingest(["docs"])
    assert contents(store) == good


def test_two_ingesters_at_once_leave_what_one_would(store: FeatureStore, tmp_path: Path) -> None:
    write_corpus(Path("docs"), documents=9)
    alone = FeatureStore.open(str(tmp_path / "alone"))
    make_ingestor(alone).ingest(["docs"])
    make_ingestor(store)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            make_ingestor(FeatureStore.open(store.uri), batch_documents=2).ingest(["docs"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contents(store) == contents(alone)


def test_a_dry_run_counts_and_writes_nothing(store: FeatureStore) -> None:
    write_corpus(Path("docs"))
    make_ingestor(store).ingest(["docs"])
    before = store.snapshot()
    Path("docs/doc-0.md").unlink()
    Path("docs/doc-1.md").write_text("changed")
    Path("docs/new.md").write_text("new")
    totals = make_ingestor(store).preview(["docs"], prune=True)
    assert (totals.added, totals.updated, totals.unchanged, totals.deleted) == (1, 1, 3, 1)
    assert store.snapshot() == before


def test_file_names_that_are_no_text_are_no_problem(store: FeatureStore) -> None:
    Path("docs").mkdir()
    name = b"docs/caf\xe9 'quoted'.md"
    Path(os.fsdecode(name)).write_text("vermilion words")
    make_ingestor(store).ingest(["docs"])
    assert make_ingestor(store).ingest(["docs"]).unchanged == 1
    assert len(store.search_text("vermilion", k=1)) == 1
    assert make_ingestor(store).remove(sources_of(store)).deleted == 1
    assert store.chunks().num_rows == 0


def test_two_files_that_swap_their_contents(store: FeatureStore) -> None:
    Path("a.md").write_text("# First\n\napple words\n")
    Path("b.md").write_text("# Second\n\nbanana words\n")
    make_ingestor(store).ingest(["a.md", "b.md"])
    Path("a.md").rename("c.md")
    Path("b.md").rename("a.md")
    Path("c.md").rename("b.md")
    make_ingestor(store).ingest(["a.md", "b.md"])
    check_against_disk(store, ["a.md", "b.md"])


@pytest.mark.parametrize("shared", ["", "the same last words.\n"])
def test_two_equal_files_that_both_change(store: FeatureStore, shared: str) -> None:
    files = ["a.md", "b.md"]
    for file in files:
        Path(file).write_text(f"# Equal\n\nwords of both.\n\n# End\n\n{shared}")
    make_ingestor(store).ingest(files)
    for file in files:
        Path(file).write_text(f"# Changed\n\nwords of {file}.\n\n# End\n\n{shared}")
    make_ingestor(store).ingest(files)
    check_against_disk(store, files)


def test_files_that_break_alike_keep_their_last_good_state(store: FeatureStore) -> None:
    Path("a.json").write_text('{"colour": "vermilion"}')
    Path("b.json").write_text('{"colour": "turquoise"}')
    make_ingestor(store).ingest(["a.json", "b.json"])
    for file in ("a.json", "b.json"):
        Path(file).write_text('{"colour": ')
    totals = make_ingestor(store).ingest(["a.json", "b.json"], prune=True)
    assert (sorted(totals.failures), totals.added) == (["a.json", "b.json"], 0)
    assert sources_of(store) == ["a.json", "b.json"]


def test_a_copy_of_a_document_whose_own_file_broke(store: FeatureStore) -> None:
    Path("a.json").write_text('{"colour": "vermilion"}')
    make_ingestor(store).ingest(["a.json"])
    shutil.copy("a.json", "copy.json")
    Path("a.json").write_text('{"colour": ')
    for added in (1, 0):
        totals = make_ingestor(store).ingest(["a.json", "copy.json"])
        assert (list(totals.failures), totals.added) == (["a.json"], added)
        (row,) = store.documents().to_pylist()
        assert sorted(row["sources"]) == ["a.json", "copy.json"]


def test_a_pattern_prunes_only_what_it_matches(store: FeatureStore) -> None:
    Path("docs/sub").mkdir(parents=True)
    for file in ("docs/a.md", "docs/b.md", "docs/sub/c.md"):
        Path(file).write_text(f"words of {file}\n")
    make_ingestor(store).ingest(["docs"])
    Path("docs/b.md").unlink()
    make_ingestor(store).ingest(["docs/*.md"], prune=True)
    assert sources_of(store) == ["docs/a.md", "docs/sub/c.md"]


def test_a_dry_run_says_what_prune_would_remove(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=2)
    make_ingestor(store).ingest(["docs"])
    shutil.rmtree("docs")
    for dry in (True, False):
        ingestor = make_ingestor(store)
        work = ingestor.preview if dry else ingestor.ingest
        totals = work(["docs"], prune=True)
        assert (totals.deleted, totals.failures) == (2, {})


def check_against_disk(store: FeatureStore, files: list[str]) -> None:
    """Every file is one source of one document with its text; nothing else is stored."""
    rows = store.documents().to_pylist()
    texts = {source: row["text"] for row in rows for source in row["sources"]}
    assert texts == {file: Path(file).read_text() for file in files}
    assert sum(len(row["sources"]) for row in rows) == len(files)
    assert len({row["text"] for row in rows}) == len(rows)  # equal contents are stored once
    for row in rows:
        assert row["source"] == row["sources"][0]
        assert row["document_id"] == ids.document_id("default", row["source"])
        chunks = store.chunks(where=f"document_id = '{row['document_id']}'").to_pylist()
        chunks.sort(key=lambda chunk: chunk["ordinal"])
        assert "".join(chunk["text"] for chunk in chunks) == row["text"]
        assert {chunk["source"] for chunk in chunks} <= {row["source"]}
    assert store.incomplete_documents() == frozenset()
    assert store.repeated_chunks() == 0


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_leaves_what_is_on_disk(store: FeatureStore, seed: int) -> None:
    chance = random.Random(seed)
    contents_pool = [f"# Text {n}\n\nwords of text number {n}.\n" for n in range(4)]
    root = Path("docs")
    root.mkdir()
    for _ in range(6):
        for _ in range(chance.randint(1, 6)):
            file = root / f"{chance.randrange(6)}.md"
            other = root / f"{chance.randrange(6)}.md"
            action = chance.choice(["write", "write", "delete", "move", "copy"])
            if action == "write":
                file.write_text(chance.choice(contents_pool))
            elif action == "delete":
                file.unlink(missing_ok=True)
            elif file.exists() and file != other:
                (shutil.copy if action == "copy" else shutil.move)(file, other)
        make_ingestor(store, batch_documents=chance.choice([1, 2, 9])).ingest(["docs"], prune=True)
        check_against_disk(store, sorted(map(str, root.iterdir())))


def test_an_archive_with_two_members_of_one_name(store: FeatureStore) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile("a.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.md", "first words")
        archive.writestr("a.md", "second words")
    totals = make_ingestor(store).ingest(["a.zip"])
    assert totals.added == 1
    assert "twice" in totals.failures["a.zip!/a.md"]


def test_a_store_with_a_file_cut_short_says_what_to_do(store: FeatureStore) -> None:
    write_corpus(Path("docs"), documents=1)
    make_ingestor(store).ingest(["docs"])
    for file in Path(store.uri).glob("chunks.lance/data/*.lance"):
        os.truncate(file, 40)
    with pytest.raises(StoreError) as caught:
        FeatureStore.open(store.uri).chunks()
    assert "restore the store from a copy" in caught.value.next_step
