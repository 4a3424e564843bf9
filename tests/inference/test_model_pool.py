from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rag_fti.config import Settings, load_settings
from rag_fti.errors import IncompatibleArtifact, ModelNotFound, RegistryError
from rag_fti.feature_store import FeatureStore
from rag_fti.inference import ServedModel, open_model
from rag_fti.inference.model_pool import DEFAULT, ModelPool
from rag_fti.inference.models import resolve_reference
from rag_fti.registry import Registry
from rag_fti.retrieval import build_retriever
from tests.inference.corpus import CHUNKER_DIGEST, FirstSentence, HashEmbedder
from tests.inference.tiny import save_tiny

QUESTION = "Who keeps the cellar key?"


class Factory:
    """Opens stand-in models and remembers them."""

    def __init__(self) -> None:
        self.opened: list[FirstSentence] = []
        self.broken: set[str] = set()
        self.manifests: dict[str, dict[str, Any]] = {}

    def __call__(self, settings: Settings, reference: str) -> ServedModel:
        if reference in self.broken:
            raise RegistryError(f"The files of {reference} do not match its manifest.")
        made = FirstSentence(reference or "base model")
        self.opened.append(made)
        return ServedModel(made, self.manifests.get(reference, {}))


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry.open(settings.storage.registry_uri)


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Callable[..., str]:
    def made(name: str = "assistant", *, alias: str = "", **manifest: Any) -> str:
        files = tmp_path / "files"
        files.mkdir(exist_ok=True)
        (files / "weights.safetensors").write_bytes(b"weights")
        version = registry.publish(name, files, manifest)
        if alias:
            registry.set_alias(name, alias, version.version, who="test", why="test")
        return version.ref

    return made


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def pool(settings: Settings, store: FeatureStore, factory: Factory) -> ModelPool:
    retriever = build_retriever(settings, store=store, embedder=HashEmbedder())
    return ModelPool(settings, retriever=retriever, opener=factory, max_loaded=2)


def model_of(pool: ModelPool, name: str = DEFAULT) -> str:
    with pool.lease(name) as engine:
        return engine.model


def test_without_a_champion_the_base_model_answers(pool: ModelPool) -> None:
    assert pool.load_default() == "base model"
    assert model_of(pool, "champion") == "base model"
    assert model_of(pool, "embedded") == "base model"


def test_a_promotion_is_picked_up_and_running_answers_finish_on_the_old(
    pool: ModelPool, publish: Callable[..., str], factory: Factory
) -> None:
    publish(alias="champion")
    assert pool.load_default() == "assistant@1"
    old = factory.opened[0]
    with pool.lease() as running:
        stream = running.stream(QUESTION)
        next(stream)
        publish(alias="champion")
        pool.refresh()
        assert model_of(pool) == "assistant@2"
        *_, last = stream
        assert last.model == "assistant@1"  # type: ignore[union-attr]
        assert not old.closed
    assert old.closed
    assert pool.current() == {DEFAULT: "assistant@2"}


def test_rollback_is_picked_up_too(
    pool: ModelPool, publish: Callable[..., str], registry: Registry
) -> None:
    publish(alias="champion")
    publish(alias="champion")
    assert pool.load_default() == "assistant@2"
    registry.rollback("assistant")
    pool.refresh()
    assert model_of(pool) == "assistant@1"


def test_a_version_that_cannot_be_used_leaves_the_old_one_in_place(
    pool: ModelPool, publish: Callable[..., str], factory: Factory
) -> None:
    publish(alias="champion")
    pool.load_default()
    factory.broken.add("assistant@2")
    publish(alias="champion")
    pool.refresh()
    assert model_of(pool) == "assistant@1"
    (failure,) = pool.failures().values()
    assert "do not match" in failure.reason
    opened = len(factory.opened)
    pool.refresh()  # not tried again at once
    assert len(factory.opened) == opened
    publish(alias="champion")
    pool.refresh()
    assert model_of(pool) == "assistant@3"
    assert pool.failures() == {}


