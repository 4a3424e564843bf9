from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag_fti import prompts
from rag_fti.inference.citations import before_stop, settle
from rag_fti.inference.streaming import AnswerStream
from rag_fti.schemas import Hit
from tests.retrieval.hits import hit

DOCUMENT = "Ada keeps the key.  The Éclair leaves\nat nine. Nobody knows why."


def passage(name: str, start: int, end: int) -> Hit:
    return replace(hit(name, 0.5), start=start, end=end, text=DOCUMENT[start:end])


HITS = [passage("a", 0, 20), passage("b", 20, len(DOCUMENT))]


def test_a_verbatim_answer_is_tied_to_its_characters() -> None:
    settled = settle("leaves\nat nine [2]", HITS, restore=False)
    (citation,) = settled.citations
    assert settled.text == "leaves\nat nine [2]"
    assert (citation.marker, citation.chunk_id) == (2, "b")
    assert DOCUMENT[citation.start : citation.end] == citation.text == "leaves\nat nine"


def test_the_page_is_that_of_the_cited_words() -> None:
    hits = [replace(HITS[1], page=4, pages=((12, 4), (39, 5)))]
    pages = [settle(f"{words} [1]", hits, restore=False).citations[0].page for words in
             ("The Éclair leaves", "Nobody knows why", "It goes in the morning")]  # fmt: skip
    assert pages == [4, 5, 4]


def test_a_model_without_case_gets_the_words_of_the_passage() -> None:
    settled = settle("the eclair leaves at nine [2]", HITS, restore=True)
    assert settled.text == "The Éclair leaves at nine [2]"
    assert settled.citations[0].text == "The Éclair leaves\nat nine"
    assert settle("the eclair leaves at nine [2]", HITS, restore=False).text.startswith("the e")


@pytest.mark.parametrize(
    ("stop", "shown", "cited"),
    [
        (["leaves"], "Ada keeps the key [1]. The Éclair [2]", ["Ada keeps the key", "The Éclair"]),
        (["the key", "Éclair"], "Ada keeps [1]", ["Ada keeps"]),
        (["the eclair"], "Ada keeps the key [1]. The Éclair leaves at nine [2]", None),
        (["."], "Ada keeps the key [1]", ["Ada keeps the key"]),
        ([". The"], "Ada keeps the key [1]", ["Ada keeps the key"]),
        (["key [1]. The"], "Ada keeps the [1]", ["Ada keeps the"]),
        ([" [1]. The"], "Ada keeps the key [1]", ["Ada keeps the key"]),
        (["1"], "Ada keeps the key", []),
        (["[2]"], "Ada keeps the key [1]. The Éclair leaves at nine", ["Ada keeps the key"]),
        (
            ["leaves at"],
            "Ada keeps the key [1]. The Éclair [2]",
            ["Ada keeps the key", "The Éclair"],
        ),
        (["Ada"], "", []),
    ],
)
def test_nothing_of_a_stop_text_is_shown(
    stop: list[str], shown: str, cited: list[str] | None
) -> None:
    whole = settle("ada keeps the key [1]. the eclair leaves at nine [2]", HITS, restore=True)
    settled = before_stop(whole, stop)
    assert (settled.text, settled.abstained) == (shown, False)
    assert settled.stopped == (cited is not None)
    if cited is not None:
        assert [citation.text for citation in settled.citations] == cited
    for citation in settled.citations:
        assert DOCUMENT[citation.start : citation.end] == citation.text


@pytest.mark.parametrize("reply", ["| [1]", "## [2]", "[1]", " - . [1] [2]"])
def test_signs_alone_are_no_answer(reply: str) -> None:
    settled = settle(reply, HITS, restore=True)
    assert (settled.text, settled.abstained, settled.citations) == (prompts.ABSTENTION, True, ())


def test_own_words_cite_the_whole_chunk() -> None:
    (citation,) = settle("It goes in the morning [2].", HITS, restore=False).citations
    assert (citation.start, citation.end, citation.text) == (20, len(DOCUMENT), HITS[1].text)


