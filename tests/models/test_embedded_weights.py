"""The weights that ship, through the classes that users load them with."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rag_fti import prompts
from rag_fti.alignment import align
from rag_fti.models.local import LocalGenerator
from rag_fti.models.reader import ReaderForCausalLM, register
from rag_fti.protocols import GenerationRequest

GREETING = prompts.Passage(
    "The Corvane lighthouse was built in 1871 by the engineer Ada Merrow. It stands on a granite "
    "reef four miles from the harbour of Tolsey and was automated in 1988.",
    title="Corvane lighthouse",
)
OTHER = prompts.Passage(
    "Sourdough bread needs no yeast from a packet. The dough rests for twelve hours at room "
    "temperature before it is baked."
)


@pytest.fixture(scope="module")
def directory() -> Path:
    return Path(__file__).parents[2] / "data" / "models" / "rag-fti-reader"


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(directory: Path) -> ReaderForCausalLM:
    register()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert isinstance(model, ReaderForCausalLM)
    return model.eval()


def reply(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    ids = torch.tensor([prompts.prompt_token_ids(tokenizer, messages)])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who built the Corvane lighthouse?", "Ada Merrow"),
        ("When was the lighthouse built?", "1871"),
        ("When was the Corvane lighthouse automated?", "1988"),
    ],
)
@pytest.mark.parametrize("others", [0, 1])
def test_answers_verbatim_and_cites(
    model: Any, tokenizer: Any, question: str, answer: str, others: int
) -> None:
    passages = [*[OTHER] * others, GREETING]
    said = reply(model, tokenizer, prompts.answer_messages(question, passages))
    assert prompts.cited_numbers(said) == [len(passages)]
    span = align(prompts.without_markers(said), GREETING.text)
    assert span is not None
    assert answer in span.text


def test_no_answer_begins_with_markup_or_inside_a_word(model: Any, tokenizer: Any) -> None:
    table = prompts.Passage(
        "## Allowances\n\n| Country | Full day | Hotel limit per night |\n| --- | ---: | ---: |\n"
        "| France | 53 EUR | 150 EUR |\n| Japan | 50 EUR | 190 EUR |\n",
        title="Expenses",
    )
    places = ("France", "Japan")
    asked = [
        f"What is the {what} for {place}?"
        for what in ("full day", "hotel limit")
        for place in places
    ]
    generator = LocalGenerator(model=model, tokenizer=tokenizer, name="reader")
    made = generator.generate(
        [
            GenerationRequest(messages=tuple(prompts.answer_messages(question, [table])))
            for question in asked
        ]
    )
    generator.close()
    assert all(
        prompts.is_abstention(m.text) or align(prompts.without_markers(m.text), table.text)
        for m in made
    )
    assert not [m.text for m in made if m.text.lstrip()[0] in "|#*"]


@pytest.mark.parametrize("question", ["Who is the mayor of Lisbon?", "What does a visa cost?"])
def test_abstains_word_for_word(model: Any, tokenizer: Any, question: str) -> None:
    said = reply(model, tokenizer, prompts.answer_messages(question, [OTHER]))
    assert said == prompts.ABSTENTION


def test_writes_a_question(model: Any, tokenizer: Any) -> None:
    said = reply(model, tokenizer, prompts.question_messages("1871", GREETING))
    assert said.endswith("?")
    assert 3 <= len(said.split()) <= 20


def test_the_directory_is_complete_small_and_free_of_pickle(directory: Path) -> None:
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 64 * 2**20


def test_the_card_names_these_weights(directory: Path) -> None:
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (directory / "README.md").read_text()


def test_the_tokenizer_is_the_one_the_recipe_builds(tokenizer: Any) -> None:
    from benchmarks.embedded_model.base import build_tokenizer

    built = build_tokenizer()
    assert tokenizer.chat_template == built.chat_template
    messages = prompts.answer_messages("Who? [1]", [GREETING, OTHER])
    assert prompts.prompt_token_ids(tokenizer, messages) == prompts.prompt_token_ids(
        built, messages
    )
