"""Exports, loaded the way LLaMA-Factory and TRL read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rag_fti.datasets import DatasetVersion, write_dataset
from rag_fti.datasets.card import render_card
from rag_fti.datasets.exporting import FORMATS, export_dataset
from rag_fti.datasets.feedback import preferences_table
from rag_fti.errors import DatasetError
from tests.training.tiny import build_dataset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(multiprocess|dill|datasets).*")


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    return build_dataset(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def folder(version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export")
    (target / "dataset_info.json").write_text('{"other": {"file_name": "other.json"}}')
    export_dataset(version, target, formats=FORMATS)
    return target


def load(folder: Path, file_name: str) -> Any:
    from datasets import load_dataset

    return load_dataset(
        "json",
        data_files=str(folder / file_name),
        split="train",
        cache_dir=str(folder / "cache"),
    )


def llama_factory(folder: Path, name: str) -> list[list[dict[str, str]]]:
    """Read one entry of dataset_info.json as LLaMA-Factory's converters do: alpaca joins prompt
    and query with a line break; sharegpt maps tags to roles and checks that they alternate."""
    entry = json.loads((folder / "dataset_info.json").read_text())[name]
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    result = []
    for row in load(folder, entry["file_name"]):
        if entry.get("formatting", "alpaca") == "alpaca":
            query = [row[columns["prompt"]]]
            if row[columns["query"]]:
                query.append(row[columns["query"]])
            result.append(
                [
                    {"role": "system", "content": row[columns["system"]]},
                    {"role": "user", "content": "\n".join(query)},
                    {"role": "assistant", "content": row[columns["response"]]},
                ]
            )
            continue
        role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
        roles = {
            tags.get("user_tag", "human"): "user",
            tags.get("assistant_tag", "gpt"): "assistant",
            tags.get("system_tag", "system"): "system",
        }
        turns = [
            {"role": roles[turn[role]], "content": turn[content]}
            for turn in row[columns["messages"]]
        ]
        if turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": row[columns["system"]]})
        assert [turn["role"] for turn in turns[1:]] == ["user", "assistant"]
        result.append(turns)
    return result


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_llama_factory_gets_the_same_messages(
    version: DatasetVersion, folder: Path, form: str, split: str
) -> None:
    expected = [row["messages"] for row in version.rows(split).to_pylist()]
    assert llama_factory(folder, f"colours_{form}_{split}") == expected


def test_other_entries_of_dataset_info_are_kept(folder: Path) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["other"] == {"file_name": "other.json"} and len(info) == 10


def test_entries_have_the_keys_of_the_real_file(folder: Path, shared_data: Path) -> None:
    path = shared_data / "instruct_formats" / "dataset_info.json"
    real = json.loads(path.read_text(encoding="utf-8"))
    known = {key for entry in real.values() for key in entry}
    columns = {key for entry in real.values() for key in entry.get("columns", {})}
    columns |= {"system", "query", "prompt", "response"}
    tags = {key for entry in real.values() for key in entry.get("tags", {})} | {"system_tag"}
    for entry in json.loads((folder / "dataset_info.json").read_text()).values():
        assert set(entry) <= known
        assert set(entry.get("columns", {})) <= columns
        assert set(entry.get("tags", {})) <= tags


def test_trl_takes_the_messages_as_they_are(version: DatasetVersion, folder: Path) -> None:
    import trl

    data = load(folder, "colours_messages_train.jsonl")
    assert data.column_names == ["messages"]
    assert trl.is_conversational(data[0])
    assert data[0]["messages"] == version.rows("train").to_pylist()[0]["messages"]


def test_the_parquet_files_load_through_datasets(version: DatasetVersion, tmp_path: Path) -> None:
    from datasets import load_dataset

    data = load_dataset(str(version.path), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in data.items()} == version.manifest["splits"]
    assert data["train"][0]["messages"][-1]["role"] == "assistant"


def again(version: DatasetVersion, root: Path, **splits: Any) -> DatasetVersion:
    """The dataset with other rows."""
    tables = {name: version.rows(name) for name in ("train", "validation", "test")} | splits
    rows = {name: table.num_rows for name, table in tables.items()}
    card = render_card(name="colours", splits=rows, generators={}, filters={}, facts={})
    return write_dataset(root, "colours", tables, origin={}, details={}, card=card)


def test_splits_without_rows_are_left_out(version: DatasetVersion, tmp_path: Path) -> None:
    from datasets import load_dataset

    none = version.rows("test").slice(0, 0)
    small = again(version, tmp_path / "root", validation=none, test=none)
    data = load_dataset(str(small.path), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 32}
    export_dataset(small, tmp_path / "out", formats=("messages",))
    assert [p.name for p in (tmp_path / "out").glob("*.jsonl")] == ["colours_messages_train.jsonl"]
    assert len(json.loads((tmp_path / "out/dataset_info.json").read_text())) == 1


def test_nothing_of_an_earlier_export_stays(version: DatasetVersion, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "What?"}]
    pair = {
        "prompt": [{"role": "system", "content": "Answer."}, *turn],
        "chosen": [{"role": "assistant", "content": "This."}],
        "rejected": [{"role": "assistant", "content": "That."}],
        "document_ids": ["d"],
        "response_id": "r",
    }
    first = again(version, tmp_path / "root", preferences=preferences_table([pair]))
    folder = tmp_path / "out"
    export_dataset(first, folder, formats=FORMATS)
    assert (folder / "colours_preferences.json").is_file()
    path = folder / "dataset_info.json"
    (tmp_path / "kept.json").write_text("{}")
    info = json.loads(path.read_text())
    info["colours_preferences"]["file_name"] = "../kept.json"
    info["colours_2_messages_train"] = {"file_name": "other.jsonl"}
    path.write_text(json.dumps(info))
    written = export_dataset(version, folder, formats=("messages",))
    assert {p.name for p in folder.iterdir()} == {
        *(p.name for p in written),
        "colours_preferences.json",  # its entry names another file
    }
    assert (tmp_path / "kept.json").is_file()
    labels = [f"colours_messages_{split}" for split in ("train", "validation", "test")]
    assert sorted(json.loads(path.read_text())) == sorted(["colours_2_messages_train", *labels])


def test_a_dataset_info_that_is_none_is_refused(version: DatasetVersion, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("[1]")
    with pytest.raises(DatasetError, match="expected an object, got list"):
        export_dataset(version, tmp_path, formats=FORMATS)
