from __future__ import annotations

import numpy as np
import pytest

from rag_fti.errors import ConfigError
from rag_fti.evaluation.gates import Gate, check_gate
from rag_fti.evaluation.scoring import (
    Judged,
    QuestionSet,
    judge,
    mean_interval,
    paired_difference,
    scores,
)
from rag_fti.schemas import Answer, Citation, Hit


def hit(chunk: str) -> Hit:
    return Hit(chunk, "d", "v", "a.md", "", "", None, 0, 1, "t", 1.0)


def answer(text: str, *, cited: tuple[str, ...] = (), abstained: bool = False) -> Answer:
    citations = tuple(
        Citation(n, chunk, "d", "v", "a.md", "", "", None, 0, 1, "t", 1.0)
        for n, chunk in enumerate(cited, start=1)
    )
    return Answer(
        "i", "q", text, abstained, citations, (hit("c1"), hit("c2")), "m", "", "s", "p",
        1, 1, 0.25, 0.5,
    )  # fmt: skip


def judged(
    question: str,
    *,
    answerable: bool,
    given: Answer,
    question_set: QuestionSet = "question_files",
) -> Judged:
    return judge(
        given,
        question_id=question,
        accepted=("red",) if answerable else (),
        answerable=answerable,
        supporting_chunks=frozenset({"c1"} if answerable else ()),
        question_set=question_set,
    )


def some() -> list[Judged]:
    return [
        judged("a", answerable=True, given=answer("red [1]", cited=("c1",))),
        judged("b", answerable=True, given=answer("red hat [1] [2]", cited=("c1", "c2"))),
        judged("c", answerable=True, given=answer("no", abstained=True)),
        judged("d", answerable=False, given=answer("no", abstained=True)),
        judged("e", answerable=False, given=answer("blue [2]", cited=("c2",))),
    ]


