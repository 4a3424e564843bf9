from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_fti import ids


def test_digest_text_is_sha256_of_utf8() -> None:
    # echo -n abc | sha256sum
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert ids.digest_text("abc") == expected
    assert ids.digest_bytes(b"abc") == expected


def test_digest_text_takes_lone_surrogates() -> None:
    assert ids.digest_text("\ud800") != ids.digest_text("\ud801")


def test_digest_json_ignores_key_order_and_refuses_nan() -> None:
    assert ids.digest_json({"a": 1, "b": [2]}) == ids.digest_json({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        ids.digest_json(float("nan"))


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_content_id_tells_apart_any_two_tuples(a: list[str], b: list[str]) -> None:
    assert (ids.content_id(*a) == ids.content_id(*b)) == (a == b)


def test_content_id_does_not_join_parts() -> None:
    assert ids.content_id("ab", "c") != ids.content_id("a", "bc")


def test_chunk_ids_are_unique_also_for_equal_texts() -> None:
    found = ids.chunk_ids("d", ["same", "other", "same"])
    assert len(set(found)) == 3


def test_chunk_ids_survive_an_edit_elsewhere() -> None:
    before = ids.chunk_ids("d", ["one", "two", "three"])
    after = ids.chunk_ids("d", ["one", "changed", "inserted", "three"])
    assert before[0] == after[0]
    assert before[2] == after[3]


def test_digest_of_files_depends_on_names_and_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    whole = ids.digest_of_files([first, second], root=tmp_path)
    assert whole == ids.digest_of_files([second, first], root=tmp_path)
    second.write_bytes(b"3")
    assert whole != ids.digest_of_files([first, second], root=tmp_path)
