"""The model validation pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rag_fti.config.section import Section


class GateConfig(Section):
    """One condition of promotion."""

    name: str
    """Name in the report."""
    metric: str
    """A score of the report: ``f1``, ``exact_match``, ``citation_precision``…"""
    against: Literal["value", "base", "champion"] = "value"
    """What the challenger is compared with."""
    reads: Literal["all", "question_files", "test_split"] = "all"
    """The set of questions it looks at. Without a question of that kind the gate holds, and the
    report says so."""
    questions: Literal["all", "answerable", "unanswerable"] = "all"
    """The questions of that set it looks at: all lets a model win by abstaining more often."""
    minimum: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Least value, or least difference to ``base`` or ``champion``; none by default."""
    maximum: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Largest value or difference; none by default."""
    use_interval: bool = False
    """Compare the end of the 95 % bootstrap interval that is harder to pass instead of the mean
    (``f1`` and ``exact_match``)."""

    @model_validator(mode="after")
    def _bounded(self) -> GateConfig:
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"gate {self.name!r} needs a minimum or a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"gate {self.name!r} has the minimum {self.minimum}, which is above its maximum "
                f"{self.maximum}"
            )
        return self


DEFAULT_GATES = (
    GateConfig(
        name="beats base on question files",
        metric="f1",
        against="base",
        reads="question_files",
        questions="answerable",
        minimum=0.0,
    ),
    GateConfig(
        name="no worse than base on the test split",
        metric="f1",
        against="base",
        reads="test_split",
        questions="answerable",
        minimum=-0.02,
    ),
    GateConfig(name="no worse than champion", metric="f1", against="champion", minimum=-0.01),
    GateConfig(name="citations hold", metric="citation_precision", minimum=0.5),
)


class EvaluationConfig(Section):
    """How a version is judged."""

    model_name: str = "assistant"
    """Name in the registry."""
    questions: tuple[Path, ...] = ()
    """Question files answered through the real inference engine."""
    held_out_only: bool = True
    """Of question files, use only lines marked ``held_out`` where any line is."""
    test_split: bool = True
    """Also use the test split of the version's dataset."""
    max_questions: Annotated[int, Field(ge=0)] = 0
    """Most questions per source, drawn by ``seed``; 0 is all."""
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Resamples for confidence intervals."""
    gates: tuple[GateConfig, ...] = DEFAULT_GATES
    """Conditions of promotion; all must hold."""
    promote: bool = True
    """Move ``champion`` when all gates hold."""
    seed: int = 17
    """Seed of resampling and drawing."""
