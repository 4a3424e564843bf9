"""Scores, differences and gates of a challenger beside its rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_fti.evaluation.gates import Gate, GateResult, check_gate
from rag_fti.evaluation.scoring import Interval, Judged, by_question, paired_difference, scores

BASE = "base"
CHAMPION = "champion"
CHALLENGER = "challenger"
_COMPARED = ("f1", "exact_match", "f1_answerable")

Answered = Mapping[str, Sequence[Judged]]
"""Judged answers by base, champion and challenger, as far as there are such."""


@dataclass(frozen=True)
class Verdict:
    """What a challenger's answers are worth."""

    scores: dict[str, dict[str, Any] | None]
    """Of base, champion and challenger; None where there is none."""
    differences: dict[str, dict[str, Interval]]
    """Challenger minus other, by other and metric."""
    gates: list[GateResult]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.ok for gate in self.gates)

    @property
    def failed(self) -> str:
        """The gates that do not hold, as text."""
        return "; ".join(
            f"{gate.name} (got {gate.value}, wanted {gate.threshold})"
            for gate in self.gates
            if not gate.ok
        )


def reach_verdict(judged: Answered, *, gates: Sequence[Gate], samples: int, seed: int) -> Verdict:
    """Score, compare and check.

    Args:
        judged: Answers to the same questions.
        gates: Conditions of promotion.
        samples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ConfigError: If a gate names a metric that there is not.
    """
    return Verdict(
        {
            name: scores(judged[name]) if name in judged else None
            for name in (BASE, CHAMPION, CHALLENGER)
        },
        differences(judged, samples=samples, seed=seed),
        [check_gate(gate, judged=judged, samples=samples, seed=seed) for gate in gates],
    )


def differences(judged: Answered, *, samples: int, seed: int) -> dict[str, dict[str, Interval]]:
    """Challenger minus the others, question by question.

    Args:
        judged: Answers to the same questions.
        samples: Bootstrap resamples.
        seed: Seed of the resampling.
    """
    found: dict[str, dict[str, Interval]] = {}
    for other in (BASE, CHAMPION):
        if other not in judged:
            continue
        found[other] = {}
        for metric in _COMPARED:
            mine, theirs = (by_question(judged[name], metric) for name in (CHALLENGER, other))
            found[other][metric] = paired_difference(
                list(mine.values()),
                [theirs[name] for name in mine],
                samples=samples,
                seed=seed,
            )
    return found


def by_source(judged: Answered, source_of: Mapping[str, str]) -> dict[str, dict[str, list[Judged]]]:
    """The answers of each question file and test split.

    Args:
        judged: All answers.
        source_of: Source of each question id.
    """
    return {
        source: {
            name: [item for item in answers if source_of[item.question_id] == source]
            for name, answers in judged.items()
        }
        for source in dict.fromkeys(source_of.values())
    }
