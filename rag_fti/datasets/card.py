"""The dataset card: Hugging Face front matter, then what is in the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def render_card(
    *,
    name: str,
    splits: Mapping[str, int],
    generators: Mapping[str, int],
    filters: Mapping[str, int],
    facts: Mapping[str, Any],
) -> str:
    """The card as Markdown; ``{version}`` stands for the version.

    Args:
        name: Dataset name.
        splits: Rows of each split.
        generators: Rows by generator.
        filters: Candidates that were dropped, by reason.
        facts: Further lines for the first table.
    """
    front = {
        "pretty_name": name,
        "task_categories": ["question-answering", "text-generation"],
        "tags": ["rag", "raft", "rag-fti"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"{split}.parquet"}
                    for split, rows in splits.items()
                    if rows and split != "preferences"  # readers refuse a split without rows
                ],
            }
        ],
    }
    tables = [
        ("", {"version": "{version}", **facts}),
        ("Rows", splits),
        ("Rows by generator", generators),
        ("Left out, by reason", filters),
    ]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", ""]
    lines += [
        "Questions to be answered from retrieved passages. The passages of each row are what the "
        "serving retriever finds for its question; answers are in the words of a passage and "
        "followed by its marker, or are the abstention text where no passage holds the answer. "
        "Splits share no document that holds an answer, no near duplicate of one and no "
        "near-duplicate question; passages beside the answer come from all documents.",
        "",
    ]
    for title, table in tables:
        if title:
            lines += [f"## {title}", ""]
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in table.items()]
        lines.append("")
    lines += [
        "The texts belong to whoever owns the documents they were taken from; their licence is "
        "that of the documents.",
        "",
    ]
    return "\n".join(lines)
