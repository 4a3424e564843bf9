from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rag_fti import prompts
from rag_fti.datasets.feedback import Feedback, from_feedback, preferences_table
from tests.datasets.made import hit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHUNKS = {
    "c1": hit("The door is deep red.", chunk="c1"),
    "c2": hit("The gate is dark green.", chunk="c2"),
}


def entry(response: str, answer: str, **values: Any) -> dict[str, Any]:
    return {
        "response_id": response,
        "question": "What colour is the door?",
        "answer": answer,
        "abstained": prompts.is_abstention(answer),
        "chunk_ids": ["c2", "c1"],
        **values,
    }


def said(response: str, rating: int, correction: str = "", minute: int = 0) -> dict[str, Any]:
    return {
        "response_id": response,
        "rating": rating,
        "correction": correction,
        "created_at": NOW + timedelta(minutes=minute),
    }


def run(log: list[dict[str, Any]], *feedback: dict[str, Any]) -> Feedback:
    return from_feedback(log, feedback, CHUNKS)


def test_a_thumb_up_makes_a_candidate_of_its_chunk() -> None:
    found = run([entry("r", "deep red [2]")], said("r", 1))
    (candidate,) = found.candidates
    assert (candidate.answer, candidate.chunks[0].chunk_id) == ("deep red", "c1")
    assert found.preferences == () and found.dropped == {}


def test_a_correction_is_preferred_to_what_was_said() -> None:
    found = run([entry("r", "dark green [1]")], said("r", -1, "deep red"))
    assert found.candidates[0].answer == "deep red"
    (pair,) = found.preferences
    assert pair["chosen"][0]["content"] == "deep red [2]"
    assert pair["rejected"][0]["content"] == "dark green [1]"
    assert pair["prompt"] == prompts.answer_messages(
        "What colour is the door?",
        [prompts.Passage(CHUNKS[c].text, "Title", "Head") for c in ("c2", "c1")],
    )
    (row,) = preferences_table(found.preferences).to_pylist()
    assert row["document_ids"] == pair["answer_document_ids"] == ["d"]
    same = run([entry("r", "deep red [2]")], said("r", -1, "deep red"))
    assert same.preferences == () and same.dropped == {"correction says what was said": 1}


def test_right_and_corrected_abstentions() -> None:
    liked = run([entry("r", prompts.ABSTENTION)], said("r", 1))
    assert liked.candidates[0].chunks == ()
    assert liked.candidates[0].shown == {"c1", "c2"}
    corrected = run([entry("r", "dark green [1]")], said("r", -1, prompts.ABSTENTION))
    assert not corrected.candidates[0].answerable
    assert corrected.candidates[0].shown == {"c1", "c2"}
    assert corrected.preferences[0]["chosen"][0]["content"] == prompts.ABSTENTION


def test_the_last_word_counts_and_the_rest_is_counted() -> None:
    log = [entry("a", "deep red [2]"), entry("b", "pink [1]"), entry("c", "x", question="")]
    found = run(
        log,
        said("a", 1, minute=0),
        said("a", -1, minute=5),
        said("b", 1),
        said("c", 1),
        said("unknown", 1),
    )
    assert found.candidates == ()
    assert found.dropped == {
        "feedback answer not in its chunks": 1,
        "feedback on a redacted answer": 1,
        "thumb down without a correction": 1,
    }
