"""What the official client can ask for: it works, or the error names the parameter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.serving.conftest import Running, start

QUESTION = "Who keeps the cellar key?"
ANSWER = "The cellar key is kept by Ada Byrne. [1]"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}


class Keeper(pydantic.BaseModel):
    name: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    factory = start.__wrapped__(tmp_path_factory.mktemp("openai"))  # type: ignore[attr-defined]
    yield next(factory)()
    factory.close()


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}},
        {"n": 1, "seed": 7, "logprobs": False, "user": "someone", "store": False},
        {"metadata": {"a": "b"}, "frequency_penalty": 0.5, "logit_bias": {"5": 1}},
        {"max_completion_tokens": 60, "stop": ["zzz"], "top_p": 0.9, "temperature": 0},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_wishes_that_change_no_answer_are_taken(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    made = client.chat.completions.create(model="champion", messages=MESSAGES, **fields)
    assert made.choices[0].message.content == ANSWER
    assert made.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
            "tool_choice",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x" * 999]}, "stop.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_answer_would_lack_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "champion", "messages": MESSAGES, **fields})
    assert refused.value.param == param
    assert param in refused.value.message


def test_a_parsed_answer_is_refused_before_it_could_fail_to_parse(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.parse(model="champion", messages=MESSAGES, response_format=Keeper)
    assert refused.value.param == "response_format.type"


def test_turns_of_other_models_are_passed_over(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    earlier: Any = [
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
    ]
    made = client.chat.completions.create(model="champion", messages=[*earlier, *MESSAGES])
    assert made.choices[0].message.content == ANSWER
    with pytest.raises(openai.BadRequestError, match="'image_url', only text is read"):
        client.chat.completions.create(model="champion", messages=earlier[:1])


def test_streaming_helpers_and_raw_responses(client: openai.OpenAI) -> None:
    asked: Any = {"model": "champion", "messages": MESSAGES}
    with client.chat.completions.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content == ANSWER
    assert final.choices[0].finish_reason == "stop"
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"] == raw.parse()._request_id


def test_several_questions_of_the_asynchronous_client(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=server.url + "/v1", api_key="any", max_retries=0
        ) as client:

            async def streamed() -> str:
                text = ""
                async for piece in await client.chat.completions.create(
                    model="champion",
                    messages=MESSAGES,
                    stream=True,
                    stream_options={"include_usage": True},
                ):
                    text += piece.choices[0].delta.content or "" if piece.choices else ""
                return text

            whole = client.chat.completions.create(model="champion", messages=MESSAGES)
            *texts, made = await asyncio.gather(streamed(), streamed(), whole)
            return [*texts, made.choices[0].message.content]

    assert asyncio.run(ask()) == [ANSWER] * 3


def test_models_are_retrieved_by_the_names_they_are_listed_under(client: openai.OpenAI) -> None:
    for model in client.models.list():
        assert client.models.retrieve(model.id).id == model.id
    for name in ("nobody@9", "some/hub-model"):
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve(name)
        assert missing.value.code == "model_not_found"


def test_embeddings_have_one_size(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="hash", input=["a", "b"], dimensions=64)
    assert [len(item.embedding) for item in made.data] == [64, 64]
    for fields, param in (({"dimensions": 32}, "dimensions"), ({"input": [[1, 2]]}, "input.0")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(**{"model": "hash", "input": "a", **fields})
        assert refused.value.param == param


def test_routes_that_are_not_there_are_said_to_be_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no POST /v1/responses") as missing:
        client.responses.create(model="champion", input=QUESTION)
    assert missing.value.code == "not_found"
    with pytest.raises(openai.NotFoundError, match="no POST /v1/moderations"):
        client.moderations.create(input="x")
