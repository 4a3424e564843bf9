from __future__ import annotations

import dataclasses
import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rag_fti import schemas
from rag_fti.errors import IncompatibleArtifact, SchemaMismatch, SnapshotNotFound, StoreError
from rag_fti.feature_store import FeatureStore, sql_string
from rag_fti.feature_store.snapshots import pin_answered
from rag_fti.schemas import predictions_schema
from tests.feature_store.conftest import DIMENSION, FINGERPRINT, Put, rows_of, vector_of


def test_an_empty_store_says_so_and_reads_no_rows_as_failure(store: FeatureStore) -> None:
    assert not store.exists()
    assert store.tags() == {}
    assert store.rows("feedback").num_rows == 0
    for read in (store.snapshot, store.recipe, lambda: store.search_text("x", k=1)):
        with pytest.raises(StoreError, match="ingest"):
            read()


def test_search_finds_by_vector_and_by_text(store: FeatureStore, put: Put) -> None:
    put("a.md", ["the quick brown fox. ", "jumps over lazy dogs."])
    put("b.md", ["nothing of the kind."])
    hits = store.search_vectors(vector_of("nothing of the kind."), k=2)
    assert hits[0].source == "b.md"
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert [h.text for h in store.search_text("jumping dog", k=5)] == ["jumps over lazy dogs."]
    assert store.search_text("b.md", k=5)[0].source == "b.md"  # titles are searched too
    assert store.exists()


def test_ranking_then_reading_finds_what_one_step_finds(store: FeatureStore, put: Put) -> None:
    put("a.md", ["red apples grow. ", "green apples fall. ", "pears."])
    put("b.md", ["apples and pears.", "no fruit at all."])
    at = store.snapshot()
    vector = vector_of("green apples fall. ")
    for _ in range(2):
        ranked = store.rank_vectors(vector, k=3, at=at)
        assert store.read_rows(ranked, at=at) == store.search_vectors(vector, k=3, at=at)
        assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
        by_text = store.rank_text("apples", k=9, where="source = 'a.md'", at=at)
        found = store.read_rows(by_text, at=at)
        assert {hit.text for hit in found} == {"red apples grow. ", "green apples fall. "}
        put("a.md", ["rewritten."])  # moves rows; the snapshot keeps its own
        store.optimize()
    assert store.read_rows({}, at=at) == []
    with pytest.raises(StoreError, match=r"read chunks|not in"):
        store.read_rows({max(ranked) + 2**40: 1.0}, at=at)


@pytest.mark.parametrize(
    "query", ["", "the", '"', "a AND (b", "x' OR 1=1 --", "\x00", "🙂", ":)" * 99]
)
def test_any_user_text_is_a_safe_query(store: FeatureStore, put: Put, query: str) -> None:
    put("a.md", ["the quick brown fox"])
    assert isinstance(store.search_text(query, k=5), list)


def test_filters_apply_before_the_search(store: FeatureStore, put: Put) -> None:
    put("a.md", ["apples are red"], collection="fruit")
    put("it's.md", ["apples are computers"], collection="tech")
    hits = store.search_text("apples", k=1, where="collection = 'tech'")
    assert [h.source for h in hits] == ["it's.md"]
    where = f"source = {sql_string(chr(39).join(['it', 's.md']))}"
    assert len(store.search_vectors(vector_of("x"), k=9, where=where)) == 1
    with pytest.raises(StoreError, match="filter"):
        store.search_text("apples", k=1, where="no such thing")


def test_replacing_a_document_removes_its_stale_chunks(store: FeatureStore, put: Put) -> None:
    document = put("a.md", ["one ", "two ", "three "])
    put("a.md", ["one ", "TWO "])
    assert store.chunks(columns=["text"])["text"].to_pylist().count("one ") == 1
    assert sorted(h.text for h in store.neighbours(document, 0, 9)) == ["TWO ", "one "]
    assert store.search_text("three", k=5) == []


def test_neighbours_get_chunks_vectors_document(store: FeatureStore, put: Put) -> None:
    document = put("a.md", ["zero ", "one ", "two ", "three "])
    around = store.neighbours(document, 1, 1)
    assert [h.ordinal for h in around] == [0, 1, 2]
    withheld = f"chunk_id NOT IN ({sql_string(around[0].chunk_id)})"
    assert [h.ordinal for h in store.neighbours(document, 1, 1, where=withheld)] == [1, 2]
    identifiers = [h.chunk_id for h in reversed(around)]
    assert [h.text for h in store.get_chunks([*identifiers, "unknown"])] == [
        "two ",
        "one ",
        "zero ",
    ]
    np.testing.assert_allclose(
        store.vectors(identifiers), np.stack([vector_of(t) for t in ["two ", "one ", "zero "]])
    )
    with pytest.raises(StoreError):
        store.vectors(["unknown"])
    row = store.document(document)
    assert row is not None
    assert row["text"] == "zero one two three "
    assert store.document("unknown") is None


