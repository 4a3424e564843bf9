"""The teacher against a real HTTP server that is as unreliable as the real ones."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rag_fti.errors import ConfigError, SourceError
from rag_fti.features.instructions_teacher import (
    Ask,
    Budget,
    Reply,
    Taught,
    TeacherError,
    openai_teacher,
    parse_reply,
    read_completion,
    teach,
    teacher_messages,
)
from rag_fti.progress import Progress, Silent
from rag_fti.schemas import Hit


class Teacher(ThreadingHTTPServer):
    """Answers from the passage; misbehaves where the passage says so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.failures: dict[str, int] = {}
        self.flying = 0
        self.most_flying = 0
        self.evasive = True
        self.limited = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Teacher

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        passage = body["messages"][1]["content"]
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.keys.add(self.headers.get("Authorization", ""))
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
            seen = server.failures[passage] = server.failures.get(passage, 0) + 1
        threading.Event().wait(0.02)
        with server.lock:
            server.flying -= 1
            limited = server.limited > 0
            server.limited -= 1
        if limited or "unknown" in passage:
            said = "Slow down, secret" if limited else "There is no model m."
            self.answer(429 if limited else 404, json.dumps({"error": {"message": said}}).encode())
            return
        if "broken" in passage:
            self.send_error(500)
            return
        if "flaky" in passage and seen < 3:
            self.send_error(429 if seen == 1 else 503)
            return
        if "forbidden" in passage:
            self.send_error(403)
            return
        number = passage.split("number ")[1].split(".")[0]
        items = [{"question": f"Which number has the chunk {number}?", "answer": number}]
        text = f"Sure!\n```json\n{json.dumps({'items': items})}\n```"
        if "prose" in passage and server.evasive:
            text = "I would rather talk about something else."
        reply = {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 100}}
        data = b"<html>" if "garbage" in passage else json.dumps(reply).encode()
        data = bytes(32 << 20) if "endless" in passage else data
        self.answer(200, data, drip=0.05 if "dripping" in passage else 0.0)

    def answer(self, status: int, data: bytes, *, drip: float = 0.0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "1")
        self.end_headers()
        for n in range(len(data)) if drip else ():
            try:
                self.wfile.write(data[n : n + 1])
            except OSError:  # the client has gone
                return
            threading.Event().wait(drip)
        if not drip:
            with contextlib.suppress(OSError):  # the client has gone
                self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Teacher]:
    with Teacher() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def chunks(count: int, **special: str) -> list[Hit]:
    texts = [f"{special.get(f'n{n}', 'plain')} number {n}." for n in range(count)]
    return [
        Hit(f"c{n}", "d", "v", "a.md", "T", "", None, 0, len(t), t, 0.0)
        for n, t in enumerate(texts)
    ]


def asker(server: Teacher, *, timeout_seconds: float = 5) -> Ask:
    return openai_teacher(
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        model="m",
        api_key="secret",
        timeout_seconds=timeout_seconds,
    )


def run(
    server: Teacher,
    items: list[Hit],
    journal: Path,
    *,
    requests: int = 1000,
    tokens: int = 10**6,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
    **options: Any,
) -> Taught:
    return teach(
        items,
        ask=asker(server),
        model="m",
        per_chunk=2,
        journal=journal,
        budget=Budget(requests, tokens),
        concurrency=8,
        progress=progress,
        **options,
    )


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_bad_replies_cost_one_item_each(server: Teacher, tmp_path: Path) -> None:
    items = chunks(30, n3="flaky", n7="prose", n11="garbage", n13="forbidden")
    taught = run(server, items, tmp_path / "journal.jsonl")
    assert [c.answer for c in taught.candidates] == [
        str(n) for n in range(30) if n not in (7, 11, 13)
    ]
    assert taught.dropped == {
        "teacher reply does not fit the schema": 1,
        "teacher: no chat completion in the reply": 1,
        "teacher: status 403": 1,
    }
    assert server.most_flying > 3
    assert server.keys == {"Bearer secret"}


