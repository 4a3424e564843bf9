from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_fti.errors import ConfigError
from rag_fti.feature_store import FeatureStore
from rag_fti.retrieval import restrict
from rag_fti.retrieval.conditions import check_condition
from rag_fti.retrieval.filters import require_collections
from tests.inference.corpus import HashEmbedder, fill


def test_conditions_are_joined() -> None:
    assert restrict(None, None) is None
    assert restrict("  ", None) is None
    assert restrict("page > 3", None) == "(page > 3)"
    assert restrict("page > 3", ["b", "a"]) == "collection IN ('a', 'b') AND (page > 3)"
    assert restrict(None, ["it's"]) == "collection IN ('it''s')"


def test_a_collection_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = FeatureStore.open(str(tmp_path))
    fill(store, {"a.md": "One."}, collection="rules")
    before = store.snapshot()
    fill(store, {"b.md": "Two."}, collection="notes")
    require_collections(store, ["notes", "rules"], at="")
    require_collections(store, None, at="")
    with pytest.raises(ConfigError, match="'rule'") as caught:
        require_collections(store, ["rule"], at="")
    assert "notes, rules" in caught.value.next_step
    with pytest.raises(ConfigError, match="'notes'"):
        require_collections(store, ["notes"], at=before)


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
        "$$'$$ = 'x') OR (true OR $$'$$ = 'x'",
        "title = N'x'",
        "title = 'a' 'b'",
        "true true",
        "",
        "NOT",
        "page",
        "\"source\" = 'docs/a.md'",
        "page >",
        "(" * 200 + "true" + ")" * 200,
    ],
)
def test_a_filter_cannot_leave_its_parentheses(where: str) -> None:
    with pytest.raises(ConfigError):
        check_condition(where)


@pytest.mark.parametrize(
    "where",
    [
        "CAST(text AS INT) > 0",
        "text::int > 0",
        "arrow_cast(text, 'Int32') > 0",
        "1 / (char_length(text) - 35) > 0",
        "page = text",
        "page = `text`",
        'page = "text"',
        "page IN (text)",
        "page BETWEEN text AND 3",
        "page > (text)",
        "lower(text) > 5",
        "upper(TEXT) IN (5)",
        "ingested_at > text",
        "text > timestamp '2024-01-01 00:00:00'",
        "length(text) > '3'",
        "NOT text",
        "text IS TRUE",
        "starts_with(ingested_at, 'x')",
        "regexp_like(title, text)",
    ],
)
def test_a_filter_cannot_fail_on_a_row(where: str) -> None:
    """Where it could, the error would tell of rows in collections that are not to be seen."""
    with pytest.raises(ConfigError):
        restrict(where, ["mine"])


@pytest.mark.parametrize("column", ["no_such", "_rowid", "vector", "`indexed_text`"])
def test_columns_that_are_not_documented_are_refused_with_those_that_are(column: str) -> None:
    with pytest.raises(ConfigError, match=r"no column of a chunk; there are chunk_id, .* tokens"):
        check_condition(f"{column} IS NOT NULL")


ACCEPTED = [
    "source LIKE 'red%' AND page IS NULL",
    "source NOT LIKE '%.pdf' OR NOT (tokens > -1)",
    "title IN ('red', 'it''s') AND ordinal BETWEEN 0 AND 3",
    "start >= 0 AND end < 1000 AND `source` <> 'x' AND `title` != 'x'",
    "SOURCE ilike '%RED%' AND TRUE",
    "lower(title) = 'red' AND length(text) > 3 AND char_length(text) <= 4000",
    "starts_with(source, 'red') AND ends_with(source, 'md') AND contains(text, 'password')",
    "regexp_like(text, 're+d') AND ingested_at > timestamp '2024-01-01 00:00:00'",
    "ingested_at >= DATE '2024-01-01' OR ingested_at = NULL",
    "'1' = '1' AND 1 = 1",
    "collection IN ('blue') OR collection = 'blue' OR true",
]


def test_what_is_accepted_is_sql_and_stays_in_its_collections(tmp_path: Path) -> None:
    store = FeatureStore.open(str(tmp_path))
    for name in ("red", "blue"):
        fill(store, {f"{name}.md": f"The {name} password is swordfish."}, collection=name)
    vector = HashEmbedder().encode_queries(["password"])[0]
    for where in ACCEPTED:
        condition = restrict(where, ["red"])
        found = [hit.source for hit in store.search_vectors(vector, k=9, where=condition)]
        assert found == ["red.md"], where
        assert [h.source for h in store.search_text("password", k=9, where=condition)] == found


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
