"""From a question to an answer with citations."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rag_fti import ids, prompts
from rag_fti.errors import ContextTooLong, StoreError
from rag_fti.inference.citations import ABSTAINED, Settled, before_stop, settle
from rag_fti.inference.conversation import Condensed, condense, recent
from rag_fti.inference.models import ServedModel
from rag_fti.inference.streaming import AnswerStream
from rag_fti.protocols import Cancellation, Generation, GenerationRequest, Message
from rag_fti.retrieval import Retrieved, Retriever, pack_passages
from rag_fti.retrieval.retriever import Mode
from rag_fti.schemas import Answer, Hit

_PACKING_MARGIN = 16
"""Tokens kept free because passages are counted one by one but tokenized together."""

_CHARS_PER_TOKEN = 3.0
"""Pessimistic guess for generators that do not count tokens themselves."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is decoded. None takes the engine's own setting."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A question with its passages, ready to be generated."""

    id: str
    question: str
    retrieved: Retrieved
    hits: tuple[Hit, ...]
    """Passages in the prompt, in marker order."""
    request: GenerationRequest | None
    """None where nothing was found, so that there is nothing to answer from."""
    prompt: str
    """Digest of the exact messages."""
    history: tuple[Message, ...] = ()
    """Earlier turns that were taken into account."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer as it is shown, which the generator does not see."""


