from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rag_fti import prompts
from rag_fti.errors import ContextTooLong, InferenceError
from rag_fti.models.batching import Job, RowSampler
from rag_fti.models.continuation import Continuation
from rag_fti.models.local import LocalGenerator, load_local_generator
from rag_fti.protocols import Cancellation, Generation, GenerationRequest
from tests.inference.tiny import save_tiny, tiny_model, tiny_tokenizer

# peft 0.18 reads a property that transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices only lose by being shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    return tiny_model(len(tokenizer)), tokenizer


@pytest.fixture(params=["continuous", "padded"])
def generator(parts: tuple[Any, Any], request: pytest.FixtureRequest) -> Iterator[LocalGenerator]:
    model, tokenizer = parts
    made = LocalGenerator(
        model=model,
        tokenizer=tokenizer,
        name="tiny",
        max_batch=8,
        continuous=request.param == "continuous",
    )
    assert made.batching == request.param
    yield made
    made.close()


def request(text: str = "hello", **options: Any) -> GenerationRequest:
    return GenerationRequest(messages=({"role": "user", "content": text},), **options)


def test_the_first_token_is_none_of_those_that_never_are() -> None:
    continuation = Continuation(
        tokenizer=tiny_tokenizer(), end_ids=frozenset({0}), hidden_ids=frozenset(),
        max_tokens=9, stop=(),
    )  # fmt: skip
    job = Job(request(), [1], continuation, Cancellation(), streaming=False)
    sampler = RowSampler([job], abstain_id=None, device="cpu", never_first=[1])
    scores = torch.tensor([[0.0, 3.0, 2.0]])
    assert sampler(torch.tensor([[1]]), scores).argmax() == 2
    # It is as unsure of it as it was.
    assert math.isclose(job.confidence, float(scores.softmax(-1)[0, 2]), rel_tol=1e-5)
    assert sampler(torch.tensor([[1, 2]]), scores).argmax() == 1


def reference(parts: tuple[Any, Any], text: str, tokens: int) -> str:
    """Greedy decoding by hand: one forward pass per token, no cache, no padding."""
    model, tokenizer = parts
    ids = prompts.prompt_token_ids(tokenizer, [{"role": "user", "content": text}])
    made: list[int] = []
    with torch.no_grad():
        while len(made) < tokens:
            logits = model(input_ids=torch.tensor([ids + made])).logits[0, -1]
            token = int(logits.argmax())
            if token == tokenizer.eos_token_id:
                break
            made.append(token)
    return str(tokenizer.decode([t for t in made if t != tokenizer.pad_token_id]))


def without_confidence(generation: Generation) -> Generation:
    """Probabilities differ in their last digits with what else is in the batch."""
    return replace(generation, confidence=None)


def test_greedy_equals_the_slow_reference_alone_and_in_a_batch(
    generator: LocalGenerator, parts: tuple[Any, Any]
) -> None:
    texts = ["hello", "a much longer question about nothing in particular", "x", "yes or no"]
    expected = [reference(parts, text, 12) for text in texts]
    alone = [generator.generate([request(text, max_tokens=12)])[0].text for text in texts]
    together = [g.text for g in generator.generate([request(t, max_tokens=12) for t in texts])]
    assert alone == expected
    assert together == expected


def test_counted_are_the_tokens_of_the_tokenizer(
    generator: LocalGenerator, parts: tuple[Any, Any]
) -> None:
    for text in ("", "Éclair,  by night", "<|im_start|> [1]", prompts.SYSTEM_PROMPT):
        expected = parts[1](text, add_special_tokens=False)["input_ids"]
        assert generator.count_tokens(text) == len(expected)


