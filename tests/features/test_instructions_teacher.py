"""The teacher against a real HTTP server that is as unreliable as the real ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rag_fti.errors import SourceError
from rag_fti.features.instructions_teacher import (
    Budget,
    Reply,
    Taught,
    openai_teacher,
    parse_reply,
    teach,
)
from rag_fti.progress import Silent
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
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
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


def run(server: Teacher, items: list[Hit], journal: Path, **budget: int) -> Taught:
    return teach(
        items,
        ask=openai_teacher(
            base_url=f"http://127.0.0.1:{server.server_port}/v1",
            model="m",
            api_key="secret",
            timeout_seconds=5,
        ),
        model="m",
        per_chunk=2,
        journal=journal,
        budget=Budget(budget.get("requests", 1000), budget.get("tokens", 10**6)),
        concurrency=8,
        progress=Silent(),
    )


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
    ask = openai_teacher(
        base_url="http://127.0.0.1:9/v1", model="m", api_key="", timeout_seconds=1, retries=0
    )
    taught = teach(
        chunks(2),
        ask=ask,
        model="m",
        per_chunk=1,
        journal=tmp_path / "j.jsonl",
        budget=Budget(10, 10),
        concurrency=1,
        progress=Silent(),
    )
    assert taught.dropped == {"teacher: ConnectError": 2}


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
    (item,) = parse_reply(json.dumps({"items": items}))
    assert item.answer == "Ann"


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