def test_time_travel_by_snapshot_and_by_tag(store: FeatureStore, put: Put) -> None:
    put("a.md", ["old words"])
    before = store.snapshot()
    store.tag("keep")
    put("a.md", ["new words"])
    assert store.snapshot() != before
    assert [h.text for h in store.search_text("words", k=5)] == ["new words"]
    for at in (before, "keep"):
        assert [h.text for h in store.search_text("words", k=5, at=at)] == ["old words"]
        assert store.documents(at=at, columns=["text"])["text"].to_pylist() == ["old words"]
    assert store.tags() == {"keep": before}
    store.tag("keep")
    assert store.resolve("keep") == store.snapshot()
    store.untag("keep")
    for missing in ("keep", "d999c999", "nothing"):
        with pytest.raises(SnapshotNotFound):
            store.resolve(missing)
    with pytest.raises(StoreError):
        store.tag("d1c1")


def test_clean_up_keeps_tagged_states_and_drops_the_rest(store: FeatureStore, put: Put) -> None:
    put("a.md", ["first words"])
    first = store.snapshot()
    put("a.md", ["second words"])
    store.tag("pinned")
    put("a.md", ["third words"])
    store.optimize(keep_days=0)
    assert [h.text for h in store.search_text("words", k=5, at="pinned")] == ["second words"]
    assert [h.text for h in store.search_text("words", k=5)] == ["third words"]
    with pytest.raises(SnapshotNotFound):
        FeatureStore.open(store.uri).resolve(first)


def test_clean_up_keeps_the_states_of_recent_answers(store: FeatureStore, put: Put) -> None:
    def answer_now(days_ago: float) -> str:
        row = {f.name: "" for f in predictions_schema() if f.type == pa.string()}
        now = datetime.now(UTC) - timedelta(days=days_ago)
        made = {"abstained": False, "created_at": now, "snapshot": store.snapshot()}
        store.append("predictions", [{**row, **made}])
        return store.snapshot()

    put("a.md", ["first words"])
    stale = answer_now(days_ago=31)
    put("a.md", ["second words"])
    recent = answer_now(days_ago=29)
    doomed = put("a.md", ["third xylophone"])
    store.optimize(keep_days=0)
    opened = FeatureStore.open(store.uri)
    assert opened.tags() == {f"answered-{recent}": recent}
    assert [h.text for h in opened.search_text("words", k=5, at=recent)] == ["second words"]
    with pytest.raises(SnapshotNotFound, match="keep_answered_days"):
        opened.resolve(stale)
    store.optimize(keep_days=0, keep_answered_days=28)
    assert store.tags() == {}
    answer_now(days_ago=0)
    put("b.md", ["more words"])
    store.optimize(keep_days=0)
    assert len(store.tags()) == 1
    store.delete_documents([doomed])
    assert store.purge() == []
    assert files_with(Path(store.uri), b"xylophon") == []


def test_states_of_answers_are_pinned_by_several_at_once(store: FeatureStore, put: Put) -> None:
    states = [store.resolve("") for n in range(4) if put(f"{n}.md", ["words"])]

    def clean_up(number: int) -> None:
        tables = FeatureStore.open(store.uri)._tables  # as in another process
        for turn in range(6):
            pin_answered(tables, states[: (number + turn) % 5])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(clean_up, range(4)))
    assert set(store.tags().values()) <= set(states)


def files_with(root: Path, needle: bytes) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file() and needle in p.read_bytes()]


def test_deleted_bytes_are_gone_after_purge(store: FeatureStore, put: Put) -> None:
    root = Path(store.uri)
    doomed = put("secret-source.md", ["the xylophonic password ", "is quetzalcoatlus"])
    put("other.md", ["harmless words"])
    store.optimize()  # into the indexes as well
    needles = (b"xylophon", b"quetzalcoatlu", b"secret-source", doomed.encode())
    assert any(files_with(root, needle) for needle in needles)
    assert store.delete_documents([doomed]) == 2
    assert store.search_text("password", k=5) == []
    assert store.purge() == []
    for needle in needles:
        assert files_with(root, needle) == []
    assert [h.text for h in store.search_text("harmless", k=5)] == ["harmless words"]


def test_purge_names_the_tags_that_still_hold_the_bytes(store: FeatureStore, put: Put) -> None:
    doomed = put("a.md", ["xylophone"])
    store.tag("release")
    store.delete_documents([doomed])
    assert store.purge() == ["release"]
    store.untag("release")
    assert store.purge() == []
    assert files_with(Path(store.uri), b"xylophon") == []


def test_the_recipe_is_recorded_and_enforced(store: FeatureStore, put: Put) -> None:
    put("a.md", ["words"])
    assert store.recipe().embedder == FINGERPRINT
    store.require_recipe(embedder=FINGERPRINT, chunker_digest="c" * 64)
    other = dataclasses.replace(FINGERPRINT, weights_digest="1" * 64)
    with pytest.raises(IncompatibleArtifact, match="weights_digest"):
        store.require_recipe(embedder=other)
    with pytest.raises(IncompatibleArtifact, match="chunking"):
        store.require_recipe(embedder=FINGERPRINT, chunker_digest="d" * 64)


