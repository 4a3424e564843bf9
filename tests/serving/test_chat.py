from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from rag_fti import prompts
from rag_fti.models.local import LocalGenerator
from tests.inference.corpus import CORPUS, FirstSentence
from tests.inference.tiny import tiny_model, tiny_tokenizer
from tests.serving.conftest import Gate, Start, eventually

QUESTION = "Who keeps the cellar key?"
ANSWER = "The cellar key is kept by Ada Byrne. [1]"


def ask(text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "champion", "messages": [{"role": "user", "content": text}], **fields}


def events_of(response: httpx.Response) -> list[Any]:
    data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def test_a_completion_has_openai_s_fields_and_ours(start: Start) -> None:
    with start().client() as client:
        response = client.post("/v1/chat/completions", json=ask())
        assert response.status_code == 200, response.text
        body = response.json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": ANSWER,
        "refusal": None,
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == (
        body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )
    assert body["model"] == "first-sentence"
    assert body["abstained"] is False
    assert body["snapshot"]
    (citation,) = body["citations"]
    assert set(citation) >= {"marker", "chunk_id", "document_id", "source", "title", "heading"}
    assert CORPUS[citation["source"]][citation["start"] : citation["end"]] == citation["text"]


def test_a_stream_says_the_same_and_ends_with_citations(start: Start) -> None:
    server = start()
    with server.client() as client:
        whole = client.post("/v1/chat/completions", json=ask()).json()
        response = client.post("/v1/chat/completions", json=ask(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == ANSWER
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({e["id"] for e in events}) == 1
    assert len([e for e in events if e["choices"][0]["delta"].get("content")]) > 2
    last = events[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    for key in ("citations", "abstained", "confidence", "snapshot"):
        assert last[key] == whole[key]


def test_usage_on_request_and_citations_still_last(start: Start) -> None:
    with start().client() as client:
        fields = {"stream": True, "stream_options": {"include_usage": True}}
        events = events_of(client.post("/v1/chat/completions", json=ask(**fields)))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] > 0
    assert events[-1]["citations"]


def test_abstention_in_both_modes(start: Start) -> None:
    with start().client() as client:
        body = client.post("/v1/chat/completions", json=ask("zebra quantum?")).json()
        events = events_of(
            client.post("/v1/chat/completions", json=ask("zebra quantum?", stream=True))
        )
    assert body["choices"][0]["message"]["content"] == prompts.ABSTENTION
    assert (body["abstained"], body["citations"]) == (True, [])
    assert events[-1]["abstained"] is True


def test_the_official_client_works_unchanged(start: Start) -> None:
    client = openai.OpenAI(base_url=start().url + "/v1", api_key="any", max_retries=0)
    with client:
        made = client.chat.completions.create(
            model="champion",
            messages=[
                {"role": "system", "content": "ignored"},
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            ],
            temperature=0,
            max_tokens=50,
            stop=["zzz"],
            extra_body={"k": 2},
        )
        assert made.choices[0].message.content == ANSWER
        assert made.model_extra is not None
        assert made.model_extra["citations"][0]["source"] == "guide/keys.md"
        assert made.usage is not None
        text = ""
        extra: dict[str, Any] = {}
        for piece in client.chat.completions.create(
            model="champion", messages=[{"role": "user", "content": QUESTION}], stream=True
        ):
            text += piece.choices[0].delta.content or ""
            extra = piece.model_extra or {}
        assert text == ANSWER
        assert extra["citations"][0]["marker"] == 1
        names = [model.id for model in client.models.list()]
        assert "champion" in names
        assert client.models.retrieve("champion").id == "champion"
        vectors = client.embeddings.create(model="hash", input=["a", "b"])
        assert len(vectors.data) == 2
        assert len(vectors.data[0].embedding) == 64
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(
                model="nobody", messages=[{"role": "user", "content": "x"}]
            )
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="champion", messages=[])


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "some/hub-model"}, 404, "model_not_found"),
        ({"model": "/etc"}, 404, "model_not_found"),
        (
            {"messages": [{"role": "user", "content": "word " * 3000}]},
            400,
            "context_length_exceeded",
        ),
        ({"messages": []}, 400, None),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, None),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, 400, None),
        ({"temperature": 9}, 400, None),
        ({"n": 3}, 400, None),
        ({"filter": "1=1) OR (1=1"}, 400, "bad_filter"),
        ({"filter": "no_such_column = 3"}, 400, "bad_filter"),
        ({"at": "d9999c9999"}, 404, "snapshot_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_openai_shaped_also_when_streaming(
    shared: httpx.Client, fields: dict[str, Any], status: int, code: str | None, stream: bool
) -> None:
    response = shared.post("/v1/chat/completions", json={**ask(stream=stream), **fields})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code:
        assert error["code"] == code


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 101}]},
            "messages.0.content",
            "at most 100 items",
        ),
        ({"stop": 3}, "stop", "string"),
        ({"function_call": {"name": "search"}}, "function_call", "auto"),
        ({"modalities": ["text", "audio"]}, "modalities.1", "text"),
        ({"top_logprobs": 5}, "top_logprobs", "0"),
        ({"at": "zzz"}, None, "no such snapshot or tag;"),
        ({"at": "d9999c9999"}, None, "no such snapshot or tag;"),
    ],
)
def test_a_refusal_says_what_does_not_fit_and_no_more(
    shared: httpx.Client, fields: dict[str, Any], param: str | None, said: str
) -> None:
    response = shared.post("/v1/chat/completions", json={**ask(), **fields})
    error = response.json()["error"]
    assert (response.status_code // 100, error["param"]) == (4, param)
    assert said in error["message"]
    assert "/" not in error["message"]


def test_wishes_that_ask_for_nothing_are_taken(shared: httpx.Client) -> None:
    fields = {"function_call": "auto", "modalities": ["text"], "top_logprobs": None}
    assert shared.post("/v1/chat/completions", json={**ask(), **fields}).status_code == 200


def test_a_full_queue_answers_429_with_retry_after(start: Start, gate: Gate) -> None:
    server = start(gate, serving__max_running=1, serving__max_queue=1)
    lane = server.services.lanes["requests"]

    def call() -> httpx.Response:
        with server.client() as client:
            return client.post("/v1/chat/completions", json=ask())

    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(call), pool.submit(call)]
        assert eventually(lambda: (lane.running, lane.waiting) == (1, 1))
        refused = [call() for _ in range(3)]
        gate.open.set()
    assert [future.result().status_code for future in accepted] == [200, 200]
    assert [response.status_code for response in refused] == [429, 429, 429]
    assert all(response.json()["error"]["code"] == "overloaded" for response in refused)
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert eventually(lambda: lane.idle)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_generation(start: Start, stream: bool) -> None:
    generator = FirstSentence(delay=0.2)
    server = start(generator)
    body = json.dumps(ask(stream=stream)).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    with socket.create_connection(server.address) as connection:
        connection.sendall(head + body)
        assert eventually(lambda: bool(generator.requests))
    assert eventually(lambda: generator.cancelled == 1)
    assert eventually(lambda: server.services.lanes["requests"].idle)


