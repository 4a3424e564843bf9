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
)


@dataclass(frozen=True)
class Gate:
    """One condition; see :class:`rag_fti.config.evaluation.GateConfig`."""

    name: str
    metric: str
    against: Literal["value", "base", "champion"] = "value"
    minimum: float | None = None
    maximum: float | None = None
    use_interval: bool = False


@dataclass(frozen=True)
class GateResult:
    """Whether a condition held."""

    name: str
    ok: bool
    value: float | None
    """What was compared: the score, the difference, or the bound of its interval."""
    threshold: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The promised keys of ``evaluate --json``."""
        return {
            "name": self.name,
            "ok": self.ok,
            "value": self.value,
            "threshold": self.threshold,
            "note": self.note,
        }


def check_gate(
    gate: Gate,
    *,
    scores: Mapping[str, Mapping[str, Any]],
    judged: Mapping[str, Sequence[Judged]],
    samples: int,
    seed: int,
) -> GateResult:
    """Evaluate one condition.

    Args:
        gate: The condition.
        scores: Scores of ``challenger``, ``base`` and, where there is one, ``champion``.
        judged: The answers behind them.
        samples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ConfigError: If there is no such metric, or it has no interval.
    """
    threshold = _threshold(gate)
    challenger = scores["challenger"]
    if gate.metric not in challenger:
        raise ConfigError(
            f"Gate {gate.name!r} names the metric {gate.metric!r}.",
            next_step=f"Use one of: {', '.join(sorted(challenger))}.",
        )
    if gate.use_interval and gate.metric not in PER_QUESTION:
        raise ConfigError(
            f"Gate {gate.name!r}: there is no interval for {gate.metric!r}.",
            next_step=f"Intervals exist for: {', '.join(PER_QUESTION)}.",
        )
    if gate.against != "value" and not scores.get(gate.against):
        return GateResult(gate.name, True, None, threshold, f"no {gate.against} to compare with")
    value = _value(gate, scores, judged, samples=samples, seed=seed)
    if value is None:
        return GateResult(gate.name, True, None, threshold, "nothing to measure")
    ok = (gate.minimum is None or value >= gate.minimum) and (
        gate.maximum is None or value <= gate.maximum
    )
    return GateResult(gate.name, ok, round(value, 4), threshold)


def _value(
    gate: Gate,
    scores: Mapping[str, Mapping[str, Any]],
    judged: Mapping[str, Sequence[Judged]],
    *,
    samples: int,
    seed: int,
) -> float | None:
    if not gate.use_interval:
        value = scores["challenger"][gate.metric]
        if gate.against == "value" or value is None:
            return value if value is None else float(value)
        other = scores[gate.against][gate.metric]
        return None if other is None else float(value) - float(other)
    mine = by_question(judged["challenger"], gate.metric)
    if gate.against == "value":
        interval = mean_interval(list(mine.values()), samples=samples, seed=seed)
    else:
        theirs = by_question(judged[gate.against], gate.metric)
        shared = [name for name in mine if name in theirs]
        interval = paired_difference(
            [mine[n] for n in shared], [theirs[n] for n in shared], samples=samples, seed=seed
        )
    # The bound that makes the gate hardest to pass.
    return interval.low if gate.minimum is not None else interval.high


def _threshold(gate: Gate) -> str:
    what = "" if gate.against == "value" else f" over {gate.against}"
    bound = " (95 % bound)" if gate.use_interval else ""
    parts = []
    if gate.minimum is not None:
        parts.append(f">= {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"<= {gate.maximum:g}")
    return f"{gate.metric}{what}{bound} {' and '.join(parts)}"