def test_a_table_of_another_release_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("document_id", pa.string())], metadata={"schema_version": "0"})
    lancedb.connect(str(tmp_path)).create_table("documents", schema=schema)
    with pytest.raises(SchemaMismatch, match="schema version 0"):
        FeatureStore.open(str(tmp_path)).exists()


def test_a_store_that_is_down_does_not_look_empty(
    tmp_path: Path, put: Put, store: FeatureStore
) -> None:
    put("a.md", ["words"])
    for file in (Path(store.uri) / "chunks.lance" / "data").glob("*.lance"):
        file.write_bytes(b"")
    with pytest.raises(StoreError):
        FeatureStore.open(store.uri).search_vectors(vector_of("words"), k=1)
    file = tmp_path / "file"
    file.write_text("not a directory")
    with pytest.raises(StoreError):
        FeatureStore.open(str(file)).append("feedback", [feedback()])


def feedback() -> dict[str, object]:
    return {
        "feedback_id": "f",
        "response_id": "r",
        "created_at": datetime.now(UTC),
        "key_id": "k",
        "rating": 1,
        "correction": "",
        "comment": "",
    }


def test_a_log_that_cannot_be_compacted_is_written_all_the_same(store: FeatureStore) -> None:
    """Whoever appends would else write the same rows again."""
    for number in range(254):
        store.append("feedback", [{**feedback(), "feedback_id": str(number)}])
    next(Path(store.uri, "feedback.lance", "data").iterdir()).unlink()
    store.append("feedback", [{**feedback(), "feedback_id": "last"}])
    assert lancedb.connect(store.uri).open_table("feedback").count_rows() == 255


def test_a_log_does_not_grow_into_ever_more_files(store: FeatureStore) -> None:
    for number in range(300):
        store.append("feedback", [{**feedback(), "feedback_id": str(number)}])
    found = store.rows("feedback")["feedback_id"].to_pylist()
    assert sorted(found, key=int) == [str(number) for number in range(300)]
    fragments = len(lancedb.connect(store.uri).open_table("feedback").to_lance().get_fragments())
    assert fragments < 300 - 256 + 5


def test_logs_are_appended_and_filtered(store: FeatureStore) -> None:
    store.append("feedback", [feedback(), {**feedback(), "feedback_id": "g", "rating": -1}])
    store.append("feedback", [])
    assert store.rows("feedback").num_rows == 2
    assert store.rows("feedback", where="rating < 0")["feedback_id"].to_pylist() == ["g"]
    assert store.rows("feedback", limit=1).num_rows == 1
    with pytest.raises(StoreError):
        store.append("feedback", [{**feedback(), "rating": None}])


def test_concurrent_writers_of_the_same_documents_make_no_duplicates(
    store: FeatureStore, put: Put
) -> None:
    put("seed.md", ["seed"])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(4):
                put(f"{number}.md", [f"text {number} a ", f"text {number} b"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.documents().num_rows == 5
    assert store.chunks().num_rows == 9


def test_who_asks_for_the_newest_state_waits_for_no_writer(store: FeatureStore, put: Put) -> None:
    put("a.md", ["red."])
    before = store.snapshot()
    with Path(store.uri, ".lock").open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a purge that works for minutes
        assert store.snapshot() == before  # or it never comes back
    put("b.md", ["blue."])
    Path(store.uri, ".lock").write_text(before)  # a writer that was killed at work
    assert store.snapshot() != before


def test_a_state_named_while_others_write_is_whole(store: FeatureStore, put: Put) -> None:
    put("0.md", ["text"])
    others = FeatureStore.open(store.uri)

    def write() -> None:
        for number in range(20):
            put(f"{number % 3}.md", [f"text {number} a ", f"text {number} b"])

    thread = threading.Thread(target=write)
    thread.start()
    named: list[str] = []
    while thread.is_alive():
        named.append(others.snapshot())
    thread.join()
    assert len(set(named)) > 1
    assert all(others.incomplete_documents(at=at) == frozenset() for at in set(named))
    assert named == sorted(named, key=lambda at: [int(part) for part in at[1:].split("c")])


def test_hits_know_the_pages_that_they_have_a_part_of(store: FeatureStore) -> None:
    document, chunks = rows_of("a.pdf", ["first page. ", "still, and second. ", "third."])
    document["metadata"] = '{"pages": [0, 18, 18, 31]}'
    store.prepare(FINGERPRINT, language="English", stemming=True)
    store.write_documents(
        pa.Table.from_pylist([document], schema=schemas.documents_schema()),
        pa.Table.from_pylist(
            [{**chunk, "page": 1} for chunk in chunks], schema=schemas.chunks_schema(DIMENSION)
        ),
        replaces=[document["document_id"]],
    )
    found = store.with_pages(sorted(store.hits(), key=lambda hit: hit.start), at=store.snapshot())
    assert [hit.pages for hit in found] == [((0, 1),), ((0, 1), (18, 2), (18, 3)), ((31, 4),)]
