"""The main job on the sample corpus, one pipeline after the other.

This is the composition that a scheduler would do: each pipeline runs on its own, reads and writes
only shared storage, and hands the next one an id. Every step is a no-op when its result is already
there, so a killed demo goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rag_fti.config import Settings
from rag_fti.errors import InferenceError, SourceError
from rag_fti.progress import Progress, Silent

CHECKOUT = Path(__file__).resolve().parents[1]
SAMPLE = Path("data/sample")
SERVER_START_SECONDS = 120.0
MOST_EXAMPLES = 1000
"""Of the instruction dataset."""
MOST_QUESTIONS = 150
"""Held-out questions, and rows of the test split, that the demo judges by; all of them with
``rag-fti evaluate assistant@champion evaluation.questions='["data/sample/questions.jsonl"]'``."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Never by way of the environment's proxy: the server is on this machine."""
SHOWN = ("q101", "q154", "q066")
"""Held-out questions asked at the end, picked to show a duration, a date and an abstention. They
flatter the model: the scores over all held-out questions are the ones that count."""


@dataclass(frozen=True)
class Summary:
    """What the demo did, pipeline by pipeline."""

    pipelines: Mapping[str, Mapping[str, Any]]
    questions: Sequence[Mapping[str, Any]]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all contracts were kept, no document failed and questions were answered."""
        kept = all(p["contract"]["ok"] for p in self.pipelines.values())
        return kept and not self.pipelines["ingest"]["failures"] and bool(self.questions)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "ok": self.ok,
            "pipelines": {name: dict(summary) for name, summary in self.pipelines.items()},
            "questions": [dict(question) for question in self.questions],
            "seconds": round(self.seconds, 1),
        }


def run(settings: Settings, *, progress: Progress | None = None) -> Summary:
    """Ingest, build a dataset, fine-tune, register, validate, serve, ask.

    Args:
        settings: Where the stores are; sample paths are filled in.
        progress: Receives stages and notes.

    Raises:
        SourceError: If the sample corpus is not here.
    """
    from pipelines import ingest, instruction_dataset, model_validation, training
    from rag_fti.evaluation.questions import read_questions

    progress = progress or Silent()
    started = time.monotonic()
    sample = find_sample()
    questions_file = sample / "questions.jsonl"
    settings = with_sample(settings, questions_file)
    done: dict[str, Mapping[str, Any]] = {}

    progress.note(f"1/5 Feature pipeline: {sample / 'corpus'} into {settings.storage.features_uri}")
    done["ingest"] = ingest.run(settings, [sample / "corpus"], progress=progress).to_dict()
    progress.note(f"    {describe_ingest(done['ingest'])}")

    progress.note(f"2/5 Instruction dataset into {settings.storage.datasets_uri}")
    dataset = instruction_dataset.run(settings, progress=progress).to_dict()
    done["instruction_dataset"] = dataset
    progress.note(
        f"    {dataset['dataset']} from snapshot {dataset['snapshot']}: {dataset['splits']}"
    )

    settings = updated(settings, "training", {"dataset": dataset["dataset"], "epochs": 1.0})
    progress.note(f"3/5 Training pipeline: LoRA on {dataset['dataset']}")
    done["training"] = training.run(settings, resume=True, reuse=True, progress=progress).to_dict()
    version = f"{done['training']['model']}@{done['training']['version']}"
    progress.note(f"    {version} is in {settings.storage.registry_uri}")

    progress.note(f"4/5 Model validation of {version} on held-out questions")
    done["model_validation"] = model_validation.run(settings, version, progress=progress).to_dict()
    progress.note(f"    {describe_validation(done['model_validation'])}")

    progress.note("5/5 Inference: a chat server, asked over HTTP")
    chosen = [q for q in read_questions(questions_file) if q.id in SHOWN]
    with server(settings, progress) as address:
        asked = [
            ask(address, question.question, question.answers, answerable=question.answerable)
            for question in chosen
        ]
    return Summary(done, asked, time.monotonic() - started)


def find_sample() -> Path:
    """The sample folder, under the working directory or in the checkout.

    Raises:
        SourceError: If it is in neither.
    """
    for root in (Path(), CHECKOUT):
        if (root / SAMPLE / "questions.jsonl").is_file():
            return root / SAMPLE
    raise SourceError(
        f"The sample corpus is not at {SAMPLE}, neither here nor in {CHECKOUT}.",
        next_step="Run the demo from a checkout of the project.",
    )


def with_sample(settings: Settings, questions: Path) -> Settings:
    """Settings that train on the sample's questions and judge on the held-out ones.

    On as many of both as take two cores five minutes.
    """
    settings = updated(
        settings,
        "dataset",
        {
            "pairs": (questions,),
            "evaluation_questions": (questions,),
            "max_examples": MOST_EXAMPLES,
        },
    )
    return updated(
        settings, "evaluation", {"questions": (questions,), "max_questions": MOST_QUESTIONS}
    )


def updated(settings: Settings, section: str, values: Mapping[str, Any]) -> Settings:
    """A copy of the settings with some values of one section replaced."""
    part = getattr(settings, section).model_copy(update=dict(values))
    return settings.model_copy(update={section: part})


@contextmanager
def server(settings: Settings, progress: Progress) -> Iterator[str]:
    """A running chat server, as ``rag-fti serve`` starts it; yields its address.

    Raises:
        InferenceError: If it does not get ready in time.
    """
    port = free_port()
    settings = updated(settings, "serving", {"host": "127.0.0.1", "port": port})
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "serving.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        log = Path(folder) / "server.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "serve", "--config", str(config)],
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(address, process, log)
            progress.note(f"    the server answers at {address}")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll ``/health/ready`` until it says yes."""
    started = time.monotonic()
    while time.monotonic() - started < SERVER_START_SECONDS and process.poll() is None:
        try:
            with _DIRECT.open(f"{address}/health/ready", timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise InferenceError(
        f"The chat server did not get ready in {time.monotonic() - started:.0f} s. "
        f"Its log ends: {tail}",
        next_step="Start it by hand: rag-fti serve.",
    )


def ask(address: str, question: str, answers: Sequence[str], *, answerable: bool) -> dict[str, Any]:
    """One question over ``POST /v1/chat/completions``, with whether the answer matched."""
    from rag_fti.evaluation.answers import exact_match, f1

    body = json.dumps(
        {"model": "champion", "messages": [{"role": "user", "content": question}]}
    ).encode("utf-8")
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with _DIRECT.open(request, timeout=120) as response:
            reply = json.load(response)
    except urllib.error.HTTPError as error:
        raise InferenceError(
            f"The chat server answered {error.code}: {error.read().decode('utf-8', 'replace')}"
        ) from error
    text = reply["choices"][0]["message"]["content"]
    score = max((f1(text, answer) for answer in answers), default=float(reply["abstained"]))
    return {
        "question": question,
        "answer": text,
        "expected": list(answers) if answerable else "an abstention",
        "matched": reply["abstained"] if not answerable else score >= 0.5,
        "exact": any(exact_match(text, answer) for answer in answers),
        "abstained": reply["abstained"],
        "citations": [
            {
                "document": citation["source"],
                "heading": citation["heading"],
                "span": [citation["start"], citation["end"]],
                "text": citation["text"],
            }
            for citation in reply["citations"]
        ],
        "model": reply["model"],
        "id": reply["id"],
    }


def describe_ingest(summary: Mapping[str, Any]) -> str:
    """One line about an ingestion."""
    documents, chunks = summary["documents"], summary["chunks"]
    return (
        f"{documents['added']} documents added, {documents['updated']} updated, "
        f"{documents['unchanged']} unchanged, {documents['failed']} failed; "
        f"{chunks['total']} chunks; "
        f"snapshot {summary['snapshot']}; {summary['seconds']:.1f} s"
    )


def describe_validation(summary: Mapping[str, Any]) -> str:
    """One line about a model validation."""
    scores = ", ".join(
        f"{name} F1 {values['f1']:.2f}" for name, values in summary["scores"].items() if values
    )
    gates = "; ".join(f"{g['name']}: {'yes' if g['ok'] else 'no'}" for g in summary["gates"])
    verdict = "promoted to champion" if summary["promoted"] else "not promoted"
    return f"{scores}. {gates}. {verdict}."


def render(summary: Mapping[str, Any]) -> str:
    """The questions and answers, and what to try next."""
    lines = [
        f"\nDone in {summary['seconds']:.0f} s. Three of the held-out questions, answered by the "
        "fine-tuned model\n(the scores over all of them stand above):"
    ]
    for item in summary["questions"]:
        mark = "✓" if item["matched"] else "✗"
        lines += ["", f"  Q  {item['question']}", f"  A  {item['answer']}   {mark}"]
        for citation in item["citations"]:
            start, end = citation["span"]
            where = f"{citation['document']}  {citation['heading']}".rstrip()
            lines.append(f"     {where}, characters {start} to {end}")
        if not item["matched"]:
            expected = item["expected"]
            shown = expected if isinstance(expected, str) else " / ".join(expected)
            lines.append(f"     expected: {shown}")
    lines += [
        "",
        "Try next:",
        "  rag-fti serve                      the chat page and the OpenAI-compatible endpoint",
        '  rag-fti ask "…"                    one question on the command line',
        "  rag-fti ingest PATH                your own documents",
        "  rag-fti status                     what is where",
        "  rag-fti lineage ID                 where an answer came from",
        "(with the environment active: source .venv/bin/activate)",
    ]
    return "\n".join(lines)