def test_a_request_that_takes_too_long_is_ended(start: Start) -> None:
    generator = FirstSentence(delay=0.3)
    with start(generator, serving__request_timeout_seconds=1.0).client() as client:
        response = client.post("/v1/chat/completions", json=ask())
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        streamed = client.post("/v1/chat/completions", json=ask(stream=True))
        assert streamed.status_code == 200
        assert events_of(streamed)[-1]["error"]["code"] == "timeout"


def test_stopping_finishes_running_streams(start: Start) -> None:
    generator = FirstSentence(delay=0.1)
    server = start(generator)
    texts: list[str] = []

    def call() -> None:
        with server.client() as client:
            response = client.post("/v1/chat/completions", json=ask(stream=True))
            texts.append(
                "".join(e["choices"][0]["delta"].get("content", "") for e in events_of(response))
            )

    thread = threading.Thread(target=call)
    thread.start()
    assert eventually(lambda: bool(generator.requests))
    server.stop()
    thread.join()
    assert texts == [ANSWER]
    rows = server.services.store.rows("inference_log").to_pylist()
    assert [row["answer"] for row in rows] == [ANSWER]


def test_a_real_model_streams_to_several_clients_at_once(start: Start) -> None:
    tokenizer = tiny_tokenizer(context=2048)
    generator = LocalGenerator(
        model=tiny_model(len(tokenizer), context=2048), tokenizer=tokenizer, name="tiny"
    )
    server = start(generator, inference__max_tokens=16)
    bodies: dict[int, str] = {}

    def call(number: int) -> None:
        with server.client() as client:
            response = client.post("/v1/chat/completions", json=ask(f"key {number}", stream=True))
            bodies[number] = "".join(
                e["choices"][0]["delta"].get("content", "") for e in events_of(response)
            )

    threads = [threading.Thread(target=call, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.client() as client:
        for number, text in bodies.items():
            alone = client.post("/v1/chat/completions", json=ask(f"key {number}")).json()
            assert text == alone["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server for tests that leave no trace."""
    from tests.serving.conftest import start as start_fixture

    factory = start_fixture.__wrapped__(tmp_path_factory.mktemp("shared"))  # type: ignore[attr-defined]
    made = next(factory)()
    with made.client() as client:
        yield client
    factory.close()