class Engine:
    """Retrieves, prompts, generates, and ties the answer to its sources. Thread-safe.

    Args:
        retriever: Searches the feature store.
        served: The model that answers.
        prompt_digest: Digest of the prompt format, see :func:`rag_fti.prompts.prompt_digest`.
        context_tokens: Most tokens of passages in a prompt.
        max_tokens: Most tokens of an answer.
        temperature: 0 is greedy.
        abstain_below: Answers of less confidence (see
            :attr:`rag_fti.protocols.Generation.confidence`) are withheld; 0 leaves abstaining
            to the model.
        condense_mode: How follow-up questions are made findable.
        history_turns: Most earlier turns in a prompt.
        follow: Snapshot or tag to read at; empty follows the newest state.
    """

    def __init__(
        self,
        *,
        retriever: Retriever,
        served: ServedModel,
        prompt_digest: str,
        context_tokens: int = 1200,
        max_tokens: int = 128,
        temperature: float = 0.0,
        abstain_below: float = 0.0,
        condense_mode: str = "previous",
        history_turns: int = 4,
        follow: str = "",
    ) -> None:
        self.retriever = retriever
        self.served = served
        self.prompt_digest = prompt_digest
        self._context_tokens = context_tokens
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._abstain_below = abstain_below
        self._condense_mode = condense_mode
        self._history_turns = history_turns
        self._follow = follow
        self._restore = bool(getattr(served.generator, "restores_text", False))
        # An answer whose words or existence are settled only at its end cannot be shown before.
        self._show_at_end = self._restore or abstain_below > 0

    @property
    def model(self) -> str:
        """Name of the model that answers, ``name@version`` for a registry version."""
        return self.served.name

    def answer(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        k: int | None = None,
        mode: Mode | None = None,
        where: str | None = None,
        collections: Sequence[str] | None = None,
        at: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Answer:
        """Answer one question.

        Args:
            question: The user's question.
            history: Earlier user and assistant turns, oldest first.
            k: Passages to retrieve; None takes the retriever's own.
            mode: Search mode; None takes the retriever's own.
            where: SQL condition over the chunk columns.
            collections: Only these collections; None searches all.
            at: Snapshot or tag to read; empty takes ``follow`` or the newest.
            max_tokens: Most tokens of the answer; None takes the engine's setting.
            temperature: 0 is greedy; None takes the engine's setting.
            top_p: Nucleus, in (0, 1].
            stop: Texts that end the answer, as it is shown; an abstention stays whole.
            seed: Seed of sampling.

        Raises:
            StoreError: If the store is empty or cannot be read.
            ContextTooLong: If the question leaves no room for passages and answer.
            InferenceError: If the generator fails.
        """
        sampling = Sampling(max_tokens, temperature, top_p, tuple(stop), seed)
        return self.answer_many(
            [question],
            history=history,
            k=k,
            mode=mode,
            where=where,
            collections=collections,
            at=at,
            sampling=sampling,
        )[0]

    def answer_many(
        self,
        questions: Sequence[str],
        *,
        history: Sequence[Message] = (),
        k: int | None = None,
        mode: Mode | None = None,
        where: str | None = None,
        collections: Sequence[str] | None = None,
        at: str = "",
        sampling: Sampling | None = None,
    ) -> list[Answer]:
        """Answer several questions on one snapshot, embedding and generating them together.

        Returns:
            One answer per question, in order. Arguments and errors as :meth:`answer`.
        """
        sampling = sampling or Sampling()
        condensed = [self._condense(question, history) for question in questions]
        for item in condensed:
            self._used(item)
        found = self.retriever.retrieve_many(
            [item.query for item in condensed],
            k=k,
            mode=mode,
            where=where,
            collections=collections,
            at=at or self._follow,
        )
        prepared = [
            self._prepare(question, item, retrieved, sampling)
            for question, item, retrieved in zip(questions, condensed, found, strict=True)
        ]
        started = time.perf_counter()
        asked = [item for item in prepared if item.request is not None]
        generations = iter(
            self.served.generator.generate([item.request for item in asked if item.request])
            if asked
            else ()
        )
        seconds = (time.perf_counter() - started) / max(1, len(asked))
        return [
            self._finish(item, next(generations), seconds)
            if item.request is not None
            else self._finish(item, None, 0.0)
            for item in prepared
        ]

    def stream(
        self,
        question: str,
        *,
        history: Sequence[Message] = (),
        k: int | None = None,
        mode: Mode | None = None,
        where: str | None = None,
        collections: Sequence[str] | None = None,
        at: str = "",
        sampling: Sampling | None = None,
        cancellation: Cancellation | None = None,
        response_id: str = "",
        asker: str = "",
    ) -> Iterator[str | Answer]:
        """Answer one question piece by piece.

        Args:
            question: The user's question.
            history: Earlier turns, as the rest of the arguments like those of :meth:`answer`.
            k: Passages to retrieve.
            mode: Search mode.
            where: SQL condition over the chunk columns.
            collections: Only these collections.
            at: Snapshot or tag to read.
            sampling: How the answer is decoded.
            cancellation: Ends it early.
            response_id: The answer's id; empty makes one.
            asker: Who asks; vectors of questions are remembered for each alone.

        Yields:
            Pieces of text, then the finished :class:`Answer`, whose text they add up to (unless
            it was cancelled). Errors as :meth:`answer`.
        """
        condensed = self._condense(question, history)
        self._used(condensed)
        retrieved = self.retriever.retrieve(
            condensed.query,
            k=k,
            mode=mode,
            where=where,
            collections=collections,
            at=at or self._follow,
            asker=asker,
        )
        prepared = self._prepare(question, condensed, retrieved, sampling or Sampling())
        prepared = replace(prepared, id=response_id or prepared.id)
        if prepared.request is None:
            answer = self._finish(prepared, None, 0.0)
            yield answer.answer
            yield answer
            return
        started = time.perf_counter()
        shown = AnswerStream(known=len(prepared.hits))
        for item in self.served.generator.stream(prepared.request, cancellation):
            if isinstance(item, Generation):
                answer = self._finish(prepared, item, time.perf_counter() - started)
                if item.finish_reason != "cancelled":
                    yield from shown.finish(answer.answer)
                yield answer
            elif not (self._show_at_end or prepared.stop) and (piece := shown.push(item)):
                yield piece

    def _condense(self, question: str, history: Sequence[Message]) -> Condensed:
        if not history:
            return Condensed(question, question, ())
        limit = self.served.generator.context_window // 2

        def fits(turns: Sequence[Message]) -> bool:
            return self._count(prompts.answer_messages(question, [], history=turns)) <= limit

        kept = recent(history, turns=self._history_turns, fits=fits)
        return condense(question, kept, mode=self._condense_mode, generator=self.served.generator)

    def _prepare(
        self, question: str, condensed: Condensed, retrieved: Retrieved, sampling: Sampling
    ) -> Prepared:
        prepared = Prepared(new_response_id(), question, retrieved, (), None, "", condensed.turns)
        if not retrieved.hits:
            return prepared
        generator = self.served.generator
        wanted = sampling.max_tokens or self._max_tokens
        used = self._used(condensed)
        room = generator.context_window - used - _PACKING_MARGIN
        # A very long answer limit must not crowd the passages out.
        budget = min(self._context_tokens, max(room - wanted, room // 2))
        hits, passages = pack_passages(retrieved.hits, count_tokens=self._count_text, budget=budget)
        if not hits:
            raise self._too_long(used)
        messages = prompts.answer_messages(condensed.question, passages, history=condensed.history)
        left = room - budget
        if wanted > left:  # how much the passages really take matters only then
            left = generator.context_window - self._count(messages)
        stop = tuple(filter(None, sampling.stop))
        own_stop = self._restore or any(map(prompts.cuts_abstention, stop))
        request = GenerationRequest(
            messages=tuple(messages),
            max_tokens=max(1, min(wanted, left)),
            temperature=self._temperature if sampling.temperature is None else sampling.temperature,
            top_p=sampling.top_p,
            stop=() if own_stop else stop,
            seed=sampling.seed,
        )
        return replace(
            prepared,
            hits=tuple(hits),
            request=request,
            prompt=ids.digest_json(messages),
            stop=stop if own_stop else (),
        )

    def _used(self, condensed: Condensed) -> int:
        """Tokens of a prompt but for its passages.

        Raises:
            ContextTooLong: If nothing fits beside them; a search with such a text takes long.
        """
        # Every prompt has the same frame; only with a history it is another.
        frame = self._count_frame(condensed.history) if condensed.history else self._frame
        used = frame + self._count_text(condensed.question)
        if used + _PACKING_MARGIN >= self.served.generator.context_window:
            raise self._too_long(used)
        return used

    def _too_long(self, used: int) -> ContextTooLong:
        return ContextTooLong(
            f"The question and the history take {used} of the "
            f"{self.served.generator.context_window} tokens of {self.model}: no passage fits "
            "beside them.",
            next_step="Ask a shorter question or send less history.",
        )

    def _finish(self, prepared: Prepared, made: Generation | None, seconds: float) -> Answer:
        settled = self._settle(prepared, made)
        return Answer(
            id=prepared.id,
            question=prepared.question,
            answer=settled.text,
            abstained=settled.abstained,
            citations=settled.citations,
            hits=prepared.hits,
            model=self.model,
            dataset=self.served.dataset,
            snapshot=prepared.retrieved.snapshot,
            prompt_digest=self.prompt_digest,
            prompt_tokens=made.prompt_tokens if made else 0,
            completion_tokens=made.completion_tokens if made else 0,
            retrieval_seconds=prepared.retrieved.seconds,
            generation_seconds=seconds,
            finish_reason="stop" if made is None or settled.stopped else made.finish_reason,
            confidence=made.confidence if made else None,
            history=prepared.history,
        )

    def _settle(self, prepared: Prepared, made: Generation | None) -> Settled:
        if made is None:
            return ABSTAINED
        if made.confidence is not None and made.confidence < self._abstain_below:
            return ABSTAINED
        stopped = prepared.request and prepared.request.stop and made.completion_tokens
        if (stopped or made.finish_reason == "cancelled") and not made.text.strip():
            return Settled(text="", abstained=False, citations=())
        settled = settle(made.text, prepared.hits, restore=self._restore)
        return before_stop(settled, prepared.stop)

    @cached_property
    def _frame(self) -> int:
        """Tokens of a prompt without question, passages and history."""
        return self._count_frame(())

    def _count_frame(self, history: Sequence[Message]) -> int:
        return self._count(prompts.answer_messages("", [], history=history))

    def _count(self, messages: Sequence[Message]) -> int:
        return self.served.generator.count_prompt_tokens(messages)

    def _count_text(self, text: str) -> int:
        count: Any = getattr(self.served.generator, "count_tokens", None)
        return int(count(text)) if count else int(len(text) / _CHARS_PER_TOKEN) + 1


def new_response_id() -> str:
    """A fresh id for an answer."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def require_documents(store: Any) -> None:
    """Refuse to answer from a store that was never filled.

    Raises:
        StoreError: If there are no documents.
    """
    if not store.exists():
        raise StoreError(
            f"The feature store at {store.uri} holds no documents, so there is nothing to answer "
            "from.",
            next_step="Fill it first: rag-fti ingest PATH.",
        )
