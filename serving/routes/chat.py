"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from rag_fti.errors import InferenceError
from rag_fti.inference.engine import Sampling, new_response_id
from rag_fti.inference.replay import asked
from rag_fti.schemas import Answer
from serving.access import Chatting, ServicesDep
from serving.auth import Principal
from serving.errors import json_response
from serving.exchange import EventStream, Exchange
from serving.filters import explained
from serving.routes.responses import errors
from serving.services import Services
from serving.tracing import span
from serving.wire import ChatRequest, chunk, usage

router = APIRouter()


@dataclass(frozen=True)
class Said:
    """Something that came from a model: a piece of text, or the finished answer."""

    model: str
    item: str | Answer


@router.post("/v1/chat/completions", responses=errors(404, 504), response_class=Response)
async def create_chat_completion(
    body: ChatRequest, request: Request, principal: Chatting, services: ServicesDep
) -> Response:
    """Answer the last message from the documents that the key may see.

    The fields are OpenAI's; ``k``, ``mode``, ``filter``, ``at`` and ``collection`` steer
    retrieval. System messages are ignored: the prompt is the server's own.
    """
    started = time.perf_counter()
    created = int(time.time())
    identifier = new_response_id()
    exchange = Exchange(services, request.receive)
    streaming = False
    try:
        await exchange.start(lambda: answer_items(body, principal, services, exchange, identifier))
        found = await exchange.next()
        services.metrics.first_token.observe(time.perf_counter() - started)
        while not body.stream and found is not None and isinstance(found.item, str):
            found = await exchange.next()
        if found is None:
            raise InferenceError("The model ended without an answer.")
        if not body.stream:
            return json_response(completion(found.item, created))
        streaming = True
        return EventStream(exchange, events(body, exchange, identifier, created, found))
    finally:
        if not streaming:
            exchange.close()


def answer_items(
    body: ChatRequest,
    principal: Principal,
    services: Services,
    exchange: Exchange,
    identifier: str,
) -> Iterator[Said]:
    """The pieces of an answer, then the answer. Runs on a thread."""
    *earlier, last = body.messages
    history = [
        {"role": turn.role, "content": turn.plain()}
        for turn in earlier
        if turn.role in ("user", "assistant") and turn.plain().strip()
    ]
    collections = principal.visible(body.collection)
    with (
        services.pool.lease(body.model) as engine,
        explained(services, body.filter),
        span("chat", {"gen_ai.request.model": body.model, "rag_fti.id": identifier}) as traced,
    ):
        for item in engine.stream(
            last.plain(),
            history=history,
            k=body.k,
            mode=body.mode,
            where=body.filter,
            collections=collections,
            at=body.at,
            sampling=sampling_of(body),
            cancellation=exchange.cancellation,
            response_id=identifier,
            asker=principal.key_id,
        ):
            if isinstance(item, Answer):
                # Also when the client has left: what was computed is logged.
                record(item, body, principal, services, collections)
                traced.set_attributes(attributes_of(item))
            yield Said(engine.model, item)


def sampling_of(body: ChatRequest) -> Sampling:
    """How a request wants its answer decoded."""
    return Sampling(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=body.stops,
        seed=body.seed,
    )


def attributes_of(answer: Answer) -> dict[str, str | bool | int | float]:
    """What a trace says about an answer; no texts."""
    return {
        "gen_ai.response.model": answer.model,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
        "rag_fti.snapshot": answer.snapshot,
        "rag_fti.abstained": answer.abstained,
        "rag_fti.passages": len(answer.hits),
        "rag_fti.citations": len(answer.citations),
        "rag_fti.retrieval_seconds": answer.retrieval_seconds,
        "rag_fti.generation_seconds": answer.generation_seconds,
    }


def record(
    answer: Answer,
    body: ChatRequest,
    principal: Principal,
    services: Services,
    collections: list[str] | None,
) -> None:
    """Log and count a finished answer."""
    services.metrics.observe_answer(answer)
    services.remember(answer.id, principal.key_id)
    services.log.record(
        answer,
        key_id=principal.key_id,
        collections=collections,
        settings={
            "route": "chat",
            "requested_model": body.model,
            "stream": bool(body.stream),
            "turns": len(body.messages),
            **asked(
                services.settings,
                k=body.k,
                mode=body.mode,
                where=body.filter,
                at=body.at,
                sampling=sampling_of(body),
            ),
        },
    )


def extras(answer: Answer) -> dict[str, Any]:
    """What stands beside ``choices``."""
    return {
        "citations": [citation.to_dict() for citation in answer.citations],
        "abstained": answer.abstained,
        "confidence": answer.confidence,
        "snapshot": answer.snapshot,
    }


def completion(answer: Answer, created: int) -> dict[str, Any]:
    """An answer as a ``chat.completion`` object."""
    return {
        "id": answer.id,
        "object": "chat.completion",
        "created": created,
        "model": answer.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.answer, "refusal": None},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": usage(answer.prompt_tokens, answer.completion_tokens),
        **extras(answer),
    }


async def events(
    body: ChatRequest,
    exchange: Exchange,
    identifier: str,
    created: int,
    first: Said,
) -> AsyncIterator[list[dict[str, Any]]]:
    """An answer as ``chat.completion.chunk`` objects; those of a list are sent together."""
    head: dict[str, Any] = {"identifier": identifier, "created": created, "model": first.model}
    ready = [chunk(**head, delta={"role": "assistant", "content": ""})]
    found: Said | None = first
    while found is not None:
        item = found.item
        if isinstance(item, Answer):
            last = chunk(**head, delta={}, finish_reason=item.finish_reason, **extras(item))
            ready.append(last)
            if body.stream_options and body.stream_options.include_usage:
                counted = usage(item.prompt_tokens, item.completion_tokens)
                ready.append(chunk(**head, delta=None, usage=counted, **extras(item)))
        else:
            ready.append(chunk(**head, delta={"content": item}))
        yield ready
        ready = []
        found = await exchange.next()
