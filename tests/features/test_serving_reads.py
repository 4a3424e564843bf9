"""What readers see while an ingest writes."""

from __future__ import annotations

import threading
from pathlib import Path

from rag_fti import ids
from rag_fti.feature_store import FeatureStore, sql_string
from tests.features.made_up import make_ingestor


def write(word: str) -> None:
    for number in range(3):
        paragraphs = [f"# Document {number}"]
        # The two versions differ in length, too.
        for paragraph in range(6 if word == "alpha" else 9):
            paragraphs.append(f"{word} " * 20 + f"paragraph {paragraph}.")
        Path(f"docs/{number}.md").write_text("\n\n".join(paragraphs) + "\n")


def test_readers_see_old_documents_or_new_never_a_mixture(store: FeatureStore) -> None:
    Path("docs").mkdir()
    write("alpha")
    make_ingestor(store).ingest(["docs"])
    document = ids.document_id("default", "docs/1.md")
    where = f"document_id = {sql_string(document)}"
    reader_store = FeatureStore.open(store.uri)
    stop = threading.Event()
    seen: set[str] = set()
    problems: list[str] = []

    def read() -> None:
        try:
            while not stop.is_set():
                rows = reader_store.chunks(where=where, columns=["text", "ordinal", "start", "end"])
                chunks = sorted(rows.to_pylist(), key=lambda row: row["ordinal"])
                text = "".join(chunk["text"] for chunk in chunks)
                words = {word for word in ("alpha", "beta") if word in text}
                if len(words) != 1 or "paragraph 5" not in text:
                    problems.append(f"{len(chunks)} chunks with {words}")
                if [c["start"] for c in chunks[1:]] != [c["end"] for c in chunks[:-1]]:
                    problems.append("spans do not meet")
                seen.update(words)
                if not reader_store.search_text("paragraph", k=3):
                    problems.append("nothing found")
        except Exception as error:
            problems.append(repr(error))

    thread = threading.Thread(target=read)
    thread.start()
    for round_number in range(8):
        write("beta" if round_number % 2 == 0 else "alpha")
        make_ingestor(store).ingest(["docs"])
        if round_number % 3 == 2:
            store.optimize()
    stop.set()
    thread.join()
    assert problems == []
    assert seen == {"alpha", "beta"}
