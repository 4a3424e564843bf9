from dataclasses import replace

from rag_fti import prompts
from rag_fti.retrieval import pack_passages
from rag_fti.schemas import Hit
from tests.retrieval.hits import hit


def words(text: str) -> int:
    return len(text.split())


def passage(name: str, text: str) -> Hit:
    return replace(hit(name, 1.0), text=text, start=100, end=100 + len(text))


def test_whole_passages_in_rank_order_within_the_budget() -> None:
    hits = [passage("a", "one two three"), passage("b", "w " * 50), passage("c", "four five")]
    kept, passages = pack_passages(hits, count_tokens=words, budget=20)
    assert [h.chunk_id for h in kept] == ["a", "c"]
    assert [p.text for p in passages] == ["one two three", "four five"]
    total = sum(words(prompts.render_passage(n, p)) for n, p in enumerate(passages, start=1))
    assert total <= 20


def test_a_first_passage_that_is_too_long_is_cut_and_its_span_with_it() -> None:
    text = " ".join(f"word{i}" for i in range(100))
    kept, passages = pack_passages([passage("a", text)], count_tokens=words, budget=10)
    assert len(kept) == 1
    assert kept[0].text == passages[0].text == text[: len(kept[0].text)]
    assert kept[0].end == kept[0].start + len(kept[0].text)
    assert words(prompts.render_passage(1, passages[0])) == 10


def test_a_cut_is_the_longest_that_fits() -> None:
    text = " ".join(f"{'x' * (1 + i % 9)}{'' if i % 3 else ' ' * 5}" for i in range(200))
    for budget in (3, 40, 150):
        (kept,), _ = pack_passages([passage("a", text)], count_tokens=words, budget=budget)
        longer = replace(kept, text=text[: len(kept.text) + 1])
        cost = [words(prompts.render_passage(1, prompts.Passage(h.text))) for h in (kept, longer)]
        assert cost == [budget, budget + 1]


def test_no_budget_and_no_hits() -> None:
    assert pack_passages([], count_tokens=words, budget=100) == ([], [])
    assert pack_passages([passage("a", "some text here")], count_tokens=words, budget=0) == ([], [])


def test_titles_and_headings_are_counted() -> None:
    long_title = replace(passage("a", "x"), title="t " * 30)
    kept, _ = pack_passages([long_title], count_tokens=words, budget=15)
    assert kept == []


def test_a_title_without_end_does_not_take_the_place_of_other_passages() -> None:
    endless = replace(passage("a", "x"), title="t " * 30)
    kept, _ = pack_passages([endless, passage("b", "y z")], count_tokens=words, budget=15)
    assert [h.chunk_id for h in kept] == ["b"]
    kept, cut = pack_passages([endless, passage("b", "w " * 50)], count_tokens=words, budget=15)
    assert [h.chunk_id for h in kept] == ["b"]
    assert words(prompts.render_passage(1, cut[0])) == 15