def test_markers_of_passages_that_were_not_there_are_dropped() -> None:
    settled = settle("Ada [7] keeps the key [1] [0] [99].", HITS, restore=False)
    assert settled.text == "Ada keeps the key [1]."
    assert [c.marker for c in settled.citations] == [1]


def test_several_sentences_each_with_their_own_passage() -> None:
    settled = settle("Ada keeps the key [1]. Nobody knows why [2][1].", HITS, restore=False)
    assert {c.marker: c.text for c in settled.citations} == {
        1: "Ada keeps the key",
        2: "Nobody knows why",
    }


def test_a_verbatim_answer_without_a_marker_gets_one() -> None:
    settled = settle("Nobody knows why.", HITS, restore=False)
    assert settled.text == "Nobody knows why. [2]"
    assert settled.citations[0].text == "Nobody knows why."
    assert settle("Something else", HITS, restore=False).citations == ()


def test_abstention_has_one_wording_and_no_citation() -> None:
    for reply in (
        "the documents do not answer this question",
        prompts.ABSTENTION + " [1]",
        "",
        " [1]",
    ):
        settled = settle(reply, HITS, restore=False)
        assert (settled.text, settled.abstained) == (prompts.ABSTENTION, True)
        assert settled.citations == ()


@pytest.mark.parametrize(
    ("reply", "abstained", "cited"),
    [
        (f"Ada keeps the key [1]. {prompts.ABSTENTION}", False, [1]),
        (f"Ada keeps the key [1]. {prompts.ABSTENTION} [2]", False, [1]),
        (f"{prompts.ABSTENTION} But Ada keeps the key [1].", False, [1]),
        (f"Sadly, {prompts.ABSTENTION} [1]", True, []),
        (f"{prompts.ABSTENTION} Ask Ada.", True, []),
        (f"[1] {prompts.ABSTENTION}", True, []),
    ],
)
def test_a_cited_answer_beside_the_abstention_sentence_is_an_answer(
    reply: str, abstained: bool, cited: list[int]
) -> None:
    settled = settle(reply, HITS, restore=False)
    assert settled.abstained == prompts.is_abstention(reply) == abstained
    assert [citation.marker for citation in settled.citations] == cited
    assert prompts.cited_numbers(settled.text) == cited


TABLE = """Ships and their loads:

| Ship | Load | Crew | Flag |
|---|---|---|---|
| RV Great Mercy | 13,800 | 11,200 | A \\| B |
| RV Small Mercy | 900 | 3 | C |

def crew(name: str | None) -> int | None:
    return None
"""


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("13, 800 | 11, 200 | a \\ | b | | rv small mercy", "13,800"),
        ("13, 800 |", "13,800"),
        ("a \\ | b | | rv small", "A \\| B"),
        (
            "great mercy | 13, 800 | 11, 200 | a \\ | b | | rv",
            "Great Mercy | 13,800 | 11,200 | A \\| B",
        ),
        ("3 | c | def crew ( name : str | none )", "3"),
        ("name : str | none ) - > int | none", "name: str | None) -> int | None"),
        ("loads : | ship | load", "loads:\n\n| Ship | Load"),
    ],
)
def test_a_copied_answer_ends_with_its_cell_or_row(reply: str, shown: str) -> None:
    held = replace(hit("t", 0.5), start=10, end=10 + len(TABLE), text=TABLE)
    settled = settle(f"{reply} [1]", [held], restore=True)
    assert settled.text == f"{shown} [1]"
    (citation,) = settled.citations
    assert citation.text == TABLE[citation.start - 10 : citation.end - 10] == shown


@pytest.mark.parametrize(
    ("reply", "shown", "cited"),
    [
        ("latin1 > cellar keys ada keeps", "Ada keeps", "Ada keeps"),
        ("keys ada", "Ada", "Ada"),
        ("latin1 > cellar keys", "Latin1 > Cellar Keys", DOCUMENT[:20]),
        ("cellar keys", "Cellar Keys", DOCUMENT[:20]),
        ("keys bob", "keys bob", DOCUMENT[:20]),
    ],
)
def test_what_is_copied_from_above_a_text_is_left_out_or_in_its_own_spelling(
    reply: str, shown: str, cited: str
) -> None:
    held = [replace(HITS[0], title="Latin1", heading="Cellar Keys")]
    settled = settle(f"{reply} [1]", held, restore=True)
    assert settled.text == f"{shown} [1]"
    (citation,) = settled.citations
    assert citation.text == DOCUMENT[citation.start : citation.end] == cited