def test_scores_by_hand() -> None:
    result = scores(some())
    assert result["questions"] == 5 and result["answerable"] == 3
    assert result["exact_match"] == pytest.approx(2 / 5)
    assert result["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1 + 0) / 5, abs=1e-4)
    assert result["f1_answerable"] == pytest.approx((1 + 2 / 3) / 3, abs=1e-4)
    assert result["retrieval_recall"] == 1.0
    assert result["citation_precision"] == pytest.approx(2 / 4)
    assert result["citation_recall"] == 1.0
    assert result["abstention_precision"] == 0.5
    assert result["abstention_recall"] == 0.5
    assert result["false_abstention"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["latency_mean_seconds"] == 0.75


def test_nothing_to_say_is_none_and_not_zero() -> None:
    result = scores([judged("a", answerable=True, given=answer("red"))])
    assert result["citation_precision"] is None and result["abstention_recall"] is None
    assert scores([])["f1"] is None


def test_the_paired_interval_narrows_where_systems_agree() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0, 1, 200)
    better = np.clip(base + 0.1, 0, 1)
    paired = paired_difference(list(better), list(base), samples=1000, seed=1)
    assert paired.low > 0.05 and paired.high - paired.low < 0.02
    assert paired == paired_difference(list(better), list(base), samples=1000, seed=1)
    same = paired_difference(list(base), list(base), samples=1000, seed=1)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        interval = mean_interval(random.normal(0.5, 0.2, 60), samples=300, seed=trial)
        inside += interval.low <= 0.5 <= interval.high
    assert 0.9 <= inside / 200 <= 0.99


def gate(result_of: dict[str, list[Judged]], **values: object) -> tuple[bool, float | None]:
    result = check_gate(
        Gate(name="g", **values),  # type: ignore[arg-type]
        judged=result_of,
        samples=500,
        seed=1,
    )
    return result.ok, result.value


def test_gates() -> None:
    good = some()
    bad = [judged(j.question_id, answerable=j.answerable, given=answer("blue")) for j in good]
    both = {"challenger": good, "base": bad}
    assert gate(both, metric="f1", against="base", minimum=0.0)[0]
    assert not gate({"challenger": bad, "base": good}, metric="f1", against="base", minimum=0.0)[0]
    assert gate(both, metric="f1", minimum=0.5)[0]
    assert not gate(both, metric="f1", minimum=0.6)[0]
    assert gate(both, metric="false_abstention", maximum=0.4)[0]
    assert not gate(both, metric="false_abstention", maximum=0.3)[0]
    ok, low = gate(both, metric="f1", against="base", minimum=0.0, use_interval=True)
    assert ok and low is not None and low < 0.5333
    # With two limits the end of the interval that breaks one counts.
    assert not gate(both, metric="f1", minimum=0.0, maximum=0.7, use_interval=True)[0]
    assert not gate(both, metric="f1", minimum=0.3, maximum=1.0, use_interval=True)[0]
    assert gate(both, metric="f1", minimum=0.0, maximum=1.0, use_interval=True)[0]
    assert gate(both, metric="f1", against="champion", minimum=0.0) == (True, None)
    with pytest.raises(ConfigError, match="names the metric 'bleu'"):
        gate(both, metric="bleu", minimum=0.0)
    with pytest.raises(ConfigError, match="no interval"):
        gate(both, metric="citation_precision", minimum=0.0, use_interval=True)


def test_a_gate_holds_at_its_very_threshold() -> None:
    def right(count: int) -> list[Judged]:
        return [
            judged(str(n), answerable=True, given=answer("red" if n < count else "blue"))
            for n in range(100)
        ]

    both = {"challenger": right(59), "base": right(60)}
    assert gate(both, metric="f1", against="base", minimum=-0.01) == (True, -0.01)
    assert gate(both, metric="f1", against="base", minimum=-0.0099) == (False, -0.01)


def test_a_gate_on_answerable_questions_is_not_carried_by_abstaining() -> None:
    refusing = answer("no", abstained=True)
    base = [
        judged("a", answerable=True, given=answer("red")),
        judged("b", answerable=False, given=answer("blue")),
        judged("c", answerable=False, given=answer("blue")),
    ]
    abstainer = [judged(j.question_id, answerable=j.answerable, given=refusing) for j in base]
    both = {"challenger": abstainer, "base": base}
    assert gate(both, metric="f1", against="base", minimum=0.0)[0]
    assert gate(both, metric="f1", against="base", minimum=0.0, questions="answerable") == (
        False,
        -1.0,
    )
    assert gate(both, metric="f1", against="base", minimum=0.0, questions="unanswerable")[0]


def test_a_gate_reads_the_set_it_names() -> None:
    right, wrong = answer("red"), answer("blue")
    base = [
        judged("a", answerable=True, given=right),
        judged("t", answerable=True, given=wrong, question_set="test_split"),
        judged("u", answerable=True, given=wrong, question_set="test_split"),
    ]
    learnt_by_heart = [
        judged("a", answerable=True, given=wrong),
        judged("t", answerable=True, given=right, question_set="test_split"),
        judged("u", answerable=True, given=right, question_set="test_split"),
    ]
    both = {"challenger": learnt_by_heart, "base": base}
    assert gate(both, metric="f1", against="base", minimum=0.0)[0]
    assert gate(both, metric="f1", against="base", minimum=0.0, reads="test_split") == (True, 1.0)
    for use_interval in (False, True):
        assert gate(
            both, metric="f1", against="base", minimum=0.0, reads="question_files",
            use_interval=use_interval,
        ) == (False, -1.0)  # fmt: skip
    only_files = {name: items[:1] for name, items in both.items()}
    assert gate(only_files, metric="f1", minimum=0.9, reads="test_split") == (True, None)


def test_resampling_in_parts_draws_the_same() -> None:
    values = np.random.default_rng(3).random(3000)
    picks = np.random.default_rng(5).integers(0, 3000, size=(700, 3000))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    interval = mean_interval(values, samples=700, seed=5)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_a_model_that_cites_nothing_fails_the_citation_gate() -> None:
    silent = [judged("a", answerable=True, given=answer("red"))]
    result = check_gate(
        Gate("citations hold", "citation_precision", minimum=0.5),
        judged={"challenger": silent}, samples=100, seed=1,
    )  # fmt: skip
    assert not result.ok and result.note == "no answer cites anything"
