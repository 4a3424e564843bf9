import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_fti.alignment import Alignment, align, as_copied, folded, may_say, unwrapped


@pytest.mark.parametrize(
    ("answer", "passage", "expected"),
    [
        ("the u . s . senate", "It was the U.S. Senate.", "the U.S. Senate"),
        ("u. s. $ 5, 000", "He won the U.S.\n$5,000 prize", "U.S.\n$5,000"),
        ("cafe muller", "In the Café\u00a0Müller today", "Café\u00a0Müller"),
        ("cafe", "at the cafe\u0301!", "cafe\u0301"),
        ("do not enter", "You do  not\tenter", "do  not\tenter"),
        ("state - of - the - art", "a state-of-the-art tool", "state-of-the-art"),
        ("don ' t", "I don't know", "don't"),
        ("a [UNK] sign", "there was a ♻ sign", "a ♻ sign"),
        ("[UNK]", "♻", "♻"),
        ("[UNK] 月", "保修期为自购买之日起二十四个月。", "个月"),
        ("1908年", "灯塔由安娜于1908年建造。", "1908年"),
        ("1958年", "東京タワーは1958年に完成した。", "1958年"),
        ("strasse", "in der Straße", "Straße"),
        ("in 1998 .", "won in 1998, they say", "in 1998"),
        ("東 京", "首都は東京です", "東京"),
        ("soft", "so\u00adft wares", "so\u00adft"),
        ("1", "item 12, then 1", "1"),
        ("105", "about 10⁵ cells in exactly 105 wells", "105"),
        ("10⁵", "about 105 wells, 10⁵ cells", "10⁵"),
        ("11", "It takes 1½ hours for 11 people", "11"),
        ("1", "½ cup of oil and 1 egg", "1"),
        ("40 m2", "a floor of 40 m² in all", "40 m²"),
        ("50 %", "over 50% of it", "50%"),
        ("( b )", "part (b) says", "(b)"),
        ("서울", "대한민국의 수도는 서울이다.", "서울"),
        ("서울은", "지금 서울은 덥다", "서울은"),
        ("세종 대왕", "한글은 세종 대왕에게서 나왔다", "세종 대왕"),
        (unicodedata.normalize("NFD", "서울"), "서울에서는 춥다", "서울"),
        ("LanceDB", "데이터는 LanceDB에 있다", "LanceDB"),
        ("새 [UNK]", "새 지도 하나", "새 지도"),
        ("किताब", "वह किताब है", "किताब"),
        ("東京。", "首都は東京です。", "東京"),
        ("«Аврора»", "крейсер Аврора стоит", "Аврора"),
    ],
)
def test_finds_the_passage_spelling(answer: str, passage: str, expected: str) -> None:
    found = align(answer, passage)
    assert found is not None
    assert found.text == expected
    assert passage[found.start : found.end] == expected


@pytest.mark.parametrize(
    ("answer", "passage"),
    [
        ("he", "the other"),
        ("therapist", "the rapist"),
        ("the rapist", "therapist"),
        ("1998", "19985"),
        ("blue car", "blue red car"),
        ("", "anything"),
        ("...", "no dots"),
        ("answer", ""),
        ("서울", "서울대학교는 크다"),
        ("서", "그들은 서로 안다"),
        ("바다", "바닥은 차다"),
        ("울", "서울은 크다"),
        ("कि", "वह किताब है"),
        ("ताब", "वह किताब है"),
    ],
)
def test_does_not_invent_a_span(answer: str, passage: str) -> None:
    assert align(answer, passage) is None


def test_takes_the_first_of_several() -> None:
    assert align("cup", "Cup and cup") == Alignment("Cup", 0, 3)


@given(st.text(max_size=60), st.data())
def test_every_span_of_words_finds_itself(passage: str, data: st.DataObject) -> None:
    words = passage.split()
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first + 1, len(words)))
    found = align(" ".join(words[first:last]), passage)
    if found is not None:
        assert passage[found.start : found.end] == found.text
    elif any(character.isalnum() and character.isascii() for character in words[first]):
        # Only text that folds to nothing, or to a look-alike of its neighbour, may be missed.
        assert not all(word.isascii() for word in words)


def test_hostile_length_is_linear() -> None:
    assert align("a " * 300 + "b", "a " * 5000) is None


@given(
    st.text(alphabet="aB é1.-中文_ \u200b", max_size=12),
    st.text("aB é1.-中文_ \u200b", max_size=40),
)
def test_what_is_ruled_out_does_not_align(answer: str, passage: str) -> None:
    if align(answer, passage) is not None:
        assert may_say(answer, folded(passage))


def test_names_with_underscores_are_found_in_a_decoders_spelling() -> None:
    passage = "It is kept in the govuk_web_banners gem."
    found = align("govuk _ web _ banners gem", passage)
    assert found is not None
    assert found.text == "govuk_web_banners gem"
    assert align("web _ banners", passage) is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("the ` govuk - tools", "the `govuk-tools`"),
        ("reactor ( old", "reactor (old)"),
        ("` a `", "`a`"),
        ("old", "old"),
    ],
)
def test_what_the_answer_opens_is_closed(answer: str, text: str) -> None:
    found = align(answer, "In the `govuk-tools` account, the reactor (old) runs `a`.")
    assert found is not None
    assert found.text == text


FIELDS = """PEP: 572
Status: Final
Type: Standards Track

Item: Tea; Price: 4.50
Item: Bun; Price: 1.20
**Open:** 9 to 5
**Closed:** Sundays

Seal kit
3
1,100

The rule dates from 1 April 2025.
7.3 It holds for all, note: the key
hangs in: the hall."""


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("final type : standards track", "Final"),
        ("status : final type : standards track", "Status: Final\nType: Standards Track"),
        ("4. 50 item : bun", "4.50"),
        ("9 to 5 * * closed", "9 to 5"),
        ("3 1, 100", "3"),
        ("1, 100 the rule", "1,100\n\nThe rule"),
        ("1 april 2025. 7. 3", "1 April 2025."),
        ("the key hangs in", "the key\nhangs in"),
    ],
)
def test_a_copied_span_ends_with_its_field_or_number(reply: str, text: str) -> None:
    found = align(reply, FIELDS)
    assert found is not None
    copied = as_copied(found, FIELDS)
    assert copied.text == FIELDS[copied.start : copied.end] == text


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("@ aquaflow", "claims@aquaflow.example"),
        ("claims", "claims@aquaflow.example"),
        ("sent to * * claims", "sent to **claims@aquaflow.example"),
        ("https : / / docs", "https://docs.aquaflow.example:8443/claim-form.html"),
        ("form", "https://docs.aquaflow.example:8443/claim-form.html"),
        ("or by https", "or by https://docs.aquaflow.example:8443/claim-form.html"),
        ("8443", "8443"),
        ("docs. aquaflow. example", "docs.aquaflow.example"),
        ("by", "by"),
    ],
)
def test_an_address_is_copied_whole(reply: str, text: str) -> None:
    passage = (
        "It is sent to **claims@aquaflow.example** or by "
        "https://docs.aquaflow.example:8443/claim-form.html."
    )
    found = align(reply, passage)
    assert found is not None
    copied = as_copied(found, passage)
    assert copied.text == passage[copied.start : copied.end] == text


def test_only_the_line_breaks_of_prose_become_spaces() -> None:
    assert unwrapped("spare parts\n(all) be\ncounted") == "spare parts (all) be counted"
    for text in ("One.\n\nTwo", "a\n- b", "1. a\n2. b", "A: b\nC: d", "| a |\n| b |", "x:\n    y"):
        assert unwrapped(text) == text