def test_a_build_goes_on_where_it_stopped(server: Teacher, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    items = chunks(20)
    first = run(server, items[:8], journal)
    assert first.requests == 8
    with journal.open("a") as stream:
        stream.write('{"key": "torn')
    second = run(server, items, journal)
    assert second.requests == 12 and len(second.candidates) == 20
    asked = len(server.requests)
    third = run(server, items, journal)
    assert third.requests == 0 and len(server.requests) == asked
    assert third.candidates == second.candidates


def test_an_unusable_reply_is_asked_again_within_the_budget(
    server: Teacher, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.jsonl"
    items = chunks(4, n1="prose", n2="prose")
    assert len(run(server, items, journal).candidates) == 2
    again = run(server, items, journal, requests=1)
    assert again.requests == 1
    assert again.dropped == {"over the budget": 1, "teacher reply does not fit the schema": 1}
    server.evasive = False
    last = run(server, items, journal)
    assert (last.requests, len(last.candidates)) == (2, 4)
    assert run(server, items, journal).requests == 0


def test_the_budget_holds(server: Teacher, tmp_path: Path) -> None:
    taught = run(server, chunks(20), tmp_path / "a.jsonl", requests=5)
    assert taught.requests == 5 and taught.dropped == {"over the budget": 15}
    assert len(server.requests) == 5
    spent = run(server, chunks(20), tmp_path / "b.jsonl", tokens=300)
    # Eight requests may be on their way when the third reply uses the budget up.
    assert spent.tokens <= 300 + 8 * 100


def test_a_server_that_is_gone_costs_its_items(tmp_path: Path) -> None:
    ask = openai_teacher(base_url="http://127.0.0.1:9/v1", model="m", api_key="", timeout_seconds=1)
    taught = teach(
        chunks(2),
        ask=ask,
        model="m",
        per_chunk=1,
        journal=tmp_path / "j.jsonl",
        budget=Budget(10, 10),
        concurrency=1,
        progress=Silent(),
        retries=1,
    )
    assert taught.dropped == {"teacher: ConnectError": 2} and taught.requests == 4


def test_repeated_requests_count_towards_the_budget(server: Teacher, tmp_path: Path) -> None:
    taught = run(server, chunks(3, n0="broken"), tmp_path / "j.jsonl", requests=3)
    assert taught.requests == len(server.requests) == 3


def test_a_reply_that_drips_has_a_time_limit(server: Teacher) -> None:
    started = time.monotonic()
    with pytest.raises(TeacherError, match="ReadTimeout"):
        asker(server, timeout_seconds=0.3)(teacher_messages(chunks(1, n0="dripping")[0], 1))
    assert time.monotonic() - started < 2


def test_a_reply_has_a_limit_of_bytes(server: Teacher) -> None:
    with pytest.raises(TeacherError, match="too long a reply"):
        asker(server)(teacher_messages(chunks(1, n0="endless")[0], 1))


def test_a_rate_limit_is_waited_for(server: Teacher, tmp_path: Path) -> None:
    server.limited = 3
    started = time.monotonic()
    taught = run(server, chunks(3), tmp_path / "j.jsonl", retries=0)
    assert len(taught.candidates) == 3 and taught.requests == 6
    assert time.monotonic() - started >= 1  # as the server asked


def test_a_rate_limit_that_lasts_ends_the_build(server: Teacher, tmp_path: Path) -> None:
    server.limited = 10**6
    with pytest.raises(
        SourceError, match=r"status 429 \(Slow down, …\).*teacher\.concurrency"
    ) as e:
        run(server, chunks(40), tmp_path / "j.jsonl", retries=0, patience_seconds=0.3)
    assert "secret" not in str(e.value)


def test_a_refusal_is_shown_in_the_endpoints_words(server: Teacher, tmp_path: Path) -> None:
    seen = Notes()
    run(server, chunks(6, n1="unknown", n3="unknown"), tmp_path / "j.jsonl", progress=seen)
    assert seen.notes == ["teacher: status 404: There is no model m."]


@pytest.mark.parametrize("usage", ["none", [1], {"total_tokens": 1e999}, {"total_tokens": -5}])
def test_a_reply_of_odd_usage_is_a_reply(usage: Any) -> None:
    body = {"choices": [{"message": {"content": "twelve tokens"}}], "usage": usage}
    assert read_completion(json.dumps(body).encode()) == Reply("twelve tokens", 3)


@pytest.mark.parametrize("body", ["", "null", "[" * 100_000, '{"choices": {"a": 1}}'])
def test_what_is_no_completion_costs_one_item(body: str) -> None:
    with pytest.raises(TeacherError, match="no chat completion"):
        read_completion(body.encode())


@pytest.mark.parametrize(
    ("base_url", "api_key"),
    [
        ("localhost:8000/v1", ""),
        ("http://h:port/v1", ""),
        ("ftp://h/v1", ""),
        ("http://h/v1", "schlüssel"),
        ("http://h/v1", "line\n"),
    ],
)
def test_wrong_addresses_and_keys_are_refused_before_anything_is_asked(
    base_url: str, api_key: str
) -> None:
    with pytest.raises(ConfigError, match="teacher") as refused:
        openai_teacher(base_url=base_url, model="m", api_key=api_key, timeout_seconds=1)
    assert not api_key or api_key not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"items": []}', '{"items": [{"question": "Why?", "answer": ""}]}', "{broken}"],
)
def test_replies_that_do_not_fit(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_reply(text)


def test_one_wrong_item_costs_that_item() -> None:
    items = [
        {"question": "Why?", "answer": ""},
        {"question": "Who painted the door?", "answer": "Ann"},
        "nonsense",
    ]
    (item,), others = parse_reply(json.dumps({"items": items}))
    assert item.answer == "Ann" and others == 2


def test_items_left_out_are_counted(tmp_path: Path) -> None:
    items = [{"question": f"What is {n}?", "answer": str(n)} for n in range(3)] + [{}]
    taught = teach(
        chunks(1),
        ask=lambda _: Reply(json.dumps({"items": items}), 10),
        model="m",
        per_chunk=2,
        journal=tmp_path / "j.jsonl",
        budget=Budget(1, 1000),
        concurrency=1,
        progress=Silent(),
    )
    assert len(taught.candidates) == 2
    assert taught.dropped == {
        "teacher item beyond questions_per_chunk": 1,
        "teacher item does not fit the schema": 1,
    }


def test_an_endpoint_that_is_down_ends_the_build(server: Teacher, tmp_path: Path) -> None:
    items = chunks(200, **{f"n{n}": "forbidden" for n in range(10, 200)})
    journal = tmp_path / "journal.jsonl"
    with pytest.raises(SourceError, match=r"failed 20 times in a row, last with: status 403"):
        run(server, items, journal)
    # At most the eight requests in flight were sent after the twentieth failure.
    assert len(server.requests) <= 10 + 20 + 8
    assert run(server, items[:10], journal).requests == 0


def test_any_text_survives_the_journal(tmp_path: Path) -> None:
    text = json.dumps({"items": [{"question": "What\u2028now?", "answer": "one"}]})
    for _ in range(2):
        taught = teach(
            chunks(1),
            ask=lambda _: Reply(text.replace("\\u2028", "\u2028") + "\ud83d", 10),
            model="m",
            per_chunk=1,
            journal=tmp_path / "j.jsonl",
            budget=Budget(1, 1000),
            concurrency=1,
            progress=Silent(),
        )
        assert [c.answer for c in taught.candidates] == ["one"]
    assert taught.requests == 0