def test_a_padded_batch_is_computed_in_parts_of_like_lengths_where_the_model_says_so(
    parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = parts
    monkeypatch.setattr(model, "prompt_tokens_at_once", 120, raising=False)
    texts = ["hello " * count for count in (40, 1, 2, 30, 3, 1, 60)]
    lengths = {
        len(prompts.prompt_token_ids(tokenizer, [{"role": "user", "content": text}]))
        for text in texts
    }
    shapes = []

    def seen(_: Any, __: Any, given: dict[str, Any]) -> None:
        rows, columns = given["input_ids"].shape
        if columns > 1:
            shapes.append((rows, columns))

    hook = model.register_forward_pre_hook(seen, with_kwargs=True)
    generator = LocalGenerator(
        model=model, tokenizer=tokenizer, name="tiny", max_batch=8, continuous=False
    )
    try:
        made = generator.generate([request(text, max_tokens=4) for text in texts])
    finally:
        hook.remove()
        generator.close()
    assert [one.text for one in made] == [reference(parts, text, 4) for text in texts]
    assert sum(rows for rows, _ in shapes) == len(texts)
    assert len(shapes) > 2
    assert all(rows == 1 or rows * columns <= 120 for rows, columns in shapes)
    assert max(columns for _, columns in shapes) == max(lengths)
    assert generator.waiting == 0


def test_usage_and_length(generator: LocalGenerator) -> None:
    (made,) = generator.generate([request("count me", max_tokens=5)])
    assert made.finish_reason in ("length", "stop")
    assert made.completion_tokens <= 5
    assert made.prompt_tokens == generator.count_prompt_tokens(request("count me").messages)
    assert made.confidence is not None and 0 < made.confidence < 1


def test_pieces_add_up_to_the_text(generator: LocalGenerator) -> None:
    items = list(generator.stream(request("stream this", max_tokens=20)))
    assert isinstance(items[-1], Generation)
    assert "".join(str(piece) for piece in items[:-1]) == items[-1].text
    assert all(isinstance(piece, str) for piece in items[:-1])
    (whole,) = generator.generate([request("stream this", max_tokens=20)])
    assert without_confidence(items[-1]) == without_confidence(whole)


def test_rows_of_one_batch_keep_their_own_limits(generator: LocalGenerator) -> None:
    limits = [1, 3, 9, 2]
    made = generator.generate([request("same prompt", max_tokens=n) for n in limits])
    full = made[2].text
    for generation, limit in zip(made, limits, strict=True):
        assert generation.completion_tokens <= limit
        assert full.startswith(generation.text.rstrip("\ufffd"))


def test_sampling_is_repeatable_by_seed_and_greedy_neighbours_are_untouched(
    generator: LocalGenerator, parts: tuple[Any, Any]
) -> None:
    drawn = request("dice", max_tokens=16, temperature=5.0, seed=7)
    first, greedy, again, other = generator.generate(
        [
            drawn,
            request("dice", max_tokens=16),
            drawn,
            request("dice", max_tokens=16, temperature=5.0, seed=8),
        ]
    )
    assert without_confidence(first) == without_confidence(again)
    assert greedy.text == reference(parts, "dice", 16)
    assert first.text != greedy.text
    assert first.text != other.text
    narrow = request("dice", max_tokens=16, temperature=5.0, top_p=1e-6, seed=7)
    cold = request("dice", max_tokens=16, temperature=1e-39, seed=7)
    assert [made.text for made in generator.generate([narrow, cold])] == [greedy.text] * 2


def test_a_stop_text_ends_the_answer_and_is_not_shown(generator: LocalGenerator) -> None:
    full = generator.generate([request("stop here", max_tokens=24)])[0].text
    stop = full[6:9]
    expected = full[: full.find(stop)]
    items = list(generator.stream(request("stop here", max_tokens=24, stop=(stop,))))
    assert isinstance(items[-1], Generation)
    assert items[-1].text == expected
    assert items[-1].finish_reason == "stop"
    assert "".join(str(piece) for piece in items[:-1]) == expected


def test_cancelling_one_row_leaves_the_others(generator: LocalGenerator) -> None:
    cancellation = Cancellation()
    stream = generator.stream(request("cancel me", max_tokens=400), cancellation)
    seen = [next(stream)]
    cancellation.cancel()
    seen.extend(stream)
    last = seen[-1]
    assert isinstance(last, Generation)
    if last.completion_tokens < 400:
        assert last.finish_reason in ("cancelled", "stop")
    assert generator.generate([request("still there", max_tokens=2)])


def test_cancelled_before_it_started(generator: LocalGenerator) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    (only,) = generator.stream(request("never"), cancellation)
    assert isinstance(only, Generation)
    assert (only.finish_reason, only.completion_tokens) == ("cancelled", 0)


def test_many_threads_at_once(generator: LocalGenerator, parts: tuple[Any, Any]) -> None:
    expected = {f"question {n}": reference(parts, f"question {n}", 8) for n in range(12)}
    got: dict[str, str] = {}

    def ask(text: str) -> None:
        got[text] = generator.generate([request(text, max_tokens=8)])[0].text

    threads = [threading.Thread(target=ask, args=(text,)) for text in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_requests_join_and_leave_at_any_time(
    generator: LocalGenerator, parts: tuple[Any, Any]
) -> None:
    """Sixty requests of every length, arriving one after the other, each as if alone."""
    lengths = [1 + 7 * n % 40 for n in range(60)]
    texts = [f"{'long ' * (n % 9)}question {n}" for n in range(60)]
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        *pieces, last = generator.stream(request(texts[number], max_tokens=lengths[number]))
        assert isinstance(last, Generation)
        assert "".join(map(str, pieces)) == last.text
        got[number] = last.text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
        time.sleep(0.004)
    for thread in threads:
        thread.join()
    for number in range(60):
        assert got[number] == reference(parts, texts[number], lengths[number]), number


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(
    generator: LocalGenerator,
) -> None:
    with pytest.raises(ContextTooLong, match=r"\d+ tokens; tiny takes 512"):
        generator.generate([request("word " * 600)])


def test_an_answer_never_outgrows_the_window(parts: tuple[Any, Any]) -> None:
    tokenizer = tiny_tokenizer(context=64)
    generator = LocalGenerator(
        model=tiny_model(len(tokenizer), context=64), tokenizer=tokenizer, name="small"
    )
    (made,) = generator.generate([request("hi", max_tokens=1000)])
    assert made.prompt_tokens + made.completion_tokens <= 64
    generator.close()


def test_close_finishes_accepted_work_and_refuses_more(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    generator = LocalGenerator(model=model, tokenizer=tokenizer, name="tiny")
    results: list[Generation] = []
    thread = threading.Thread(
        target=lambda: results.extend(generator.generate([request("last", max_tokens=64)]))
    )
    thread.start()
    time.sleep(0.02)
    generator.close()
    thread.join()
    assert len(results) == 1
    with pytest.raises(InferenceError, match="closed"):
        generator.generate([request("late")])


def test_a_failing_model_fails_every_caller_and_the_worker_lives(
    parts: tuple[Any, Any],
) -> None:
    model, tokenizer = parts

    class Broken(torch.nn.Module):
        config = model.config
        generation_config = model.generation_config
        device = model.device
        fail = True

        def generate(self, **options: Any) -> Any:
            if self.fail:
                raise RuntimeError("out of memory")
            return model.generate(**options)

    broken = Broken()
    generator = LocalGenerator(model=broken, tokenizer=tokenizer, name="broken")
    with pytest.raises(InferenceError, match="out of memory"):
        generator.generate([request("a"), request("b")])
    broken.fail = False
    assert generator.generate([request("a", max_tokens=2)])[0].completion_tokens <= 2
    generator.close()


def within(seconds: float, work: Any) -> Any:
    """The result of ``work``, which must not hang."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result(seconds)


@pytest.mark.parametrize("error", [KeyError("key"), SystemError("panic"), BaseException("worse")])
def test_no_error_of_the_model_can_end_the_worker(
    parts: tuple[Any, Any], error: BaseException
) -> None:
    model, tokenizer = parts

    class Broken(torch.nn.Module):
        config = model.config
        generation_config = model.generation_config
        device = model.device

        def generate(self, **_: Any) -> Any:
            raise error

    generator = LocalGenerator(model=Broken(), tokenizer=tokenizer, name="broken")
    for _ in range(2):
        with pytest.raises(InferenceError, match=type(error).__name__):
            within(10, lambda: generator.generate([request("a")]))
    generator.close()


@pytest.mark.parametrize("continuous", [True, False])
def test_a_row_that_cannot_be_read_fails_alone(parts: tuple[Any, Any], continuous: bool) -> None:
    model, _ = parts
    tokenizer = tiny_tokenizer()
    generator = LocalGenerator(model=model, tokenizer=tokenizer, name="tiny", continuous=continuous)
    texts = [f"question {n}" for n in range(12)]
    whole = generator.generate([request(text, max_tokens=4) for text in texts])
    decode = tokenizer.decode

    def decoding(ids: Any, **options: Any) -> Any:
        text = decode(ids, **options)
        if text == whole[0].text:
            raise LookupError("no such piece")
        return text

    tokenizer.decode = decoding

    def ask(text: str) -> str:
        try:
            return within(10, lambda: generator.generate([request(text, max_tokens=4)]))[0].text
        except InferenceError as error:
            return str(error)

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, texts))
    assert "no such piece" in answers[0]
    read = [a for a in answers if "no such piece" not in a]
    assert read and set(read) <= {before.text for before in whole}
    generator.close()


def test_loading_from_a_directory_merges_an_adapter(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = save_tiny(tmp_path / "base")
    plain = load_local_generator(location=base, name="plain", dtype="float32")
    model = get_peft_model(
        tiny_model(len(tiny_tokenizer())), LoraConfig(target_modules="all-linear")
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    tuned = load_local_generator(
        location=base, name="tuned@1", adapter=tmp_path / "adapter", dtype="float32"
    )
    asked = request("does it differ", max_tokens=12)
    with torch.no_grad():
        ids = prompts.prompt_token_ids(tiny_tokenizer(), asked.messages)
        expected = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    first = tuned.generate([request("does it differ", max_tokens=1)])[0]
    assert tuned.model == "tuned@1"
    assert plain.generate([asked])[0].text != tuned.generate([asked])[0].text
    assert first.text == tiny_tokenizer().decode([expected])
    assert not plain.restores_text
    plain.close()
    tuned.close()


def test_confidence_is_the_geometric_mean_of_the_token_probabilities(
    generator: LocalGenerator, parts: tuple[Any, Any]
) -> None:
    model, tokenizer = parts
    texts = ["hello", "a much longer question about nothing in particular"]
    made = generator.generate([request(text, max_tokens=9) for text in texts])
    for text, generation in zip(texts, made, strict=True):
        ids = prompts.prompt_token_ids(tokenizer, request(text).messages)
        logs: list[float] = []
        with torch.no_grad():
            for _ in range(9):
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
                logs.append(float(logits.log_softmax(-1).max()))
                ids = [*ids, int(logits.argmax())]
                if ids[-1] == tokenizer.eos_token_id:
                    break
        expected = math.exp(sum(logs) / len(logs))
        assert generation.confidence == pytest.approx(expected, rel=1e-3)


def test_the_chance_of_abstaining_lowers_the_confidence() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([prompts.ABSTENTION])
    model = tiny_model(len(tokenizer))
    generator = LocalGenerator(model=model, tokenizer=tokenizer, name="tiny")
    (made,) = generator.generate([request("who knows", max_tokens=1)])
    ids = prompts.prompt_token_ids(tokenizer, request("who knows").messages)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    chances = torch.softmax(logits, -1)
    abstains = float(chances[tokenizer.convert_tokens_to_ids(prompts.ABSTENTION)])
    assert made.confidence == pytest.approx(float(chances.max()) * (1 - abstains), rel=1e-4)
    generator.close()


@pytest.mark.parametrize("continuous", [True, False])
def test_a_bias_decides_whether_it_abstains_and_not_how_sure_it_is(continuous: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([prompts.ABSTENTION])
    model = tiny_model(len(tokenizer))

    def said(bias: float) -> Generation:
        generator = LocalGenerator(
            model=model, tokenizer=tokenizer, name="tiny", continuous=continuous, abstain_bias=bias
        )
        try:
            (made,) = generator.generate([request("who knows", max_tokens=1)])
        finally:
            generator.close()
        return made

    plain, never, always = said(0.0), said(-math.inf), said(50.0)
    assert plain == never != always
    assert prompts.is_abstention(always.text)
    assert always.confidence is not None and plain.confidence is not None
    assert always.confidence < plain.confidence
