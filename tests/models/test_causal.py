"""Chat templates of other families are made to render our prompts, and then stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag_fti import prompts
from rag_fti.errors import IncompatibleArtifact, ModelNotFound
from rag_fti.models.causal import EMBEDDED, load_tokenizer, resolve_base_model
from rag_fti.models.local import load_local_generator
from tests.inference.tiny import CHAT_TEMPLATE, save_tiny, tiny_tokenizer

# As Gemma 2 and the first Mistral models have it.
ALTERNATING = (
    "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPPING = CHAT_TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Two?"},
]


def saved(directory: Path, template: str | dict[str, str]) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


def test_of_several_chat_templates_the_default_is_used(tmp_path: Path) -> None:
    base = save_tiny(tmp_path)
    saved(base, {"default": CHAT_TEMPLATE, "tool_use": CHAT_TEMPLATE + " "})
    assert load_tokenizer(base).chat_template == CHAT_TEMPLATE
    generator = load_local_generator(location=base, name="tiny", device="cpu")
    assert generator.chat_template == CHAT_TEMPLATE
    with pytest.raises(ModelNotFound, match="no default"):
        load_tokenizer(saved(tmp_path / "none", {"a": CHAT_TEMPLATE, "b": CHAT_TEMPLATE}))


def test_a_template_that_leaves_the_system_text_out_stays_as_it_is(tmp_path: Path) -> None:
    assert load_tokenizer(saved(tmp_path / "base", DROPPING)).chat_template == DROPPING
    embedded = resolve_base_model(EMBEDDED).location
    template = (embedded / "chat_template.jinja").read_text()
    assert load_tokenizer(embedded).chat_template.strip() == template.strip()


def test_a_template_without_a_system_role_gets_it_in_the_first_turn(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path / "base", ALTERNATING))
    asked = "<|user|>Be brief.\n\nOne?<|end|>"
    assert prompts.render(tokenizer, TALK[:2]) == f"{asked}<|assistant|>"
    talk = f"{asked}<|assistant|>Yes.<|end|><|user|>Two?<|end|><|assistant|>"
    assert prompts.render(tokenizer, TALK) == talk
    assert prompts.render(tokenizer, TALK[1:]) == talk.replace("Be brief.\n\n", "")
    alone = prompts.render(tokenizer, [TALK[0], *TALK[2:]])
    assert alone.startswith("<|user|>Be brief.<|end|><|assistant|>Yes.")
    # What training saves is loaded as it is.
    tokenizer.save_pretrained(tmp_path / "trained")
    assert load_tokenizer(tmp_path / "trained").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("template", ["{% for %}", "{{ 1 / none }}", "nothing said"])
def test_a_template_that_cannot_render_a_prompt_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(IncompatibleArtifact, match=r"chat template of .*base") as caught:
        load_tokenizer(saved(tmp_path / "base", template))
    assert "chat_template" in caught.value.next_step