def test_a_broken_version_is_tried_ever_more_rarely_and_logged_once(
    settings: Settings, store: FeatureStore, publish: Callable[..., str], caplog: Any
) -> None:
    tried: list[float] = []

    def opener(_: Settings, reference: str) -> ServedModel:
        if reference == "assistant@2":
            tried.append(time.monotonic())
            raise KeyError("lora_A")  # as a library does over a damaged file
        return ServedModel(FirstSentence(reference))

    retriever = build_retriever(settings, store=store, embedder=HashEmbedder())
    pool = ModelPool(settings, retriever=retriever, opener=opener, retry_seconds=0.05)
    publish(alias="champion")
    pool.load_default()
    publish(alias="champion")
    while len(tried) < 4:
        pool.refresh()
        with pytest.raises(
            RegistryError, match=r"assistant@2 cannot be loaded: KeyError: 'lora_A'"
        ):
            model_of(pool, "assistant@2")
        time.sleep(0.001)
    pauses = [after - before for before, after in pairwise(tried)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True))
    assert model_of(pool) == "assistant@1"
    assert "KeyError" in pool.failures()[DEFAULT].reason
    assert sum("assistant@2" in record.message for record in caplog.records) == 1


def test_the_failure_of_a_name_that_made_room_is_forgotten(
    pool: ModelPool, publish: Callable[..., str], factory: Factory
) -> None:
    publish(alias="champion")
    pool.load_default()
    publish(alias="blue")
    assert model_of(pool, "assistant@blue") == "assistant@2"
    factory.broken.add("assistant@3")
    publish(alias="blue")
    pool.refresh()
    assert list(pool.failures()) == ["assistant@blue"]
    publish()
    assert model_of(pool, "assistant@4") == "assistant@4"
    pool.refresh()
    assert pool.failures() == {}


def test_a_version_made_for_another_store_is_not_swapped_in(
    pool: ModelPool, publish: Callable[..., str], factory: Factory
) -> None:
    publish(alias="champion")
    pool.load_default()
    factory.manifests["assistant@2"] = {"chunker_digest": "d" * 64}
    publish(alias="champion")
    pool.refresh()
    assert model_of(pool) == "assistant@1"
    assert "chunks" in pool.failures()[DEFAULT].reason
    assert factory.opened[-1].closed


def test_a_store_that_changes_under_a_model_is_noticed(
    settings: Settings,
    store: FeatureStore,
    pool: ModelPool,
    publish: Callable[..., str],
    factory: Factory,
) -> None:
    from tests.inference.corpus import fill

    factory.manifests["assistant@1"] = {"chunker_digest": CHUNKER_DIGEST}
    publish(alias="champion")
    pool.load_default()
    pool.refresh()
    assert pool.failures() == {}
    fill(store, {"new.md": "Cut in another way."}, chunker_digest="e" * 64)
    pool.refresh()
    assert DEFAULT in pool.failures()
    assert model_of(pool) == "assistant@1"


def test_a_registry_that_disappears_does_not_bring_the_base_model_back(
    settings: Settings, pool: ModelPool, publish: Callable[..., str]
) -> None:
    publish(alias="champion")
    pool.load_default()
    Path(settings.storage.registry_uri).rename(Path(settings.storage.registry_uri + ".away"))
    pool.refresh()
    assert model_of(pool) == "assistant@1"
    assert "gone" in pool.failures()[DEFAULT].reason
    Path(settings.storage.registry_uri + ".away").rename(Path(settings.storage.registry_uri))
    pool.refresh()
    assert pool.failures() == {}


def test_versions_aliases_and_bare_names_side_by_side(
    pool: ModelPool, publish: Callable[..., str]
) -> None:
    publish(alias="champion")
    publish(alias="challenger")
    pool.load_default()
    assert model_of(pool, "assistant@1") == "assistant@1"
    assert model_of(pool, "assistant@2") == "assistant@2"
    assert model_of(pool, "challenger") == "assistant@2"
    assert model_of(pool, "assistant@challenger") == "assistant@2"
    assert model_of(pool, "assistant") == "assistant@1"
    for unknown in ("assistant@9", "nobody", "nobody@1", "some/repo", "/etc", "a@b@c", "@", "A B"):
        with pytest.raises(ModelNotFound):
            model_of(pool, unknown)


def test_memory_is_bounded_and_the_default_stays(
    pool: ModelPool, publish: Callable[..., str], factory: Factory
) -> None:
    publish(alias="champion")
    for _ in range(3):
        publish()
    pool.load_default()
    for number in (2, 3, 4, 2):
        assert model_of(pool, f"assistant@{number}") == f"assistant@{number}"
    alive = [made.model for made in factory.opened if not made.closed]
    assert len(alive) == 2
    assert "assistant@1" in alive


