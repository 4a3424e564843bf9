"""Datasets in the formats that other trainers read.

``messages``
    JSON lines with a ``messages`` list, as TRL and the OpenAI fine-tuning API read.
``alpaca``
    JSON arrays of ``instruction``, ``input``, ``output``, ``system``.
``sharegpt``
    JSON arrays of ``conversations`` with ``from`` and ``value``, and ``system``.

``dataset_info.json`` beside them describes every file to LLaMA-Factory. All formats reproduce the
prompt of the dataset to the letter, so that what is trained elsewhere fits what is served here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rag_fti.datasets.storage import PREFERENCES, SPLITS, DatasetVersion
from rag_fti.errors import DatasetError
from rag_fti.files import write_bytes_atomic, write_json_atomic

Format = Literal["messages", "alpaca", "sharegpt"]
FORMATS: tuple[Format, ...] = ("messages", "alpaca", "sharegpt")
DATASET_INFO = "dataset_info.json"

_ROLE_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": _ROLE_TAGS,
    },
    "alpaca": {
        "columns": {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
        }
    },
    "sharegpt": {
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system"},
    },
}
_PREFERENCE_COLUMNS = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {
        "messages": "conversations",
        "chosen": "chosen",
        "rejected": "rejected",
        "system": "system",
    },
}


def export_dataset(
    version: DatasetVersion, folder: Path, *, formats: tuple[Format, ...]
) -> list[Path]:
    """Write a dataset in other formats.

    Args:
        version: What to export.
        folder: Directory to write into; what an earlier export of a dataset of this name left is
            replaced or removed, entries of others in its ``dataset_info.json`` are kept.
        formats: Formats to write.

    Returns:
        The files written, ``dataset_info.json`` last; a split without rows has none.

    Raises:
        DatasetError: If the dataset or an existing ``dataset_info.json`` cannot be read.
    """
    info = _existing_info(folder / DATASET_INFO)
    labels = [f"{version.name}_{name}_{split}" for name in FORMATS for split in SPLITS]
    earlier = [info.pop(label, None) for label in (*labels, f"{version.name}_{PREFERENCES}")]
    written = []
    for split in SPLITS:
        rows = version.rows(split).to_pylist()
        for name in formats if rows else ():
            label = f"{version.name}_{name}_{split}"
            items = [_CONVERT[name](row["messages"]) for row in rows]
            written.append(_write(folder, label, items, lines=name == "messages"))
            info[label] = {"file_name": written[-1].name, **_COLUMNS[name]}
    if version.has(PREFERENCES):
        pairs = version.rows(PREFERENCES).to_pylist()
        label = f"{version.name}_{PREFERENCES}"
        written.append(_write(folder, label, [_preference(row) for row in pairs], lines=False))
        info[label] = {"file_name": written[-1].name, **_PREFERENCE_COLUMNS}
    write_json_atomic(folder / DATASET_INFO, info)
    named = {str(entry.get("file_name")) for entry in earlier if isinstance(entry, dict)}
    for path in folder.iterdir():
        if path.name in named and path not in written and path.is_file():
            path.unlink()
    return [*written, folder / DATASET_INFO]


def _existing_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError(f"expected an object, got {type(info).__name__}")
        return info
    except ValueError as error:
        raise DatasetError(
            f"{path} describes no datasets: {error}.", next_step="Repair it or export elsewhere."
        ) from error


def _write(folder: Path, label: str, items: list[dict[str, Any]], *, lines: bool) -> Path:
    path = folder / f"{label}.{'jsonl' if lines else 'json'}"
    if lines:
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    else:
        text = json.dumps(items, ensure_ascii=False, indent=1) + "\n"
    write_bytes_atomic(path, text.encode("utf-8"))
    return path


def _messages(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {"messages": [dict(message) for message in messages]}


def _alpaca(messages: list[dict[str, str]]) -> dict[str, Any]:
    system, user, assistant = _turns(messages)
    # Readers put one line break between instruction and input; ours already has two.
    instruction, separator, rest = user.partition("\n")
    return {
        "instruction": instruction,
        "input": rest if separator else "",
        "output": assistant,
        "system": system,
    }


def _sharegpt(messages: list[dict[str, str]]) -> dict[str, Any]:
    system, user, assistant = _turns(messages)
    return {
        "conversations": [
            {"from": "human", "value": user},
            {"from": "gpt", "value": assistant},
        ],
        "system": system,
    }


def _preference(row: Mapping[str, Any]) -> dict[str, Any]:
    system, user = (message["content"] for message in row["prompt"])
    return {
        "conversations": [{"from": "human", "value": user}],
        "chosen": {"from": "gpt", "value": row["chosen"][0]["content"]},
        "rejected": {"from": "gpt", "value": row["rejected"][0]["content"]},
        "system": system,
    }


def _turns(messages: list[dict[str, str]]) -> Iterator[str]:
    if [message["role"] for message in messages] != ["system", "user", "assistant"]:
        raise DatasetError(
            f"A row has the roles {[m['role'] for m in messages]}, expected system, user, "
            "assistant.",
            next_step="Export it as messages.",
        )
    return (message["content"] for message in messages)


_CONVERT: dict[str, Callable[[list[dict[str, str]]], dict[str, Any]]] = {
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
