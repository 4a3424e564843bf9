"""A causal language model in this process, computing several requests at a time."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from rag_fti import prompts
from rag_fti.errors import ContextTooLong, InferenceError
from rag_fti.models.batching import Job, RowSampler, RowWatcher
from rag_fti.models.causal import load_causal_lm, load_tokenizer
from rag_fti.models.continuation import Continuation
from rag_fti.models.continuous import ContinuousBatch, left_padded, supports_joining
from rag_fti.models.control_tokens import control_pattern, defuse
from rag_fti.models.hardware import pick_device, pick_dtype
from rag_fti.models.threads import compute_with, machine_threads
from rag_fti.protocols import Cancellation, Generation, GenerationRequest, Message

logger = logging.getLogger(__name__)

_NEVER_FIRST = re.compile(r"[|#*,;)\]}?]+|##.+")
"""Signs of tables, headings and the end of something, and pieces from the middle of a word; but
``>= 3``, ``__init__`` and ``:wq`` are answers."""
_ROUND_TRIP_SAMPLE = "The Éclair, by  night: 1,250 m (Don't)."


class LocalGenerator:
    """Continues prompts with a transformers model.

    One worker thread owns the model. Where the model's cache allows it, requests join and leave
    a running batch between any two tokens; else the worker takes what waits, up to
    ``max_batch``, and computes it as one padded batch. Either way each row streams, samples,
    stops and is cancelled on its own, and is delivered when it is done.

    Args:
        model: A causal LM in evaluation mode.
        tokenizer: Its tokenizer, left-padded, with a chat template.
        name: What answers call it: ``name@version``, hub id or directory.
        max_batch: Most requests computed together.
        threads: Processor threads of the worker; 0 leaves the choice to torch.
        continuous: Let requests join and leave a running batch where the model supports it.
        abstain_bias: Added to the first logit of the token that is the whole abstention, where the
            tokenizer has one: below 0 the model abstains less often.
    """

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        name: str,
        max_batch: int = 16,
        threads: int = 0,
        continuous: bool = True,
        abstain_bias: float = 0.0,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        self._max_batch = max_batch
        self._threads = threads or machine_threads()
        self._device = str(model.device)
        self._end_ids = end_ids(model, tokenizer)
        self._pad_id = int(
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._end_ids)
        )
        self._hidden_ids = frozenset(
            int(token)
            for token in (tokenizer.pad_token_id, tokenizer.bos_token_id)
            if token is not None
        )
        self._abstain_id = single_token(tokenizer, prompts.ABSTENTION)
        self._abstain_bias = abstain_bias
        self._control = control_pattern(tokenizer)
        self._context_window = context_window(model, tokenizer)
        self._continuous = (
            ContinuousBatch(
                model,
                rows=max_batch,
                pad_id=self._pad_id,
                abstain_id=self._abstain_id,
                abstain_bias=abstain_bias,
                device=self._device,
            )
            if continuous and supports_joining(model, device=self._device)
            else None
        )
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._closed = False
        self._parked = 0
        self.running = 0
        """Requests being computed now."""
        self.restores_text = not _keeps_text(tokenizer)
        """Whether the tokenizer changes text (case, accents, spaces), so that an answer has to
        be put back into the words of its source."""
        self._never_first = _never_first(tokenizer) if self.restores_text else ()

    @property
    def batching(self) -> str:
        """``continuous`` or ``padded``."""
        return "padded" if self._continuous is None else "continuous"

    @property
    def model(self) -> str:
        """``name@version`` of a registry model, or the hub id or directory of a base model."""
        return self._name

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's Jinja template."""
        template = self._tokenizer.chat_template
        return None if template is None else str(template)

    @property
    def context_window(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._context_window

    @property
    def waiting(self) -> int:
        """Requests that no computed batch has taken yet."""
        return self._waiting.qsize() + self._parked

    def count_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered prompt, generation prompt included."""
        return len(self._prompt_ids(messages))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special tokens."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        # Packing counts several times for every question; this leaves out all but the tokens.
        (encoding,) = fast.encode_batch_fast([text], add_special_tokens=False)
        return len(encoding)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Continue every prompt; results in the order of the requests.

        Raises:
            ContextTooLong: If a prompt leaves no room for an answer.
            InferenceError: If the computation fails or the generator was closed.
        """
        jobs = [self._job(request, Cancellation(), streaming=False) for request in requests]
        for job in jobs:
            self._submit(job)
        return [self._result(job) for job in jobs]

    def stream(
        self, request: GenerationRequest, cancellation: Cancellation | None = None
    ) -> Iterator[str | Generation]:
        """Pieces of text as they come, then the finished :class:`Generation` as last item.

        Raises:
            ContextTooLong: If the prompt leaves no room for an answer.
            InferenceError: If the computation fails or the generator was closed.
        """
        job = self._job(request, cancellation or Cancellation(), streaming=True)
        self._submit(job)
        while True:
            item = job.outputs.get()
            if isinstance(item, BaseException):
                raise _failed(item) from item
            yield item
            if isinstance(item, Generation):
                return

    def close(self) -> None:
        """Finish what was accepted, then stop the worker; later requests are refused."""
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is not None:
            self._waiting.put(None)
            worker.join()

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return prompts.prompt_token_ids(self._tokenizer, defuse(messages, self._control))

    def _job(
        self, request: GenerationRequest, cancellation: Cancellation, *, streaming: bool
    ) -> Job:
        prompt = self._prompt_ids(request.messages)
        room = self._context_window - len(prompt)
        if room < 1:
            raise ContextTooLong(
                f"The prompt has {len(prompt)} tokens; {self._name} takes {self._context_window} "
                "with the answer.",
                next_step="Ask a shorter question, send less history or lower "
                "retrieval.context_tokens.",
            )
        continuation = Continuation(
            tokenizer=self._tokenizer,
            end_ids=self._end_ids,
            hidden_ids=self._hidden_ids - self._end_ids,
            max_tokens=min(request.max_tokens, room),
            stop=request.stop,
        )
        return Job(request, prompt, continuation, cancellation, streaming)

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise InferenceError(f"{self._name} was closed.", next_step="Send it again.")
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name=f"generate {self._name}", daemon=True
                )
                self._worker.start()
            self._waiting.put(job)

    def _result(self, job: Job) -> Generation:
        while True:
            item = job.outputs.get()
            if isinstance(item, Generation):
                return item
            if isinstance(item, BaseException):
                raise _failed(item) from item

    def _work(self) -> None:
        compute_with(self._threads)
        if self._continuous is None:
            self._work_in_batches()
        else:
            self._work_continuously(self._continuous)

    def _work_in_batches(self) -> None:
        closing = False
        while not closing:
            jobs, closing = self._take_waiting(self._max_batch, wait=True)
            self._parked = len(jobs)
            for part in self._alike(jobs):
                self._parked -= len(part)
                self._guard(part, lambda: self._generate(part))  # noqa: B023  (called at once)

    def _alike(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """Parts of a batch that are computed one after the other.

        All of it, unless the model says how many prompt tokens, padding included, are best
        computed together: then prompts of like lengths.
        """
        most = getattr(self._model, "prompt_tokens_at_once", None)
        if most is None or self._device != "cpu":
            if jobs:
                yield jobs
            return
        part: list[Job] = []
        for job in sorted(jobs, key=lambda job: len(job.prompt)):
            if part and (len(part) + 1) * len(job.prompt) > most:
                yield part
                part = []
            part.append(job)
        if part:
            yield part

    def _work_continuously(self, batch: ContinuousBatch) -> None:
        closing = False
        while not closing or batch.jobs:
            room = 0 if closing else self._max_batch - len(batch.jobs)
            jobs, ended = self._take_waiting(room, wait=not batch.jobs)
            closing = closing or ended

            def advance() -> None:
                if jobs:  # noqa: B023  (called at once)
                    batch.admit(jobs)  # noqa: B023
                if batch.jobs:
                    batch.step()

            if not self._guard([*batch.jobs, *jobs], advance):
                batch.clear()

    def _take_waiting(self, most: int, *, wait: bool) -> tuple[list[Job], bool]:
        """Requests that wait, those cancelled meanwhile left out, and whether to close."""
        jobs: list[Job] = []
        while len(jobs) < most:
            try:
                job = self._waiting.get(block=wait and not jobs)
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            job.take(None)
            if not job.done:
                jobs.append(job)
        return jobs, False

    def _guard(self, jobs: list[Job], compute: Callable[[], None]) -> bool:
        """Compute; where that fails, every caller gets the error and the worker lives on."""
        self.running = len(jobs)
        try:
            compute()
        except BaseException as error:  # handed to the callers, whatever it is: they wait for it
            logger.exception("generation failed")
            for job in jobs:
                job.fail(error)
            return False
        finally:
            self.running = 0
        return True

    @torch.inference_mode()
    def _generate(self, jobs: list[Job]) -> None:
        ids, mask = left_padded([job.prompt for job in jobs], pad_id=self._pad_id)
        config = GenerationConfig(
            max_new_tokens=max(job.continuation.max_tokens for job in jobs) + 1,
            do_sample=False,
            eos_token_id=sorted(self._end_ids),
            pad_token_id=self._pad_id,
            use_cache=True,
        )
        self._model.generate(
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            generation_config=config,
            logits_processor=LogitsProcessorList(
                [
                    RowSampler(
                        jobs,
                        abstain_id=self._abstain_id,
                        abstain_bias=self._abstain_bias,
                        device=self._device,
                        never_first=self._never_first,
                    )
                ]
            ),
            stopping_criteria=StoppingCriteriaList([RowWatcher(jobs)]),
        )
        for job in jobs:
            if not job.done:
                job.continuation.finish_reason = "length"
                job.finish()


def load_local_generator(
    *,
    location: Path,
    name: str,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    max_batch: int = 16,
    threads: int = 0,
    abstain_bias: float = 0.0,
) -> LocalGenerator:
    """A generator from a base model directory and, optionally, a LoRA adapter.

    The adapter is merged into the weights: a third faster than computing it beside them.

    Args:
        location: Base model directory.
        name: What answers call the model.
        adapter: Directory with a PEFT adapter and, where it has one, its tokenizer.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        max_batch: Most requests computed together.
        threads: CPU threads of the model; 0 leaves the choice to torch.
        abstain_bias: See :class:`LocalGenerator`.

    Raises:
        ModelNotFound: If model or tokenizer cannot be read.
        IncompatibleArtifact: If the adapter does not fit.
    """
    picked = pick_device(device)
    tokenizer = load_tokenizer(_tokenizer_location(location, adapter))
    with warnings.catch_warnings():
        # peft reads a property that transformers has renamed; nothing a reader could do about.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        model = load_causal_lm(
            location, device=picked, dtype=pick_dtype(dtype, picked), adapter=adapter
        )
        if adapter is not None:
            model = model.merge_and_unload().eval()
    return LocalGenerator(
        model=model,
        tokenizer=tokenizer,
        name=name,
        max_batch=max_batch,
        threads=threads,
        abstain_bias=abstain_bias,
    )


