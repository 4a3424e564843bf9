"""What happens between two steps of a batched ``generate()``: sampling, streaming, stopping."""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from rag_fti.models.continuation import Continuation
from rag_fti.protocols import Cancellation, Generation, GenerationRequest


@dataclass
class Job:
    """One request on its way through a generator."""

    request: GenerationRequest
    prompt: list[int]
    """Token ids."""
    continuation: Continuation
    cancellation: Cancellation
    streaming: bool
    outputs: queue.SimpleQueue[str | Generation | BaseException] = field(
        default_factory=queue.SimpleQueue
    )
    abstain_probability: float = 0.0
    """Of the abstention token as first token; 0 where the model has no such token."""
    log_probability: float = 0.0
    """Of the tokens generated so far, the end token among them."""
    scored: int = 0
    """How many those are."""
    cancelled: bool = False
    delivered: bool = False
    """Whether the reader has got its last item."""

    @property
    def done(self) -> bool:
        """Whether the row needs no further token."""
        return self.cancelled or bool(self.continuation.finish_reason)

    def take(self, token: int | None) -> None:
        """Take one generated token (None before the first), pass on its text, deliver when done.

        What goes wrong with one row's text is delivered to its reader; the batch goes on.
        """
        try:
            if self.cancellation.cancelled:
                self.cancelled = True
            elif token is not None:
                piece = self.continuation.add(token)
                if piece and self.streaming:
                    self.outputs.put(piece)
            if self.done:
                self.finish()
        except Exception as error:  # handed to the reader, whatever it is
            self.fail(error)

    @property
    def confidence(self) -> float:
        """See :attr:`rag_fti.protocols.Generation.confidence`."""
        mean = self.log_probability / max(1, self.scored)
        return math.exp(min(0.0, mean)) * (1.0 - self.abstain_probability)

    def finish(self) -> None:
        """Deliver the finished generation."""
        reason = self.continuation.finish_reason or ("cancelled" if self.cancelled else "length")
        made = Generation(
            text=self.continuation.text(),
            prompt_tokens=len(self.prompt),
            completion_tokens=self.continuation.tokens,
            finish_reason=reason,
            confidence=self.confidence,
        )
        self._deliver(made)

    def fail(self, error: BaseException) -> None:
        """Deliver an error, unless the generation was delivered before it."""
        self.cancelled = True
        if not self.delivered:
            self._deliver(error)

    def _deliver(self, last: Generation | BaseException) -> None:
        self.delivered = True
        self.outputs.put(last)


class RowSampler(LogitsProcessor):  # type: ignore[misc]
    """Samples each row by its own temperature, top-p and seed.

    ``generate()`` itself runs greedily; a sampled row's choice is made here and left as the only
    finite logit. Rows of one batch can so differ in every parameter.

    Args:
        jobs: One per row.
        abstain_id: Token whose first-step probability lowers the confidence, or None.
        abstain_bias: Added to that token's first logit for the choice, and to nothing else.
        never_first: Tokens that no answer begins with. What the model gave them stays in the
            confidence: an answer it was kept from beginning wrongly is one it is less sure of.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        abstain_id: int | None,
        device: str,
        abstain_bias: float = 0.0,
        never_first: Sequence[int] = (),
    ) -> None:
        self._jobs = jobs
        self._abstain_id = abstain_id
        self._abstain_bias = abstain_bias
        self._never_first = torch.tensor(list(never_first), dtype=torch.int64, device=device)
        self._first = True
        self._random: dict[int, torch.Generator] = {}
        for row, job in enumerate(jobs):
            if job.request.temperature > 0:
                self._random[row] = new_random(job.request, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores float ``(rows, vocabulary)`` with sampled rows reduced to one choice."""
        if self._first and self._abstain_id is not None:
            shares = torch.softmax(scores.float(), dim=-1)[:, self._abstain_id].tolist()
            for job, share in zip(self._jobs, shares, strict=True):
                job.abstain_probability = float(share)
        allowed = scores
        if self._first and len(self._never_first):
            allowed = scores.index_fill(1, self._never_first, -torch.inf)
        if self._first and self._abstain_id is not None and self._abstain_bias:
            allowed = allowed.clone()
            allowed[:, self._abstain_id] += self._abstain_bias
        self._first = False
        choices = allowed.argmax(dim=-1)
        for row, random in self._random.items():
            if not self._jobs[row].done:
                choices[row] = sample(allowed[row], self._jobs[row].request, random)
        record(self._jobs, scores, choices)
        if not self._random:
            return allowed
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter(1, choices[:, None], 0.0)


def record(jobs: Sequence[Job], logits: Tensor, choices: Tensor) -> None:
    """Add the log probability of each row's next token to its job.

    Args:
        jobs: One per row; those that are done are left alone.
        logits: float ``(rows, vocabulary)``.
        choices: int64 ``(rows,)``.
    """
    logits = logits.float()
    chosen = logits.gather(1, choices[:, None])[:, 0] - logits.logsumexp(dim=-1)
    for job, value in zip(jobs, chosen.tolist(), strict=True):
        if not job.done:
            job.log_probability += value
            job.scored += 1


def new_random(request: GenerationRequest, device: str) -> torch.Generator:
    """The source of randomness of one request."""
    random = torch.Generator(device=device)
    if request.seed is None:
        random.seed()
    else:
        random.manual_seed(request.seed % 2**63)
    return random


def sample(logits: Tensor, request: GenerationRequest, random: torch.Generator) -> int:
    """One token drawn by temperature and nucleus (Holtzman et al. 2020).

    Args:
        logits: float ``(vocabulary,)``.
        request: Its ``temperature`` (above 0) and ``top_p`` are used.
        random: Source of randomness.
    """
    logits = logits.float()
    # Beside the greatest, and no smaller than float32 knows: a tiny temperature gives no NaN.
    scaled = (logits - logits.max()) / max(request.temperature, 1e-30)
    probabilities = torch.softmax(scaled, dim=-1)
    if request.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        # The token that crosses the threshold still belongs to the nucleus.
        outside = ordered.cumsum(dim=-1) - ordered >= request.top_p
        outside[0] = False
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, ordered.masked_fill(outside, 0.0)
        )
    return int(torch.multinomial(probabilities, 1, generator=random))


class RowWatcher(StoppingCriteria):  # type: ignore[misc]
    """Streams each row's newest token and tells ``generate()`` which rows are done.

    Args:
        jobs: One per row.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Bool ``(rows,)``: which rows need no further token."""
        newest = input_ids[:, -1].tolist()
        for job, token in zip(self._jobs, newest, strict=True):
            if not job.done:
                # A finished row is delivered at once, not when the batch is.
                job.take(int(token))
        return torch.tensor([job.done for job in self._jobs], device=input_ids.device)
