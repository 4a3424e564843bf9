"""Pipeline contracts that are checked, not only written down.

A pipeline declares a :class:`Contract`. During a run it gathers *facts* (a plain mapping of
measured values) and hands them to a :class:`ContractRun`: preconditions before anything is
written, invariants and postconditions before anything is published, service levels at the end.
The run's :class:`ContractReport` is stored beside the artifact.

Service levels are promises about time and size. A missed one is reported and does not undo
good data; every other failed check raises :class:`rag_fti.errors.ContractViolation`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rag_fti.errors import ContractViolation
from rag_fti.files import write_json_atomic

logger = logging.getLogger(__name__)

Kind = Literal["precondition", "invariant", "postcondition", "service_level"]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one check measured."""

    ok: bool
    value: Any = None
    """The measured value, JSON-ready."""
    expected: str = ""


@dataclass(frozen=True)
class Check:
    """One promise and how it is measured."""

    name: str
    promise: str
    """The promise as a sentence."""
    measure: Callable[[Facts], Outcome]
    next_step: str = ""
    """What to do when it does not hold."""


def at_least(fact: str, threshold: float) -> Callable[[Facts], Outcome]:
    """A measure that holds when ``facts[fact] >= threshold``."""
    return lambda facts: Outcome(facts[fact] >= threshold, facts[fact], f">= {threshold}")


def at_most(fact: str, threshold: float) -> Callable[[Facts], Outcome]:
    """A measure that holds when ``facts[fact] <= threshold``."""
    return lambda facts: Outcome(facts[fact] <= threshold, facts[fact], f"<= {threshold}")


def equals(fact: str, expected: Any) -> Callable[[Facts], Outcome]:
    """A measure that holds when ``facts[fact] == expected``."""
    return lambda facts: Outcome(facts[fact] == expected, facts[fact], f"== {expected!r}")


def is_true(fact: str) -> Callable[[Facts], Outcome]:
    """A measure that holds when ``facts[fact]`` is true."""
    return lambda facts: Outcome(bool(facts[fact]), bool(facts[fact]), "true")


@dataclass(frozen=True)
class Contract:
    """What a pipeline takes, gives and promises."""

    pipeline: str
    purpose: str
    inputs: Mapping[str, Any]
    """Name of each input to its schema (``{column: type}``) or a sentence."""
    outputs: Mapping[str, Any]
    preconditions: tuple[Check, ...] = ()
    invariants: tuple[Check, ...] = ()
    postconditions: tuple[Check, ...] = ()
    service_levels: tuple[Check, ...] = ()
    when_broken: str = "Nothing was published."
    """What is true of the outputs when an invariant or a postcondition does not hold."""

    def checks(self, kind: Kind) -> tuple[Check, ...]:
        """The checks of one kind."""
        return {
            "precondition": self.preconditions,
            "invariant": self.invariants,
            "postcondition": self.postconditions,
            "service_level": self.service_levels,
        }[kind]

    def declaration(self) -> dict[str, Any]:
        """The contract as JSON-ready values, for ``rag-fti contracts``."""
        kinds: tuple[Kind, ...] = ("precondition", "invariant", "postcondition", "service_level")
        return {
            "pipeline": self.pipeline,
            "purpose": self.purpose,
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            **{
                f"{kind}s": [{"name": c.name, "promise": c.promise} for c in self.checks(kind)]
                for kind in kinds
            },
        }


@dataclass(frozen=True)
class CheckResult:
    """One evaluated check."""

    kind: Kind
    name: str
    promise: str
    ok: bool
    value: Any
    expected: str