def _tokenizer_location(location: Path, adapter: Path | None) -> Path:
    if adapter is not None and (adapter / "tokenizer_config.json").is_file():
        return adapter
    return location


def _failed(error: BaseException) -> InferenceError:
    return InferenceError(
        f"The model failed while answering: {type(error).__name__}: {error}",
        next_step="Lower generator.max_batch if memory ran out; the log has the details.",
    )


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model's own and the tokenizer's."""
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(int(token) for token in value)
    if not found:
        raise InferenceError("The model has no end token, so answers would never end.")
    return frozenset(found)


def single_token(tokenizer: Any, text: str) -> int | None:
    """The token that is the whole text, or None where it takes several."""
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(encoded[0]) if len(encoded) == 1 else None


def _never_first(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that no quoted answer begins with: table and heading marks, ends of words."""
    return tuple(
        sorted(
            number
            for token, number in tokenizer.get_vocab().items()
            if _NEVER_FIRST.fullmatch(token)
        )
    )


def context_window(model: Any, tokenizer: Any) -> int:
    """Most tokens of prompt and answer together."""
    sizes = [getattr(model.config, "max_position_embeddings", None)]
    # Tokenizers without a limit say 1e30.
    with contextlib.suppress(TypeError, OverflowError):
        sizes.append(int(tokenizer.model_max_length))
    known = [int(size) for size in sizes if size]
    return min(known) if known else 4096


def _keeps_text(tokenizer: Any) -> bool:
    encoded = tokenizer(_ROUND_TRIP_SAMPLE, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(encoded)).strip() == _ROUND_TRIP_SAMPLE
