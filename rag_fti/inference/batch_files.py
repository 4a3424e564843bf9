"""The files of batch inference: questions in, predictions out, and the work of a run so far."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rag_fti.errors import ConfigError, SourceError
from rag_fti.evaluation.questions import question_ids, read_questions, read_rows
from rag_fti.files import write_bytes_atomic
from rag_fti.schemas import predictions_schema

OUTPUT_SUFFIXES = (".jsonl", ".parquet", ".csv")


@dataclass(frozen=True)
class Asked:
    """One line of the input."""

    id: str
    question: str


class WorkFile:
    """What an interrupted run has done: a header line, then one line per prediction.

    Args:
        output: The file the run will write in the end.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.work.jsonl")

    def open_run(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Header and predictions of an interrupted run of the same job; empty where none is."""
        if not self.path.is_file():
            return {}, []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if not whole:
            return {}, []
        if whole < len(content):
            os.truncate(self.path, whole)  # a torn last line is done again
        lines = content[:whole].split(b"\n")[:-1]
        header = json.loads(lines[0])
        if header.get("job") != json.loads(json.dumps(job)):
            return {}, []
        return header, [json.loads(line) for line in lines[1:]]

    def start(self, header: Mapping[str, Any]) -> None:
        """Begin a new run."""
        write_bytes_atomic(self.path, json.dumps(header).encode() + b"\n")

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put finished predictions on disk."""
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with self.path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)


def check_output(output: Path) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        ConfigError: If the suffix is unknown or the directory is not there.
    """
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ConfigError(
            f"Cannot tell the format of {output}.",
            next_step=f"End its name in one of {', '.join(OUTPUT_SUFFIXES)}.",
        )
    if not output.parent.is_dir() or output.is_dir():
        raise ConfigError(
            f"{output} cannot be written: "
            + ("it is a directory." if output.is_dir() else f"there is no {output.parent}."),
        )


def read_input(path: Path) -> list[Asked]:
    """The questions of a file, by its suffix.

    Raises:
        SourceError: If it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return [Asked(q.id, q.question) for q in read_questions(path)]
    rows: list[Mapping[str, Any]]
    try:
        if suffix in (".csv", ".tsv"):
            rows = [row for _, row in read_rows(path)]
        elif suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = [{"question": line} for line in lines]
        given = [
            ("" if row.get("id") is None else str(row["id"]), str(row["question"] or "").strip())
            for row in rows
        ]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else error
        raise SourceError(
            f"Cannot read the questions in {path}: {what}.",
            next_step="Give JSONL, CSV or Parquet with a column question, or text lines.",
        ) from error
    asked = [(own, text) for own, text in given if text]
    names = question_ids(asked)
    return [Asked(name, text) for name, (_, text) in zip(names, asked, strict=True)]


def write_output(output: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write the file, all of it or nothing."""
    rows = [{**row, "citations": json.loads(row["citations"])} for row in predictions]
    if output.suffix.lower() == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_bytes_atomic(output, ("\n".join(lines) + "\n").encode("utf-8"))
        return
    table = pa.Table.from_pylist(
        [{**r, "created_at": datetime.fromisoformat(r["created_at"])} for r in predictions],
        schema=predictions_schema(),
    )
    if output.suffix.lower() == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes_atomic(output, buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=table.column_names)
    writer.writeheader()
    lists = ("chunk_ids", "document_ids")
    writer.writerows({**r, **{n: json.dumps(r[n]) for n in lists if n in r}} for r in predictions)
    write_bytes_atomic(output, text.getvalue().encode("utf-8"))