@dataclass(frozen=True)
class ContractReport:
    """All checks of one run."""

    pipeline: str
    run_id: str
    ok: bool
    """Whether every check so far held, service levels apart."""
    finished: bool
    """Whether the run came to its end; one that failed by other means than a check did not."""
    started_at: str
    finished_at: str
    seconds: float
    results: tuple[CheckResult, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write as JSON, atomically and durably."""
        write_json_atomic(path, self.to_dict())

    def summary(self, path: Path | None) -> dict[str, Any]:
        """The ``contract`` entry of a command's JSON summary."""
        return {
            "ok": self.ok,
            "report": str(path or ""),
            "missed": [r.name for r in self.results if not r.ok],
        }


class ContractRun:
    """Evaluates one contract over one run.

    Args:
        contract: The declaration.
        run_id: Identifies the run in reports and stores.
        report_path: Where the report goes; written by every call, also before raising. None on a
            dry run, which leaves no report.
    """

    def __init__(self, contract: Contract, *, run_id: str, report_path: Path | None) -> None:
        self.contract = contract
        self.run_id = run_id
        self.report_path = report_path
        self._results: list[CheckResult] = []
        self._started = time.time()

    def require(self, facts: Facts) -> None:
        """Evaluate the preconditions.

        Raises:
            ContractViolation: If one does not hold; nothing has been written yet.
        """
        self._evaluate("precondition", facts, "Nothing was started.")

    def hold(self, facts: Facts) -> None:
        """Evaluate the invariants.

        Raises:
            ContractViolation: If one does not hold.
        """
        self._evaluate("invariant", facts, self.contract.when_broken)

    def ensure(self, facts: Facts) -> None:
        """Evaluate the postconditions.

        Raises:
            ContractViolation: If one does not hold.
        """
        self._evaluate("postcondition", facts, self.contract.when_broken)

    def finish(self, facts: Facts) -> ContractReport:
        """Evaluate the service levels (``facts["seconds"]`` is added) and close the report."""
        facts = {"seconds": time.time() - self._started, **facts}
        for check in self.contract.service_levels:
            self._add("service_level", check, facts)
        return self._save(finished=True)

    def _evaluate(self, kind: Kind, facts: Facts, consequence: str) -> None:
        added = [self._add(kind, check, facts) for check in self.contract.checks(kind)]
        failed = [(r, c) for r, c in added if not r.ok]
        self._save(finished=False)
        if failed:
            details = "; ".join(
                f"{r.name}: got {r.value!r}, expected {r.expected} ({r.promise})" for r, _ in failed
            )
            raise ContractViolation(
                f"{self.contract.pipeline}: {kind} not met. {details}. {consequence}",
                next_step=" ".join(c.next_step for _, c in failed if c.next_step)
                or (f"See the report at {self.report_path}." if self.report_path else ""),
            )

    def _add(self, kind: Kind, check: Check, facts: Facts) -> tuple[CheckResult, Check]:
        outcome = check.measure(facts)
        value = outcome.value
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no form for it
        result = CheckResult(kind, check.name, check.promise, outcome.ok, value, outcome.expected)
        self._results.append(result)
        return result, check

    def _save(self, *, finished: bool) -> ContractReport:
        now = time.time()
        report = ContractReport(
            pipeline=self.contract.pipeline,
            run_id=self.run_id,
            ok=all(r.ok for r in self._results if r.kind != "service_level"),
            finished=finished,
            started_at=_iso(self._started),
            finished_at=_iso(now),
            seconds=round(now - self._started, 3),
            results=tuple(self._results),
        )
        if self.report_path is not None:
            report.write(self.report_path)
        return report


def new_run_id(pipeline: str) -> str:
    """A run id that sorts by time: ``<pipeline>-<UTC time in milliseconds>-<random>``."""
    now = datetime.now(UTC)
    milliseconds = now.microsecond // 1000
    return f"{pipeline}-{now:%Y%m%dT%H%M%S}{milliseconds:03d}-{os.urandom(3).hex()}"


def last_reports(directory: Path, pipelines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The newest stored report of each pipeline, from ``directory/<pipeline>/*.json``."""
    newest = {pipeline: next(_newest_first(directory / pipeline), None) for pipeline in pipelines}
    return {pipeline: report for pipeline, report in newest.items() if report is not None}


def last_verdict(directory: Path, contract: Contract) -> tuple[dict[str, Any] | None, int]:
    """The newest stored report that says how the contract was kept.

    A run that found nothing to do and one that was killed end before the postconditions; they say
    less than the whole run before them.

    Args:
        directory: Where reports are, under the pipeline's name.
        contract: The declaration.

    Returns:
        The newest report of a run that failed or got as far as the postconditions (the newest
        of all where no run did; None where there is none), and how many newer ones there are.
    """
    newest: dict[str, Any] | None = None
    for newer, report in enumerate(_newest_first(directory / contract.pipeline)):
        newest = newest or report
        got_there = any(result["kind"] == "postcondition" for result in report["results"])
        if got_there or not report["ok"] or not contract.postconditions:
            return report, newer
    return newest, 0


def _newest_first(directory: Path) -> Iterator[dict[str, Any]]:
    """Reports of a directory; what is none is left out with a warning."""
    for path in sorted(directory.glob("*.json"), reverse=True):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is left out: %s", path, error)
            continue
        if isinstance(report, dict) and isinstance(report.get("results"), list):
            yield report
        else:
            logger.warning("%s is no contract report and is left out.", path)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
