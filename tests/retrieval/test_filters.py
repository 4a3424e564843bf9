import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_fti.errors import ConfigError
from rag_fti.retrieval import restrict


def test_conditions_are_joined() -> None:
    assert restrict(None, None) is None
    assert restrict("  ", None) is None
    assert restrict("page > 3", None) == "(page > 3)"
    assert restrict("page > 3", ["b", "a"]) == "collection IN ('a', 'b') AND (page > 3)"
    assert restrict(None, ["it's"]) == "collection IN ('it''s')"


def test_no_collections_means_nothing_not_everything() -> None:
    assert restrict(None, []) == "collection IS NULL"


@pytest.mark.parametrize(
    "where",
    [
        "1=1) OR (1=1",
        "1=1) OR collection = 'secret' OR (1=1",
        "page > 3 -- ",
        "page > 3 /* */",
        "page > 3; DROP TABLE chunks",
        "title = 'open",
        "title = 'a\\' OR 1=1 OR title = 'b'",
        "(page > 3",
        "page > 3\n) OR (1=1",
        "x" * 5000,
    ],
)
def test_a_filter_cannot_leave_its_parentheses(where: str) -> None:
    with pytest.raises(ConfigError):
        restrict(where, ["mine"])


def test_parentheses_in_strings_are_text() -> None:
    assert restrict("title = ')('", ["mine"]) == "collection IN ('mine') AND (title = ')(')"


@given(st.text(alphabet="()'\"`-;/*\\ =1ORa", max_size=30))
def test_accepted_filters_are_balanced_outside_strings(where: str) -> None:
    try:
        condition = restrict(where, ["mine"])
    except ConfigError:
        return
    assert condition is not None
    depth = 0
    quote = ""
    for char in condition.removeprefix("collection IN ('mine')"):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"`":
            quote = char
        else:
            depth += {"(": 1, ")": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0
    assert not quote
