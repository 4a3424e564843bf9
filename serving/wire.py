"""Requests and responses as they cross the wire, apart from the domain types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_TEXT = 1_000_000
TEXT = "text"
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=200)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Wire(BaseModel):
    """Base of wire models: unknown fields of other clients are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Part(Wire):
    """One part of a message's content; only text is read."""

    type: Name
    text: Text = ""


class ChatMessage(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[Part], Field(max_length=100)] | None = None

    @property
    def parts(self) -> list[Part]:
        """The content as parts."""
        if isinstance(self.content, list):
            return self.content
        return [Part(type=TEXT, text=self.content or "")]

    def plain(self) -> str:
        """The text of all parts."""
        return "\n".join(part.text for part in self.parts if part.type == TEXT)


class StreamOptions(Wire):
    """Options of a streamed completion."""

    include_usage: bool = False


class ResponseFormat(Wire):
    """What an answer looks like: sentences with citations, never JSON."""

    type: Literal["text"] = "text"


class ChatRequest(Wire):
    """Body of ``POST /v1/chat/completions``. Fields below ``top_logprobs`` are ours.

    What a client asks for and would miss in the answer is refused by name; wishes that a model is
    free not to use (``tools`` with ``tool_choice: auto``) are ignored.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=500)]
    model: Name = ""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    stop: Name | Annotated[list[Name], Field(max_length=16)] | None = None
    n: Literal[1] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Literal["hybrid", "vector", "text"] | None = None
    filter: Text | None = None
    at: Name = ""
    collection: Name | None = None

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        last = messages[-1]
        if last.role != "user" or not last.plain().strip():
            raise ValueError("the last message must be the user's, with text")
        for part in last.parts:
            if part.type != TEXT:
                raise ValueError(f"the last message has a part {part.type!r}, only text is read")
        return messages

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts as a tuple."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class SearchRequest(Wire):
    """Body of ``POST /v1/search``."""

    query: Annotated[str, Field(max_length=20_000)]
    k: Annotated[int, Field(ge=1, le=200)] | None = None
    mode: Literal["hybrid", "vector", "text"] | None = None
    filter: Text | None = None
    at: Name = ""
    collection: Name | None = None


class EmbeddingsRequest(Wire):
    """Body of ``POST /v1/embeddings``."""

    input: (
        Annotated[str, Field(max_length=100_000)]
        | Annotated[
            list[Annotated[str, Field(max_length=100_000)]], Field(min_length=1, max_length=512)
        ]
    )
    model: Name = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    input_type: Literal["query", "document"] = "query"


class FeedbackRequest(Wire):
    """Body of ``POST /v1/feedback``."""

    response_id: Annotated[str, Field(min_length=1, max_length=200)]
    rating: Annotated[int, Field(ge=-1, le=1)] = 0
    correction: Annotated[str, Field(max_length=20_000)] = ""
    comment: Annotated[str, Field(max_length=20_000)] = ""


class DocumentRequest(Wire):
    """JSON body of ``POST /v1/documents``."""

    source: Annotated[str, Field(min_length=1, max_length=500)]
    text: Annotated[str, Field(min_length=1, max_length=10_000_000)]
    collection: Name | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error has this body."""

    error: ErrorDetail


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The ``usage`` object of a completion."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chunk(
    *,
    identifier: str,
    created: int,
    model: str,
    delta: dict[str, Any] | None,
    finish_reason: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """One ``chat.completion.chunk``; ``delta`` None makes one without choices."""
    choices = []
    if delta is not None:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    return {
        "id": identifier,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
        **extra,
    }
