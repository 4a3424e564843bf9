"""Requests in the shapes that Open WebUI 0.12 was seen to send, against a server with keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving.auth import add_key
from tests.serving.conftest import start
from tests.serving.test_chat import ANSWER, QUESTION, events_of

ASKED: Any = {"role": "user", "content": QUESTION}
ANSWERED: Any = {"role": "assistant", "content": ANSWER}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "current_time",
            "description": "Seconds since 1970.",
            "parameters": {"properties": {}, "type": "object"},
        },
    }
]


def task(wanted: str) -> dict[str, Any]:
    """What it asks beside an answer, in one user message."""
    chat = f"USER: {QUESTION}\nASSISTANT: {ANSWER}"
    text = f"### Task:\n{wanted}\n### Output:\nJSON\n<chat_history>\n{chat}\n</chat_history>"
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("webui")
    keys = folder / "keys.yaml"
    _, secret = add_key(keys, name="webui", scopes=["chat"], collections=[])
    factory = start.__wrapped__(folder)  # type: ignore[attr-defined]
    server = next(factory)(serving__keys_file=str(keys))
    with server.client(secret) as made:
        yield made
    factory.close()


def test_the_connection_check_tells_a_right_key_from_a_wrong_one(client: httpx.Client) -> None:
    listed = client.get("/v1/models", headers={"Content-Type": "application/json"})
    assert listed.status_code == 200
    assert listed.json()["data"][0]["id"] == "champion"
    refused = client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [ASKED]},
        {"messages": [ASKED, ANSWERED, ASKED], "tools": TOOLS},
        {"messages": [{"role": "system", "content": "Be kind."}, ASKED], "seed": 3},
    ],
    ids=["first", "follow-up", "parameters"],
)
def test_chats_are_answered(client: httpx.Client, body: dict[str, Any]) -> None:
    asked = {"stream": True, "model": "champion", **body}
    events = events_of(client.post("/v1/chat/completions", json=asked))
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == ANSWER
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    counted = {**asked, "stream_options": {"include_usage": True}}
    assert events_of(client.post("/v1/chat/completions", json=counted))[-1]["usage"]


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ("Generate a title.", {"max_tokens": 1000}),
        ("Generate 1-3 tags.", {}),
        ("Predict 3-5 messages the user might send next.", {}),
    ],
)
def test_tasks_beside_an_answer_fail_nobody(
    client: httpx.Client, wanted: str, fields: dict[str, Any]
) -> None:
    body = {"model": "champion", "messages": [task(wanted)], "stream": False, **fields}
    made = client.post("/v1/chat/completions", json=body)
    assert made.status_code == 200
    assert len(made.json()["choices"]) == 1