def test_swapping_under_load_never_answers_with_a_closed_or_wrong_model(
    pool: ModelPool, publish: Callable[..., str], registry: Registry, factory: Factory
) -> None:
    publish(alias="champion")
    publish()
    pool.load_default()
    stop = threading.Event()
    problems: list[str] = []
    answered = [0]

    def ask() -> None:
        while not stop.is_set():
            with pool.lease() as engine:
                answer = engine.answer(QUESTION)
                generator: Any = engine.served.generator
                if generator.closed or answer.model != generator.model:
                    problems.append(answer.model)
                answered[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    swaps = 0
    while swaps < 20 or answered[0] <= 20:
        registry.set_alias("assistant", "champion", 1 + swaps % 2, who="t", why="swap")
        pool.refresh()
        swaps += 1
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sum(not made.closed for made in factory.opened) == 1


def test_a_model_beyond_the_limit_answers_and_goes(
    settings: Settings, store: FeatureStore, factory: Factory, publish: Callable[..., str]
) -> None:
    retriever = build_retriever(settings, store=store, embedder=HashEmbedder())
    pool = ModelPool(settings, retriever=retriever, opener=factory, max_loaded=1)
    publish(alias="champion")
    publish()
    pool.load_default()
    answered: list[str] = []
    thread = threading.Thread(
        target=lambda: answered.append(model_of(pool, "assistant@2")), daemon=True
    )
    thread.start()
    thread.join(10)
    assert answered == ["assistant@2"]
    assert [model.closed for model in factory.opened] == [False, True]
    assert model_of(pool) == "assistant@1"


def test_many_versions_in_little_room_all_get_their_turn(
    pool: ModelPool, factory: Factory, publish: Callable[..., str]
) -> None:
    publish(alias="champion")
    wanted = [publish() for _ in range(4)]
    pool.load_default()
    answered: list[tuple[str, str]] = []

    def ask(name: str) -> None:
        for _ in range(10):
            with pool.lease(name) as engine:
                assert not engine.served.generator.closed  # type: ignore[attr-defined]
                answered.append((name, engine.model))

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answered) == 40
    assert all(name == model for name, model in answered)
    assert len(factory.opened) <= 41
    assert sum(not model.closed for model in factory.opened) <= 2


def test_that_the_base_model_answers_is_said_when_it_is_loaded(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rag_fti.inference.models")
    base = str(save_tiny(tmp_path / "base"))
    generator = settings.generator.model_copy(update={"base_model": base, "model": "champion"})
    settings = settings.model_copy(update={"generator": generator})
    open_model(settings).close()
    for _ in range(3):
        assert resolve_reference(settings) is None
    assert [record.getMessage() for record in caplog.records] == [
        "no version is champion yet: the base model answers"
    ]


def test_open_model_checks_digests_base_weights_and_prompt_format(
    settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from rag_fti import prompts
    from rag_fti.models.causal import resolve_base_model
    from rag_fti.retrieval import retrieval_settings
    from tests.inference.tiny import tiny_model, tiny_tokenizer

    base = save_tiny(tmp_path / "base")
    settings = load_settings(
        values={
            "storage.root": str(settings.storage.root),
            "generator.base_model": str(base),
            "generator.dtype": "float32",
        },
        environment={},
    )
    tokenizer = tiny_tokenizer()
    model = get_peft_model(tiny_model(len(tokenizer)), LoraConfig(target_modules="all-linear"))
    model.save_pretrained(tmp_path / "files")
    tokenizer.save_pretrained(tmp_path / "files")
    good = {
        "base_model": resolve_base_model(str(base)).to_dict(),
        "prompt_digest": prompts.prompt_digest(
            tokenizer.chat_template, retrieval_settings(settings)
        ),
        "dataset": "qa@1",
    }
    fine = registry.publish("assistant", tmp_path / "files", good)
    served = open_model(settings, fine.ref)
    assert (served.name, served.dataset) == ("assistant@1", "qa@1")
    served.close()

    skewed = registry.publish("assistant", tmp_path / "files", {**good, "prompt_digest": "0" * 64})
    with pytest.raises(IncompatibleArtifact, match="trained on prompts"):
        open_model(settings, skewed.ref)
    other = {**good, "base_model": {**good["base_model"], "weights_digest": "f" * 64}}  # type: ignore[dict-item]
    foreign = registry.publish("assistant", tmp_path / "files", other)
    with pytest.raises(IncompatibleArtifact, match="needs the base model"):
        open_model(settings, foreign.ref)
    target = fine.path / "adapter_model.safetensors"
    target.chmod(0o644)
    target.write_bytes(target.read_bytes()[:-1] + b"x")
    with pytest.raises(RegistryError, match="do not match"):
        open_model(settings, fine.ref)
    with pytest.raises(ModelNotFound):
        open_model(settings, "assistant@77")


pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
