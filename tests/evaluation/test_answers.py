from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag_fti.evaluation.answers import best_exact_match, best_f1, exact_match, f1, normalise


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the red fox", "red fox", 1.0),
        ("Red Fox. [1]", "red fox", 1.0),
        ("red fox", "red dog", 0.5),
        ("a b c d", "a", 0.0),  # "a" is an article and vanishes
        ("one two three", "two", 0.5),
        ("", "", 1.0),
        ("", "x", 0.0),
        ("two two", "two", 2 / 3),
        ("1958年完成", "1958年", 2 * (2 / 4) / (2 / 4 + 1)),
        ("東京タワー", "東京", 2 * (2 / 5) / (2 / 5 + 1)),
        ("กรุงเทพ", "กรุงเทพ", 1.0),
        ("서울은", "서울", 0.0),  # Korean has spaces between words
    ],
)
def test_f1_by_hand(answer: str, expected: str, score: float) -> None:
    assert f1(answer, expected) == pytest.approx(score)


def test_normalisation_takes_markers_punctuation_and_articles_off() -> None:
    assert normalise("The Net Loft, Port\u00a0Ansel [1] [2].") == "net loft port ansel"
    assert normalise("18.9 GWh") == "189 gwh"
    assert exact_match("“12 mm”", "12 mm")
    assert exact_match("\uff14\uff10 \u338f", "40 kg")
    assert not exact_match("10⁵", "105")
    assert not exact_match("1½", "11")


def test_the_best_accepted_answer_counts() -> None:
    assert best_exact_match("12", ["12 millimetres", "12"])
    assert best_f1("12 mm", ["12 millimetres", "twelve"]) == pytest.approx(0.5)
    assert best_f1("12", []) == 0.0


def test_scores_agree_with_the_squad_script(shared_data: Path) -> None:
    """The reference: SQuAD's own metric as published, on XQuAD's answers."""
    import collections
    import re
    import string

    def reference_normalise(s: str) -> str:
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    def reference_f1(prediction: str, truth: str) -> float:
        got, wanted = reference_normalise(prediction).split(), reference_normalise(truth).split()
        common = sum((collections.Counter(got) & collections.Counter(wanted)).values())
        if common == 0:
            return float(got == wanted and not got)
        precision, recall = common / len(got), common / len(wanted)
        return 2 * precision * recall / (precision + recall)

    path = next((shared_data / "xquad").glob("*en*.json"), None)
    if path is None:
        pytest.skip("no English XQuAD")
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    answers = [
        qa["answers"][0]["text"] for a in articles for p in a["paragraphs"] for qa in p["qas"]
    ]
    answers = [a for a in answers if a.isascii()]
    assert len(answers) > 300
    for one, other in zip(answers, [*answers[1:], answers[0]], strict=True):
        text = f"{one} {other}"
        assert f1(text, other) == pytest.approx(reference_f1(text, other))
