from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rag_fti.config import Settings, load_settings
from rag_fti.errors import ConfigError


def test_defaults_need_no_file() -> None:
    assert load_settings(environment={}) == Settings()


def test_order_is_environment_file_override_option(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("storage: {root: from_file}\nretrieval: {k: 3, mode: text}\n")
    second = tmp_path / "b.yaml"
    second.write_text("retrieval: {mode: vector}\n")
    environment = {"RAG_FTI_ROOT": "from_environment"}
    assert load_settings(environment=environment).storage.root == Path("from_environment")
    settings = load_settings(
        [file, second], ["retrieval.k=4"], environment=environment, values={"dataset.seed": 5}
    )
    assert settings.storage.root == Path("from_file")
    assert (settings.retrieval.k, settings.retrieval.mode) == (4, "vector")
    assert settings.dataset.seed == 5


def test_generator_is_local_unless_it_says_otherwise() -> None:
    assert load_settings((), ["generator.base_model=x/y"], environment={}).generator.type == "local"
    remote = load_settings((), ["generator={type: openai, model: m}"], environment={}).generator
    assert remote.type == "openai"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("retrieval.kk=1", "did you mean 'k'"),
        ("retreival.k=1", "did you mean 'retrieval'"),
        ("retrieval.k=many", "retrieval.k"),
        ("retrieval.k=0", "greater than or equal to 1"),
        ("retrieval.mode=magic", "'hybrid'"),
        ("generator={type: magic}", "magic"),
        ("retrieval", "Write key=value"),
        ("retrieval.k=[", "not valid YAML"),
        ("storage.root.x.y=1", "docs/configuration.md"),
        (".k=3", "Write key=value"),
        ("ingest.keep_versions_days=inf", "finite"),
        ("ingest.keep_versions_days=1e12", "36500"),
        ("ingest.keep_versions_days=nan", "finite"),
        ("retrieval.k=true", "valid integer"),
        ("training.epochs=1:30", "valid number"),
        ("retrieval=&x {k: *x}", "not valid YAML"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings((), [override], environment={})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("inference.condense=off", "off"),
        ("inference.follow=", ""),
        ("ingest.collection=007", "007"),
        ("dataset.collection=no", "no"),
        ("dataset.name=2024-01-01", "2024-01-01"),
        ("training.revision=1234567", "1234567"),
        ("training.revision=", None),
        ("storage.options.allow_http=true", "true"),
        ("inference.log=false", False),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.packing=auto", "auto"),
        ("training.packing=true", True),
        ("dataset.pairs=a.jsonl", (Path("a.jsonl"),)),
        ("dataset.pairs=[a.jsonl, 2.jsonl]", (Path("a.jsonl"), Path("2.jsonl"))),
    ],
)
def test_a_value_is_read_as_its_key_asks(tmp_path: Path, override: str, expected: Any) -> None:
    dotted, _, value = override.partition("=")
    path = dotted.split(".")
    file = tmp_path / "same.yaml"
    file.write_text(": {".join(path) + f": {value}" + "}" * (len(path) - 1))
    for files, overrides in (([], [override]), ([file], [])):
        found: Any = load_settings(files, overrides, environment={})
        for step in path:
            found = found[step] if isinstance(found, dict) else getattr(found, step)
        assert found == expected


def test_a_section_without_keys_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("dataset:\n  # name: x\ntraining: {epochs: 3}\n")
    second.write_text("training:\n  # all as it is\n")
    settings = load_settings([first, second], ["dataset.name=x"], environment={})
    assert (settings.training.epochs, settings.dataset.name) == (3, "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("- a\n", "mapping"), ("a: [", "not valid YAML"), ("\udcff", "Cannot read")],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=expected):
        load_settings([file], environment={})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        load_settings([tmp_path / "none.yaml"], environment={})


def test_a_section_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("retrieval:\n  k: 8\nserving:\n  port: 1\nretrieval:\n  mode: text\n")
    with pytest.raises(ConfigError, match=r"'retrieval' stands twice[\s\S]*line 1"):
        load_settings([file], environment={})


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("minimum: 0.6, maximum: 0.5", "above its maximum"),
        ("minimum: nan", "finite number"),
        ("maximum: inf", "finite number"),
    ],
)
def test_gates_that_nothing_can_pass_are_refused(tmp_path: Path, limits: str, message: str) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text(f"evaluation: {{gates: [{{name: g, metric: f1, {limits}}}]}}")
    with pytest.raises(ConfigError, match=message):
        load_settings([file], environment={})


def test_every_shipped_configuration_loads(repository: Path) -> None:
    files = sorted((repository / "configs").rglob("*.yaml"))
    assert files
    for file in files:
        load_settings([file], environment={})


def test_pipeline_files_differ_from_the_defaults_only_where_meant(repository: Path) -> None:
    def different(file: dict[str, Any], default: Mapping[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in file.items():
            if isinstance(value, dict):
                found += different(value, default[key], f"{prefix}{key}.")
            elif value != default[key]:
                found.append(prefix + key)
        return found

    defaults = Settings().model_dump(mode="json")
    files = [yaml.safe_load(f.read_text()) for f in sorted((repository / "configs").glob("*.yaml"))]
    assert [name for file in files for name in different(file, defaults)] == [
        "feature_validation.max_age_hours",
        "evaluation.gates",
        "serving.examples",
    ]


def test_settings_survive_a_round_trip_through_yaml() -> None:
    settings = load_settings((), ["retrieval.k=9"], environment={})
    text = yaml.safe_dump(settings.model_dump(mode="json"))
    assert Settings.model_validate(yaml.safe_load(text)) == settings


def test_every_field_is_documented() -> None:
    missing = []
    pending: list[tuple[str, type]] = [("", Settings)]
    while pending:
        prefix, model = pending.pop()
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if not field.description:
                missing.append(prefix + name)
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                pending.append((f"{prefix}{name}.", field.annotation))
    assert missing == []
