"""The files of batch inference: questions in, predictions out, and the work of a run so far."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
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

logger = logging.getLogger(__name__)

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
        """Header and predictions of an interrupted run of the same job; empty where none is.

        A file that cannot be read is put aside.
        """
        if not self.path.is_file():
            return {}, []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if not whole:
            return {}, []
        if whole < len(content):
            os.truncate(self.path, whole)  # a torn last line is done again
        try:
            header, *rows = (json.loads(line) for line in content[:whole].split(b"\n")[:-1])
            same = header["job"] == json.loads(json.dumps(job))
        except (ValueError, KeyError, TypeError) as error:
            aside = self.path.rename(self.path.with_suffix(".damaged"))
            logger.warning(
                "The work of an interrupted run is damaged (%s): starting anew; it is kept as %s.",
                error,
                aside,
            )
            return {}, []
        return (header, rows) if same else ({}, [])

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
    """The questions of a file, by its suffix; blank lines are none.

    Raises:
        SourceError: If it cannot be read, or a line holds something but no question.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return [Asked(q.id, q.question) for q in read_questions(path)]
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    asked = []
    try:
        if suffix in (".csv", ".tsv"):
            rows = [(line, {"question": "", **row}) for line, row in read_rows(path)]
        elif suffix == ".parquet":
            rows = enumerate(pq.read_table(path).to_pylist(), start=1)
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = enumerate(({"question": line} for line in lines), start=1)
        for line, row in rows:
            text = str(row["question"] or "").strip()
            if text:
                asked.append(("" if row.get("id") is None else str(row["id"]), text))
            elif any(str(value).strip() for value in row.values() if value is not None):
                raise SourceError(
                    f"{path}, line {line}: the question is empty.",
                    next_step="Write one there, or remove the line.",
                )
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        what = f"no column {error}" if isinstance(error, KeyError) else error
        raise SourceError(
            f"Cannot read the questions in {path}: {what}.",
            next_step="Give JSONL, CSV or Parquet with a column question, or text lines.",
        ) from error
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
