from __future__ import annotations

import pytest

from rag_fti.features.instructions_structure import generate
from rag_fti.schemas import Hit


def found(text: str, *, title: str = "Vennick Race station", heading: str = "") -> dict[str, str]:
    chunk = Hit("c", "d", "v", "a.md", title, heading, None, 0, len(text), text, 0.0)
    candidates = generate([chunk], per_chunk=20)
    assert all(c.answer in text and c.chunks == (chunk,) for c in candidates)
    return {c.question: c.answer for c in candidates}


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            "Vennick Race was commissioned on 22 May 2006.",
            "When was Vennick Race commissioned?",
            "22 May 2006",
        ),
        (
            "The gearboxes of the Selkie 3 hold 62 litres of oil.",
            "How many litres do the gearboxes of the Selkie 3 hold?",
            "62",
        ),
        (
            "The research ship Perpetua Lund is commanded by Captain Yusra Halloran.",
            "By whom is the research ship Perpetua Lund commanded?",
            "Captain Yusra Halloran",
        ),
        (
            "The crossing to Stromhythe takes 50 minutes in fair weather.",
            "How long does the crossing to Stromhythe take?",
            "50 minutes",
        ),
        (
            "The battery lasts 30 hours.",
            "How long does the battery last, according to “Vennick Race station”?",
            "30 hours",
        ),
        ("Tarn Skerry is a bird reserve.", "What is Tarn Skerry?", "a bird reserve"),
        (
            "Desmond Arkle is the chief of Ossay Gut.",
            "Who is the chief of Ossay Gut?",
            "Desmond Arkle",
        ),
        (
            "The allowance for cars in Haldren is 38 stivers a kilometre.",
            "What is the allowance for cars in Haldren?",
            "38 stivers a kilometre",
        ),
        (
            "Marsh Lantern is a 1986 film written and directed by Ada Lund.",
            "What is Marsh Lantern?",
            "a 1986 film",
        ),
        (
            "Marsh Lantern is a 1986 film written and directed by Ada Lund.",
            "By whom was Marsh Lantern written?",
            "Ada Lund",
        ),
        (
            "Tern Fastenings is a company founded in 1997, which makes bolts.",
            "When was Tern Fastenings founded?",
            "1997",
        ),
        (
            "Net Loft is a hut located in Port Ansel, Haldren.",
            "Where is Net Loft located?",
            "Port Ansel, Haldren",
        ),
        ("Ada Lund is a film producer.", "Who is Ada Lund?", "a film producer"),
        (
            "**Causeway.** The private network of the Co-op.",
            "What is meant by “Causeway”?",
            "The private network of the Co-op",
        ),
        ("Q: Who may visit?\nA: Members only. Ask first.", "Who may visit?", "Members only"),
    ],
)
def test_plain_statements_become_questions(text: str, question: str, answer: str) -> None:
    if text.startswith("Tarn"):
        text += " Nobody lives on Tarn Skerry."
    assert found(text).get(question) == answer


def test_what_is_said_of_another_thing_is_not_asked_of_the_subject() -> None:
    text = "Net Loft is a book about a hut located in Port Ansel."
    assert found(text) == {"What is Net Loft?": "a book about a hut"}


def test_tables_name_their_row_and_document() -> None:
    two = "| Item | Value |\n| --- | --- |\n| Rotor diameter | 18 m |\n| Turbines | 6 |\n"
    assert found(two) == {
        "What is the rotor diameter of Vennick Race station?": "18 m",
        "What is given under “Turbines” for Vennick Race station?": "6",
    }
    many = "| Code | Meaning | Action |\n| --- | --- | --- |\n| L1204 | Imbalance | Stop |\n"
    assert found(many) == {"What is the meaning for L1204?": "Imbalance"}


def test_table_headers_of_strangers_give_english_or_nothing() -> None:
    def asked(header: str, key: str) -> list[str]:
        return list(found(f"| Desk | {header} |\n| --- | --- |\n| {key} | Third line |\n"))

    assert asked("Macros for this view", "Net Loft") == [
        "How many macros for this view are given for Net Loft?"
    ]
    assert asked("Macro for this view", "Net Loft") == [
        "What is the macro for this view for Net Loft?"
    ]
    assert asked("Status", "Net Loft") == ["What is the status for Net Loft?"]
    assert asked("Macro", "[Net Loft](https://a.example)") == []
    assert asked("Macro", "`NetLoft`") == asked("[Macro](m.md)", "Net Loft") == []


def test_question_headings_are_answered_by_their_first_sentence() -> None:
    text = "Yes, from 08:00 to 16:00. Later only by appointment."
    assert found(text, heading="FAQ > Is the hut open?") == {
        "Is the hut open?": "Yes, from 08:00 to 16:00"
    }


@pytest.mark.parametrize(
    "text",
    [
        "It was opened in 2011.",
        "The following is a list of alarms.",
        "Little Tide is 2006 Haldren comedy film written and made by two.",
        "This is a bird reserve.",
        "The last was held in March 2020.",
        "They have 12 boats.",
        "The cable was laid in 2005 and has three copper conductors.",
        "If the tide turns, the boat is a risk.",
        "```\nx is a variable.\n```",
        "- Item is a thing.",
        "**Place.** Net Loft, board room",
        "",
    ],
)
def test_what_does_not_stand_alone_is_left_alone(text: str) -> None:
    assert found(text) == {}


def test_one_table_does_not_crowd_out_the_rest() -> None:
    rows = "".join(f"| Part {n} | {n} m |\n" for n in range(10))
    text = f"| Item | Value |\n| --- | --- |\n{rows}\nVennick Race was opened on 1 May 2006.\n"
    chunk = Hit("c", "d", "v", "a.md", "T", "", None, 0, len(text), text, 0.0)
    assert [c.rule for c in generate([chunk], per_chunk=3)].count("when") == 1


def test_thousands_of_blank_lines_cost_nothing() -> None:
    text = (
        "Q: Who keeps the key of the mill?\n" + "\n" * 500_000 + "Ada keeps it.\n" + "-\n" * 200_000
    )
    chunk = Hit("c", "d", "v", "a.md", "T", "", None, 0, len(text), text, 0.0)
    generate([chunk], per_chunk=4)  # minutes, and so no end in time, where each costs the others
