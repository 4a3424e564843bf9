from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rag_fti.contracts import (
    Check,
    Contract,
    ContractRun,
    at_least,
    at_most,
    equals,
    is_true,
    last_reports,
    last_verdict,
    new_run_id,
)
from rag_fti.errors import ContractViolation

CONTRACT = Contract(
    pipeline="sample",
    purpose="Turn apples into juice.",
    inputs={"apples": {"weight": "double"}},
    outputs={"juice": "litres"},
    preconditions=(Check("apples", "There are apples.", at_least("apples", 1), "Buy some."),),
    invariants=(Check("conserved", "Nothing is lost.", equals("lost", 0)),),
    postconditions=(Check("juice", "There is juice.", is_true("juice")),),
    service_levels=(Check("duration", "Takes a second.", at_most("seconds", 1.0)),),
)


def start(tmp_path: Path) -> ContractRun:
    return ContractRun(CONTRACT, run_id="r1", report_path=tmp_path / "sample" / "r1.json")


def test_a_good_run_is_ok_and_its_report_is_stored(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.require({"apples": 3})
    run.hold({"lost": 0})
    run.ensure({"juice": 2.5})
    report = run.finish({})
    assert report.ok
    assert [r.kind for r in report.results] == [
        "precondition",
        "invariant",
        "postcondition",
        "service_level",
    ]
    stored = last_reports(tmp_path, ["sample", "never_run"])
    assert list(stored) == ["sample"]
    assert stored["sample"] == json.loads(json.dumps(report.to_dict()))


def test_a_failed_precondition_says_what_got_expected_and_next(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(ContractViolation) as caught:
        run.require({"apples": 0})
    message = str(caught.value)
    assert "got 0" in message
    assert ">= 1" in message
    assert "Nothing was started." in message
    assert "Buy some." in message
    assert not json.loads((tmp_path / "sample" / "r1.json").read_text())["ok"]


def test_failed_invariant_and_postcondition_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(ContractViolation, match="Nothing was published"):
        start(tmp_path).hold({"lost": 2})
    with pytest.raises(ContractViolation, match="Nothing was published"):
        start(tmp_path).ensure({"juice": None})


def test_a_failed_promise_says_what_the_pipeline_has_done_by_then(tmp_path: Path) -> None:
    contract = replace(CONTRACT, when_broken="The juice so far stays.")
    run = ContractRun(contract, run_id="r1", report_path=tmp_path / "r1.json")
    with pytest.raises(ContractViolation, match=r"got 2.*The juice so far stays\.") as caught:
        run.hold({"lost": 2})
    assert "Nothing was published" not in str(caught.value)


def test_a_report_is_json_whatever_was_measured(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(ContractViolation, match="got 'nan'"):
        run.require({"apples": math.nan})
    with pytest.raises(ContractViolation, match="got 'inf'"):
        run.hold({"lost": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    stored = json.loads((tmp_path / "sample" / "r1.json").read_text(), parse_constant=refuse)
    assert [result["value"] for result in stored["results"]] == ["nan", "inf"]


def test_a_missed_service_level_is_reported_and_does_not_fail_the_run(tmp_path: Path) -> None:
    run = start(tmp_path)
    report = run.finish({"seconds": 5.0})
    assert report.ok
    assert report.summary("x")["missed"] == ["duration"]


def test_declaration_lists_every_promise() -> None:
    text = json.dumps(CONTRACT.declaration())
    for promise in ("There are apples.", "Nothing is lost.", "There is juice.", "Takes a second."):
        assert promise in text


def test_run_ids_are_unique_and_sort_by_time() -> None:
    assert len({new_run_id("x") for _ in range(50)}) == 50
    assert new_run_id("x").startswith("x-20")
    earlier = new_run_id("x")
    time.sleep(0.005)
    assert earlier < new_run_id("x")


def test_the_verdict_is_that_of_the_last_whole_or_failed_run(tmp_path: Path) -> None:
    def run(name: str) -> ContractRun:
        return ContractRun(CONTRACT, run_id=name, report_path=tmp_path / "sample" / f"{name}.json")

    def verdict() -> tuple[str, int]:
        report, newer = last_verdict(tmp_path, CONTRACT)
        return (report or {}).get("run_id", "none"), newer

    assert verdict() == ("none", 0)
    run("r1").require({"apples": 1})
    assert verdict() == ("r1", 0)
    whole = run("r2")
    whole.require({"apples": 3})
    whole.ensure({"juice": 1})
    whole.finish({})
    for name in ("r3", "r4"):
        idle = run(name)
        idle.require({"apples": 3})
        idle.finish({})
    assert verdict() == ("r2", 2)
    with pytest.raises(ContractViolation):
        run("r5").require({"apples": 0})
    assert verdict() == ("r5", 0)
    assert last_reports(tmp_path, ["sample"])["sample"]["run_id"] == "r5"


def test_a_report_says_whether_its_run_came_to_the_end(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.require({"apples": 3})
    assert last_reports(tmp_path, ["sample"])["sample"]["finished"] is False
    run.finish({})
    assert last_reports(tmp_path, ["sample"])["sample"]["finished"] is True


def test_a_dry_run_leaves_no_report(tmp_path: Path) -> None:
    run = ContractRun(CONTRACT, run_id="r1", report_path=None)
    run.require({"apples": 3})
    assert run.finish({}).summary(run.report_path)["report"] == ""
    with pytest.raises(ContractViolation) as caught:
        run.ensure({"juice": 0})
    assert "None" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_report_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tmp_path).finish({})
    for name, content in {"r2": b"{", "r3": b"[]", "r4": b"\xff", "r5": b"{}"}.items():
        (tmp_path / "sample" / f"{name}.json").write_bytes(content)
    assert last_reports(tmp_path, ["sample"])["sample"]["run_id"] == "r1"
    report, newer = last_verdict(tmp_path, CONTRACT)
    assert report is not None and (report["run_id"], newer) == ("r1", 0)
    assert "r4.json" in caplog.text
