from __future__ import annotations

from dataclasses import replace

import pytest

from rag_fti import prompts
from rag_fti.datasets.candidates import Candidate
from rag_fti.datasets.filters import (
    EvaluationQuestion,
    Filtered,
    drawn,
    filter_candidates,
)
from rag_fti.features.language import language_of
from tests.datasets.made import candidate

TEXT = "The rotor of the Selkie 5 has a diameter of 18 metres. It was built by Ann Lund in 2006."


def run(*candidates: Candidate, evaluation: tuple[EvaluationQuestion, ...] = ()) -> Filtered:
    return filter_candidates(
        candidates, similarity=0.8, evaluation=evaluation, language_of=language_of
    )


def test_a_good_candidate_is_kept_in_its_chunks_own_spelling() -> None:
    result = run(candidate("How wide is the rotor of the Selkie 5?", "18 METRES", TEXT))
    assert result.dropped == {} and result.kept[0].answer == "18 metres"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("How wide is the rotor of the Selkie 5?", "20 metres", "answer not in its chunk"),
        ("How wide is the rotor of the Selkie 5?", "I don't know", "says it does not know"),
        ("Is the width of the rotor not specified?", "18 metres", "says it does not know"),
        ("How wide is the rotor?", prompts.ABSTENTION, "says it does not know"),
        ("What does this section say about rotors?", "18 metres", "depends on its passage"),
        ("According to the passage, how wide is the rotor?", "18 metres", "depends on its passage"),
        ("How wide is the rotor mentioned above?", "18 metres", "depends on its passage"),
        ("When was it built by Ann Lund?", "2006", "depends on its passage"),
        ("How wide, per [1], is the rotor?", "18 metres", "depends on its passage"),
        ("Rotor width?", "18 metres", "question too short"),
        ("Why " + "very " * 50 + "wide?", "18 metres", "question too long"),
        ("Has the Selkie 5 rotor 18 metres of diameter?", "18 metres", "answer in question"),
        (
            "Wie breit ist der Rotor und von wem wurde er im Jahr 2006 gebaut?",
            "Ann Lund",
            "other language than its chunk",
        ),
    ],
)
def test_each_fault_has_its_reason(question: str, answer: str, reason: str) -> None:
    assert run(candidate(question, answer, TEXT)).dropped == {reason: 1}


@pytest.mark.parametrize(
    "question",
    [
        "What does it cost a member to hire the Galley?",
        "What does it mean when a line carries a blue tag?",
        "How long may somebody stay on the list of people qualified for nacelles?",
    ],
)
def test_harmless_words_do_not_look_like_faults(question: str) -> None:
    assert run(candidate(question, "2006", TEXT)).dropped == {}


def test_long_answers_are_left_out() -> None:
    text = "word " * 100
    assert run(candidate("What is the long text here?", text, text)).dropped == {
        "answer too long": 1
    }


def test_of_near_duplicates_the_first_is_kept() -> None:
    first = candidate("How wide is the rotor of the Selkie 5?", "18 metres", TEXT)
    second = candidate("How wide is the rotor of the Selkie 5 ?", "18 metres", TEXT, chunk="x")
    result = run(first, second)
    assert result.dropped == {"near duplicate": 1} and len(result.kept) == 1


def test_questions_that_differ_in_a_digit_may_both_stay() -> None:
    one = candidate(
        "What is the allowance in the long travel policy TRV-03?",
        "31 stivers",
        "31 stivers",
        chunk="a",
    )
    two = candidate(
        "What is the allowance in the long travel policy TRV-04?",
        "38 stivers",
        "38 stivers",
        chunk="b",
    )
    assert run(one, two).dropped == {}


def test_evaluation_questions_and_their_facts_stay_out() -> None:
    held = EvaluationQuestion("Who built the Selkie 5 rotor?", ("Ann Lund",), frozenset({"c"}))
    same = candidate("Who built the Selkie 5 rotor ?", "Ann Lund", TEXT, chunk="z")
    fact = candidate("By whom was the wide thing made?", "Ann Lund", TEXT)
    other = candidate("When was the Selkie 5 rotor built?", "2006", TEXT)
    result = run(same, fact, other, evaluation=(held,))
    assert result.dropped == {
        "same as an evaluation question": 1,
        "same fact as an evaluation question": 1,
    }
    assert [c.answer for c in result.kept] == ["2006"]


def test_people_may_use_the_words_of_those_who_do_not_know() -> None:
    text = "The ferry is not available on Sundays. Fields marked N/A are left out."
    asked = [
        candidate("When can nobody use the ferry?", "not available on Sundays", text),
        candidate("Which fields are not mentioned?", "fields marked N/A", text),
        candidate("When does the ferry run?", "Not available.", text),
    ]
    given = run(*(replace(one, generator="pairs") for one in asked))
    assert len(given.kept) == 2 and given.dropped == {"says it does not know": 1}
    assert run(*asked).dropped == {"says it does not know": 3}


def test_scripts_without_spaces_are_not_too_short() -> None:
    text = "灯塔由安娜于1908年建造。"
    result = run(candidate("灯塔是哪一年建造的", "1908年", text))
    assert result.dropped == {} and result.kept[0].answer == "1908年"
    assert run(candidate("灯塔呢", "1908年", text)).dropped == {"question too short": 1}


def test_what_people_gave_stays_when_only_so_many_may() -> None:
    made = [candidate(f"What stands in line {n}?", str(n)) for n in range(30)]
    given = [replace(made[n], generator=name) for n, name in ((3, "pairs"), (28, "feedback"))]
    some = drawn([*made[:3], given[0], *made[4:28], given[1]], 5, seed=1)
    assert len(some) == 5 and [c for c in some if c.generator in ("pairs", "feedback")] == given
    assert drawn(made, 0, seed=1) == drawn(made, 30, seed=1) == made