def test_copied_words_that_stand_nowhere_and_cite_nothing_abstain() -> None:
    assert settle("the the the the", HITS, restore=True).abstained
    assert settle("the the the the", HITS, restore=False).text == "the the the the"
    assert settle("the eclair lea", HITS, restore=True).text == "The Éclair [2]"


def test_a_model_that_writes_a_table_may_copy_its_rows() -> None:
    held = replace(hit("t", 0.5), start=0, end=len(TABLE), text=TABLE)
    rows = TABLE[TABLE.index("| RV Great") : TABLE.index("\n\ndef")]
    settled = settle(f"{rows} [1]", [held], restore=False)
    assert (settled.text, settled.citations[0].text) == (f"{rows} [1]", rows)


@pytest.mark.parametrize("reply", ["[[9]9]", "Ada [[9]9] keeps", "[ [9]9]", "[1 [9]2]", "[12[9]]"])
def test_markers_inside_markers_are_shown_as_they_end_up(reply: str) -> None:
    shown = AnswerStream(known=2)
    text = "".join(shown.push(character) for character in reply)
    settled = settle(reply, HITS, restore=False)
    text += "".join(shown.finish(settled.text))
    assert text == settled.text


WORDS = ["Ada", " keeps", " the key", ".", " ", "\n", "[", "1", "]", "[1]", " [2]", "[9", "[12]"]
START = [
    "The documents do not answer this question.",
    "The",
    " documents do",
    " not answer this question",
    "é",
    "1]",
    "the documents",
    " [34]",
]
PIECES = st.lists(st.sampled_from([*WORDS, *START]), max_size=12)


@example([".", "[1]", "The documents do not answer this question."], False)
@example([".", "The documents do not answer this question.", ".", "[1]"], False)
@settings(max_examples=400, deadline=None)
@given(PIECES, st.booleans())
def test_what_is_shown_while_writing_adds_up_to_the_answer(
    pieces: list[str], abstain: bool
) -> None:
    if abstain:
        pieces = ["The documents do", " not answer this question", ".", *pieces]
    shown = AnswerStream(known=2)
    text = "".join(shown.push(piece) for piece in pieces)
    settled = settle("".join(pieces), HITS, restore=False)
    text += "".join(shown.finish(settled.text))
    assert text == settled.text
    assert set(prompts.cited_numbers(text)) <= {1, 2}
    assert not (settled.abstained and prompts.cited_numbers(text))
    for citation in settled.citations:
        assert DOCUMENT[citation.start : citation.end] == citation.text


def test_what_a_model_thought_is_neither_shown_nor_cited() -> None:
    reply = "<think>Passage [2] says nothing. Passage [1] has it.</think>\n\nAda keeps the key [1]"
    shown = AnswerStream(known=2)
    pieces = [shown.push(character) for character in reply]
    settled = settle(reply, HITS, restore=False)
    assert (
        "".join([*pieces, *shown.finish(settled.text)]) == settled.text == "Ada keeps the key [1]"
    )
    assert [citation.marker for citation in settled.citations] == [1]
    assert settle("<think>Passage [1] has", HITS, restore=False).abstained


def test_reference_marks_of_a_document_are_cited_to_the_character() -> None:
    text = "A windlass is a machine [1] that lifts anchors."
    held = replace(hit("c", 0.5), start=100, end=100 + len(text), text=text)
    # The prompt shows the mark as (1), so the model says that.
    settled = settle("a machine (1) that lifts anchors [1]", [held], restore=True)
    (citation,) = settled.citations
    assert citation.text == "a machine [1] that lifts anchors"
    assert (citation.start, citation.end) == (114, 114 + len(citation.text))
    assert prompts.cited_numbers(settled.text) == [1]
    assert settled.text == "a machine (1) that lifts anchors [1]"
