"""Conditions of promotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rag_fti.errors import ConfigError
from rag_fti.evaluation.scoring import (
    PER_QUESTION,
    Judged,
    by_question,
    mean_interval,
    paired_difference,
    scores,
)


@dataclass(frozen=True)
class Gate:
    """One condition; see :class:`rag_fti.config.evaluation.GateConfig`.

    Raises:
        ConfigError: If there is no such metric, or it has no interval.
    """

    name: str
    metric: str
    against: Literal["value", "base", "champion"] = "value"
    reads: Literal["all", "question_files", "test_split"] = "all"
    questions: Literal["all", "answerable", "unanswerable"] = "all"
    minimum: float | None = None
    maximum: float | None = None
    use_interval: bool = False

    def __post_init__(self) -> None:
        known = scores([])
        if self.metric not in known:
            raise ConfigError(
                f"Gate {self.name!r} names the metric {self.metric!r}.",
                next_step=f"Use one of: {', '.join(sorted(known))}.",
            )
        if self.use_interval and self.metric not in PER_QUESTION:
            raise ConfigError(
                f"Gate {self.name!r}: there is no interval for {self.metric!r}.",
                next_step=f"Intervals exist for: {', '.join(PER_QUESTION)}.",
            )


@dataclass(frozen=True)
class GateResult:
    """Whether a condition held."""

    name: str
    ok: bool
    value: float | None
    """What was compared: the score, the difference, or the bound of its interval."""
    threshold: str
    questions: int
    """Questions it looked at."""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The promised keys of ``evaluate --json``."""
        return {
            "name": self.name,
            "ok": self.ok,
            "value": self.value,
            "threshold": self.threshold,
            "questions": self.questions,
            "note": self.note,
        }


def check_gate(
    gate: Gate,
    *,
    judged: Mapping[str, Sequence[Judged]],
    samples: int,
    seed: int,
) -> GateResult:
    """Evaluate one condition.

    Args:
        gate: The condition.
        judged: Answers of ``challenger``, ``base`` and, where there is one, ``champion``.
        samples: Bootstrap resamples.
        seed: Seed of the resampling.
    """
    read = {
        name: [item for item in items if _is_read(gate, item)] for name, items in judged.items()
    }
    value = None
    if not read["challenger"]:
        note = "there are no such questions"
    elif gate.against != "value" and gate.against not in read:
        note = f"no {gate.against} to compare with"
    else:
        value = _value(gate, read, samples=samples, seed=seed)
        note = "nothing to measure" if value is None else ""
        # What is reported is compared: .59 - .60 is less than -.01 in floating point.
        value = None if value is None else round(value, 4)
    # A model that stopped citing has no precision, and must not pass for one that cites well.
    silent = (
        value is None
        and gate.metric == "citation_precision"
        and any(item.answerable and not item.abstained for item in read["challenger"])
    )
    if silent:
        note = "no answer cites anything"
    ok = not silent and (
        value is None
        or (
            (gate.minimum is None or value >= gate.minimum)
            and (gate.maximum is None or value <= gate.maximum)
        )
    )
    return GateResult(
        gate.name,
        ok,
        value,
        _threshold(gate),
        len(read["challenger"]),
        note,
    )


def _is_read(gate: Gate, item: Judged) -> bool:
    return gate.reads in ("all", item.question_set) and gate.questions in (
        "all",
        "answerable" if item.answerable else "unanswerable",
    )


def _value(
    gate: Gate, read: Mapping[str, Sequence[Judged]], *, samples: int, seed: int
) -> float | None:
    if not gate.use_interval:
        value = scores(read["challenger"])[gate.metric]
        if gate.against == "value" or value is None:
            return value if value is None else float(value)
        other = scores(read[gate.against])[gate.metric]
        return None if other is None else float(value) - float(other)
    mine = by_question(read["challenger"], gate.metric)
    if gate.against == "value":
        interval = mean_interval(list(mine.values()), samples=samples, seed=seed)
    else:
        theirs = by_question(read[gate.against], gate.metric)
        shared = [name for name in mine if name in theirs]
        interval = paired_difference(
            [mine[n] for n in shared], [theirs[n] for n in shared], samples=samples, seed=seed
        )
    # The bound that makes the gate hardest to pass; with two limits the one that is nearer
    # to its own.
    if gate.minimum is None or (
        gate.maximum is not None and gate.maximum - interval.high < interval.low - gate.minimum
    ):
        return interval.high
    return interval.low


def _threshold(gate: Gate) -> str:
    what = "" if gate.against == "value" else f" over {gate.against}"
    bound = " (95 % bound)" if gate.use_interval else ""
    parts = []
    if gate.minimum is not None:
        parts.append(f">= {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"<= {gate.maximum:g}")
    which = "" if gate.questions == "all" else f"{gate.questions} questions"
    where = "" if gate.reads == "all" else gate.reads.replace("_", " ")
    read = " of ".join(text for text in (which, where) if text)
    return f"{gate.metric}{what}{bound} {' and '.join(parts)}{f' ({read})' if read else ''}"
