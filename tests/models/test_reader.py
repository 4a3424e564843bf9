"""The reader's class, on a tiny instance with random weights and the real tokenizer."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.embedded_model.base import build_config, build_tokenizer
from rag_fti import prompts
from rag_fti.models.reader import ReaderForCausalLM, register
from rag_fti.models.reader_config import ReaderConfig
from rag_fti.models.reader_head import next_token_logits, target_losses
from rag_fti.models.reader_structure import prompt_mask, rank_log_odds, read_structure

PASSAGES = (
    prompts.Passage("France won the cup in 1998. Brazil lost the final.", title="Cup"),
    prompts.Passage("The tower was built in Paris by an engineer.", heading="Tower"),
    prompts.Passage("Rain is water that falls."),
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def config(tokenizer: Any) -> ReaderConfig:
    config = build_config(tokenizer)
    config.hidden_size, config.intermediate_size = 32, 64
    config.num_hidden_layers, config.num_attention_heads = 2, 4
    # Wide weights and an open vocabulary, so that random outputs differ from one another.
    config.initializer_range, config.vocabulary_bias, config.copy_bias = 0.4, -2.0, 1.0
    config.rank_exponent = 1.5
    return config


@pytest.fixture
def model(config: ReaderConfig) -> ReaderForCausalLM:
    register()
    torch.manual_seed(3)
    return ReaderForCausalLM(config).eval()


def prompt(tokenizer: Any, question: str, passages: Sequence[prompts.Passage]) -> list[int]:
    return prompts.prompt_token_ids(tokenizer, prompts.answer_messages(question, passages))


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[list[int]]:
    return [
        prompt(tokenizer, "Who won the cup?", PASSAGES[:1]),
        prompt(tokenizer, "Where was the tall tower built, and by whom?", PASSAGES),
        prompt(tokenizer, "Why?", []),
        prompt(tokenizer, "What falls?", PASSAGES[1:]),
    ]


def pad(tokenizer: Any, rows: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    return dict(tokenizer.pad({"input_ids": rows}, padding_side=side, return_tensors="pt"))


def generate(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> list[list[int]]:
    length = batch["input_ids"].shape[1]
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False} | options
    return model.generate(**batch, **options)[:, length:].tolist()


def test_cache_and_no_cache_generate_the_same(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]]
) -> None:
    batch = pad(tokenizer, rows)
    cached = generate(model, batch, use_cache=True)
    assert cached == generate(model, batch, use_cache=False)
    assert len({tuple(row) for row in cached}) == len(rows)


def test_cached_logits_equal_those_of_one_pass(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]]
) -> None:
    completion = tokenizer("won the cup in 1998 [1]", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        whole = model(torch.tensor([[*rows[0], *completion]]), use_cache=False).logits[0]
        first = model(torch.tensor([rows[0]]), use_cache=True)
        cache = first["cache"] if "cache" in first else first["past_key_values"]
        # One token, then the rest at once.
        second = model(torch.tensor([completion[:1]]), cache=cache)
        third = model(torch.tensor([completion[1:]]), cache=cache)
    stepwise = torch.cat([first.logits[0, -1:], second.logits[0], third.logits[0]])
    torch.testing.assert_close(whole[len(rows[0]) - 1 :], stepwise, atol=1e-4, rtol=1e-4)
    assert not whole[: len(rows[0]) - 1].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]], side: str
) -> None:
    with torch.inference_mode():
        together = model(**pad(tokenizer, rows, side)).logits
        for index, row in enumerate(rows):
            alone = model(torch.tensor([row])).logits[0, -1]
            place = -1 if side == "left" else len(row) - 1
            torch.testing.assert_close(together[index, place], alone, atol=1e-4, rtol=1e-4)
    if side == "left":
        batch = pad(tokenizer, rows)
        alone_ids = [generate(model, {"input_ids": torch.tensor([row])})[0] for row in rows]
        assert generate(model, batch) == alone_ids


def test_passages_do_not_see_one_another(model: ReaderForCausalLM, tokenizer: Any) -> None:
    def states(passages: Sequence[prompts.Passage]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([prompt(tokenizer, "Who won?", passages)])
        with torch.inference_mode():
            output = model(ids, use_cache=True)
        cache = output["cache"] if "cache" in output else output["past_key_values"]
        state = cache.layers[-1].state
        return state.hidden[0], state.block[0]

    one, one_block = states(PASSAGES[:1])
    three, three_block = states(PASSAGES)
    for block in (0, 1):
        left, right = one[one_block == block], three[three_block == block]
        # The answer token stands in block 0, last, and sees everything.
        size = len(left) - (block == 0)
        torch.testing.assert_close(left[:size], right[:size], atol=1e-5, rtol=1e-5)


def test_structure_of_a_prompt(config: ReaderConfig, tokenizer: Any) -> None:
    ids = [0, 0, *prompt(tokenizer, "Who won?", PASSAGES[:2]), *tokenizer.encode("x")[1:-1]]
    tensor = torch.tensor([ids])
    valid = torch.tensor([[False] * 2 + [True] * (len(ids) - 2)])
    found = read_structure(tensor, valid, config)
    words = tokenizer.convert_ids_to_tokens(ids)
    first, second = (i for i, word in enumerate(words) if word == "<passage>")
    cue = words.index("<|answer|>")
    assert found.answer_start.tolist() == [cue]
    assert found.question_length.tolist() == [4]
    assert found.block[0, first:second].unique().tolist() == [1]
    assert found.block[0, second:cue].unique().tolist() == [2]
    assert found.block[0, :first].unique().tolist() == [0]
    assert found.positions[0, first].item() == found.positions[0, second].item() == 4
    assert found.positions[0, cue].item() == 4
    assert [words[i] for i in found.marker[0].nonzero()[:, 0]] == ["[1]", "[2]"]
    copyable = [words[i] for i in found.copyable[0].nonzero()[:, 0]]
    assert not {"[CLS]", "[PAD]", "<passage>", "</passage>", "<|answer|>"} & set(copyable)
    mask = prompt_mask(found)[0, 0]
    assert mask[cue, 2:cue].all() and not mask[cue, cue + 1]
    assert mask[first, first + 1] and not mask[first, second] and not mask[2, first]


def test_a_passage_is_likelier_the_higher_it_was_ranked() -> None:
    block = torch.tensor([[0, 1, 1, 2, 3, 0], [0, 0, 0, 1, 0, 0]])
    odds = rank_log_odds(block, 1.0)
    # Three passages with weights 1, 1/2, 1/3 of together 11/6, times three passages.
    first, second, third = (torch.tensor(w * 6 / 11 * 3).log() for w in (1.0, 1 / 2, 1 / 3))
    torch.testing.assert_close(odds[0, 1:5], torch.stack([first, first, second, third]))
    assert odds[:, 0].tolist() == odds[:, 5].tolist() == [0.0, 0.0]
    assert odds[1].tolist() == [0.0] * 6  # of one passage there is nothing to expect
    assert not rank_log_odds(block, 0.0).any()
    assert rank_log_odds(torch.zeros(1, 3, dtype=torch.int64), 1.0).tolist() == [[0.0] * 3]


def test_rank_decides_where_an_answer_starts_and_nothing_after_it(
    config: ReaderConfig, tokenizer: Any
) -> None:
    twins = [prompts.Passage("The tower was built in Paris by an engineer.")] * 3
    ids = prompt(tokenizer, "Where?", twins)
    completion = tokenizer("the tower was", add_special_tokens=False)["input_ids"]
    register()
    states = []
    for exponent in (0.0, 3.0):
        config = copy.deepcopy(config)
        config.rank_exponent = exponent
        torch.manual_seed(3)
        model = ReaderForCausalLM(config).eval()
        with torch.inference_mode():
            output = model(torch.tensor([ids]), use_cache=True)
            cache = output["cache"] if "cache" in output else output["past_key_values"]
            start = cache.layers[-1].state.pointer[0]
            model(torch.tensor([completion]), cache=cache)
        state = cache.layers[-1].state
        assert not state.start.any()
        states.append((start, state))
    (plain, _), (ranked, state) = states
    expected = rank_log_odds(state.block, 3.0)[0]
    torch.testing.assert_close((ranked - plain)[state.copyable[0]], expected[state.copyable[0]])


def test_without_an_answer_token_it_is_a_causal_model(
    model: ReaderForCausalLM, tokenizer: Any
) -> None:
    ids = tokenizer("one two three four five six", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        short, long = (model(torch.tensor([ids[:n]])).logits for n in (4, 6))
    torch.testing.assert_close(short[0], long[0, :4], atol=1e-4, rtol=1e-4)


def test_loss_is_the_likelihood_of_the_logits(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]]
) -> None:
    completions = [
        prompts.completion_token_ids(tokenizer, text, end_token_id=tokenizer.eos_token_id)
        for text in ("France [1]", "in Paris by an engineer [2]", prompts.ABSTENTION, "Rain [2]")
    ]
    batch = pad(tokenizer, [a + b for a, b in zip(rows, completions, strict=True)], side="right")
    labels = torch.full_like(batch["input_ids"], -100)
    expected = []
    with torch.inference_mode():
        logits = model(**batch).logits.log_softmax(dim=-1)
        for index, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            for step, token in enumerate(completion):
                labels[index, len(row) + step] = token
                expected.append(-logits[index, len(row) + step - 1, token])
        loss = model(**batch, labels=labels).loss
        summed = model(**batch, labels=labels, num_items_in_batch=2).loss
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(summed, torch.stack(expected).sum() / 2, atol=1e-3, rtol=1e-4)


def test_a_known_copy_is_scored_by_its_column() -> None:
    words = torch.tensor([[0.0, 1.0, 2.0]])
    pointers = torch.tensor([[0.5, -1e4, 1.5, 0.5]])
    ids = torch.tensor([[1, 1, 2, 1]])
    total = torch.cat([words, pointers], dim=1).logsumexp(dim=1)
    mixture = next_token_logits(words[:, None], pointers[:, None], ids)[0, 0]
    for token, parts in ((0, [0.0]), (1, [1.0, 0.5, 0.5]), (2, [2.0, 1.5])):
        expected = torch.tensor(parts).logsumexp(dim=0)
        torch.testing.assert_close(mixture[token], expected)
        loss = target_losses(words, pointers, ids, torch.tensor([token]), torch.tensor([-1]))
        torch.testing.assert_close(loss, total - expected)
    known = target_losses(words, pointers, ids, torch.tensor([1]), torch.tensor([3]))
    torch.testing.assert_close(known, total - 0.5)


def test_copying_follows_the_span(model: ReaderForCausalLM, tokenizer: Any) -> None:
    with torch.no_grad():
        model.head.copy_bias.fill_(60.0)
    ids = prompt(tokenizer, "Who won?", PASSAGES[:1])
    start = tokenizer("the cup in", add_special_tokens=False)["input_ids"]
    found = generate(model, {"input_ids": torch.tensor([[*ids, *start[:2]]])}, max_new_tokens=9)
    assert tokenizer.decode(found[0][:5]) == "in 1998. brazil lost"


def test_sampling_beams_and_several_sequences_run(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]]
) -> None:
    batch = pad(tokenizer, rows)
    torch.manual_seed(0)
    sampled = generate(model, batch, do_sample=True, num_return_sequences=3)
    assert len(sampled) == 12
    beams = generate(model, batch, num_beams=3)
    assert beams == generate(model, batch, num_beams=3, use_cache=False)


# peft 0.21 reads an attribute that transformers 5.24 renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_lora_on_all_linear_layers_learns(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]]
) -> None:
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, target_modules="all-linear")
    torch.manual_seed(0)
    tuned = get_peft_model(model, lora).train()
    replies = ["France [1]", "Paris [2]", prompts.ABSTENTION, "Rain [2]"]
    completions = [
        prompts.completion_token_ids(tokenizer, text, end_token_id=tokenizer.eos_token_id)
        for text in replies
    ]
    batch = pad(tokenizer, [a + b for a, b in zip(rows, completions, strict=True)], side="right")
    labels = torch.full_like(batch["input_ids"], -100)
    for index, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        labels[index, len(row) : len(row) + len(completion)] = torch.tensor(completion)
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=2e-2)
    losses = []
    for _ in range(25):
        loss = tuned(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert any("head.query" in name for name in trained)


def test_saved_model_loads_through_auto_classes(
    model: ReaderForCausalLM, tokenizer: Any, rows: list[list[int]], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, ReaderForCausalLM)
    batch = pad(AutoTokenizer.from_pretrained(tmp_path), rows)
    assert generate(loaded, batch) == generate(model, batch)


def test_template_renders_question_and_passages_alone(tokenizer: Any) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    messages = prompts.answer_messages("Who won?", PASSAGES[:1], history=history)
    text = prompts.render(tokenizer, messages)
    assert text == f"[CLS]{messages[-1]['content']}<|answer|>"
    reply = {"role": "assistant", "content": "France [1]"}
    whole = tokenizer.apply_chat_template([*messages, reply], tokenize=False)
    assert whole == f"{text}France [1]<|end|>"
    parts = prompts.prompt_token_ids(tokenizer, messages) + prompts.completion_token_ids(
        tokenizer, reply["content"], end_token_id=tokenizer.eos_token_id
    )
    assert tokenizer(whole, add_special_tokens=False)["input_ids"] == parts


def test_abstention_and_markers_are_single_tokens(tokenizer: Any) -> None:
    ids = tokenizer(prompts.ABSTENTION, add_special_tokens=False)["input_ids"]
    assert len(ids) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompts.ABSTENTION
    ids = tokenizer("they do not [9]", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "[9]"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "they do not [9]"


def test_a_foreign_cache_is_refused(model: ReaderForCausalLM, rows: list[list[int]]) -> None:
    output = model(torch.tensor([rows[0]]), use_cache=True)
    cache = output["cache"] if "cache" in output else output["past_key_values"]
    cache.layers.pop()
    with pytest.raises(ValueError, match="copy layer"):
        model(torch.tensor([[5]]), cache=cache)
