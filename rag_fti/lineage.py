"""Where an answer came from, and what a document went into.

Forward, a document reaches answers by way of chunks, dataset versions and model versions; every
hop is recorded by the pipeline that made it (chunk ids in dataset rows, dataset version in model
manifests, chunk ids and model version in the inference log and in predictions). This module only
walks those records.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rag_fti.datasets import DatasetVersion, dataset_versions
from rag_fti.errors import DatasetError, RagFtiError

if TYPE_CHECKING:
    from rag_fti.bucket import Bucket
    from rag_fti.feature_store import FeatureStore
    from rag_fti.registry import Registry

SPLITS = ("train", "validation", "test", "preferences")


@dataclass(frozen=True)
class Taint:
    """Everything that a set of documents went into."""

    datasets: tuple[str, ...]
    """Dataset versions with at least one row made from the documents, as ``name@version``."""
    models: tuple[str, ...]
    """Model versions trained on those datasets, as ``name@version``."""
    answers: tuple[str, ...]
    """Logged answers and predictions that had the documents in their context."""

    def to_dict(self) -> dict[str, list[str]]:
        """JSON-ready form."""
        return {name: list(values) for name, values in asdict(self).items()}


@dataclass(frozen=True)
class Stores:
    """The shared storage that lineage is read from."""

    features: FeatureStore
    datasets: Path | Bucket
    registry: Registry


def tainted_by(document_ids: Sequence[str], *, stores: Stores) -> Taint:
    """What the documents went into: datasets, models trained on those, answers."""
    wanted = pa.array(list(document_ids), pa.string())
    datasets = tuple(
        version.ref
        for version in dataset_manifests(stores.datasets)
        if _dataset_uses(version.fetch(), wanted)
    )
    models = tuple(_trained_on(datasets, stores.registry))
    answers = tuple(
        answer
        for answer, used in _answers(stores.features)
        if not set(document_ids).isdisjoint(used)
    )
    return Taint(datasets, models, answers)


def trace(identifier: str, *, stores: Stores) -> dict[str, Any]:
    """Everything recorded about an id, whatever kind it is.

    Args:
        identifier: A response id, prediction id, chunk id, document id (also of a document that
            was deleted), document source, ``dataset@version``, ``dataset@latest``,
            ``model@version``, ``model@alias`` or an alias that one model has.
        stores: The shared storage.

    Returns:
        ``{"kind", "id", …}`` with the hops in both directions.

    Raises:
        RagFtiError: If nothing has this id.
    """
    for find in (
        _trace_answer,
        _trace_prediction,
        _trace_dataset,
        _trace_model,
        _trace_document,
        _trace_chunk,
        _trace_deleted,
    ):
        found = find(identifier, stores)
        if found is not None:
            return found
    raise RagFtiError(
        f"Nothing is known under {identifier!r}.",
        next_step="Give a response id, prediction id, chunk id, document id or source, "
        "dataset@version or model@version; rag-fti status lists what there is.",
    )


def dataset_manifests(root: Path | Bucket) -> Iterator[DatasetVersion]:
    """Every complete dataset version, also of another release's schema, oldest first.

    Raises:
        DatasetError: If a manifest is damaged.
        StoreError: If the object store cannot be read.
    """
    if not isinstance(root, Path):
        yield from dataset_versions(root)
        return
    # A hidden directory is a version that is being written, or that a crash left.
    paths = [p for p in root.glob("*/*/manifest.json") if not p.parent.name.startswith(".")]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(manifest, dict):
                raise ValueError("it holds no JSON object")
        except ValueError as error:
            raise DatasetError(
                f"The manifest {path} is damaged: {error}.",
                next_step="Remove that version's directory, or copy it again from its source.",
            ) from error
        folder = path.parent
        yield DatasetVersion(folder.parent.name, folder.name, folder, manifest, str(folder))


def _trace_answer(identifier: str, stores: Stores) -> dict[str, Any] | None:
    where = f"response_id = {_sql_string(identifier)}"
    rows = stores.features.rows("inference_log", where=where).to_pylist()
    if not rows:
        return None
    row = rows[0]
    chunks = [
        {
            "marker": number,
            "chunk_id": chunk,
            "document_id": document,
            "document_version": version,
            "score": score,
            "cited": number in row["cited"],
            "now": _chunk_now(chunk, stores),
        }
        for number, (chunk, document, version, score) in enumerate(
            zip(
                row["chunk_ids"],
                row["document_ids"],
                row["document_versions"],
                row["scores"],
                strict=True,
            ),
            start=1,
        )
    ]
    return {
        "kind": "answer",
        "id": identifier,
        "created_at": row["created_at"].isoformat(),
        "question": row["question"],
        "answer": row["answer"],
        "abstained": row["abstained"],
        "snapshot": row["snapshot"],
        "collections": row["collections"],
        "settings": json.loads(row["settings"] or "{}"),
        "prompt_digest": row["prompt_digest"],
        "chunks": chunks,
        "model": _model_summary(row["model"], stores),
        "feedback": _feedback(identifier, stores),
    }


def _trace_prediction(identifier: str, stores: Stores) -> dict[str, Any] | None:
    where = f"prediction_id = {_sql_string(identifier)}"
    rows = stores.features.rows("predictions", where=where).to_pylist()
    if not rows:
        return None
    row = rows[0]
    cited = {citation["marker"] for citation in json.loads(row["citations"])}
    return {
        "kind": "prediction",
        "id": identifier,
        "created_at": row["created_at"].isoformat(),
        **{name: row[name] for name in ("run_id", "question_id", "question", "answer")},
        **{name: row[name] for name in ("abstained", "error", "snapshot")},
        "chunks": [
            {
                "marker": marker,
                "chunk_id": chunk,
                "document_id": document,
                "cited": marker in cited,
                "now": _chunk_now(chunk, stores),
            }
            for marker, chunk, document in _passages(row)
        ],
        "model": _model_summary(row["model"], stores),
    }


def _trace_document(identifier: str, stores: Stores) -> dict[str, Any] | None:
    columns = ["document_id", "collection", "source", "sources", "title", "version", "run_id"]
    from rag_fti.features.loading.sources import source_name

    rows: list[dict[str, Any]] = []
    for name in (identifier, source_name(identifier)):
        literal = _sql_string(name)
        rows = (
            rows
            or stores.features.documents(
                where=f"document_id = {literal} OR array_has(sources, {literal})",
                columns=[*columns, "ingested_at"],
            ).to_pylist()
        )
    if not rows:
        return None
    if len(rows) > 1:
        places = ", ".join(f"{row['document_id']} ({row['collection']})" for row in rows)
        raise RagFtiError(
            f"{identifier!r} is a document of {len(rows)} collections.",
            next_step=f"Give one of their ids: {places}.",
        )
    row = rows[0]
    own = stores.features.chunks(
        where=f"document_id = {_sql_string(row['document_id'])}", columns=["chunk_id"]
    )
    return {
        "kind": "document",
        "id": row["document_id"],
        **{name: row[name] for name in columns[1:]},
        "ingested_at": row["ingested_at"].isoformat(),
        "chunks": own["chunk_id"].to_pylist(),
        "went_into": tainted_by([row["document_id"]], stores=stores).to_dict(),
    }


def _trace_chunk(identifier: str, stores: Stores) -> dict[str, Any] | None:
    hits = stores.features.get_chunks([identifier])
    if not hits:
        return None
    hit = hits[0].to_dict()
    return {
        "kind": "chunk",
        "id": identifier,
        **{key: hit[key] for key in ("document_id", "document_version", "source", "title")},
        **{key: hit[key] for key in ("heading", "page", "start", "end", "text")},
        "went_into": tainted_by([hit["document_id"]], stores=stores).to_dict(),
    }


def _trace_dataset(identifier: str, stores: Stores) -> dict[str, Any] | None:
    name, separator, version = identifier.rpartition("@")
    if not separator:
        return None
    known = [dataset for dataset in dataset_manifests(stores.datasets) if dataset.name == name]
    fitting = known if version == "latest" else [d for d in known if d.version == version]
    if not fitting:
        return None
    dataset = fitting[-1]
    return {
        "kind": "dataset",
        "id": dataset.ref,
        **{key: dataset.manifest.get(key) for key in ("snapshot", "prompt_digest", "splits")},
        "documents": sorted(set(_values(dataset.fetch(), "document_ids"))),
        "models": list(_trained_on([dataset.ref], stores.registry)),
    }


def _trace_model(identifier: str, stores: Stores) -> dict[str, Any] | None:
    names = stores.registry.names()
    if any(identifier in stores.registry.aliases(name) for name in names):
        identifier = stores.registry.resolve(identifier).ref
    name, _, version = identifier.rpartition("@")
    if name not in names:
        return None
    number = stores.registry.aliases(name).get(version, version)
    summary = _model_summary(f"{name}@{number}", stores)
    if summary["manifest"] is None:
        return None
    return {"kind": "model", **summary}


def _trace_deleted(identifier: str, stores: Stores) -> dict[str, Any] | None:
    went_into = tainted_by([identifier], stores=stores).to_dict()
    if not any(went_into.values()):
        return None
    return {"kind": "document", "id": identifier, "deleted": True, "went_into": went_into}


def _answers(store: FeatureStore) -> Iterator[tuple[str, Collection[str]]]:
    """Ids of all answers, each with the documents that were in its context."""
    log = store.rows("inference_log", columns=["response_id", "document_ids"])
    for batch in log.to_batches():
        yield from zip(*(batch[name].to_pylist() for name in log.column_names), strict=True)
    predictions = store.rows(
        "predictions", columns=["prediction_id", "citations", "chunk_ids", "document_ids"]
    )
    for batch in predictions.to_batches():
        for row in batch.to_pylist():
            yield row["prediction_id"], [document for _, _, document in _passages(row)]


def _passages(prediction: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
    """Marker, chunk id and document id of what was in a prediction's context.

    Of a prediction of an earlier release only what it cited is known.
    """
    if prediction.get("chunk_ids") is not None:
        pairs = zip(prediction["chunk_ids"], prediction["document_ids"], strict=True)
        yield from ((marker, *pair) for marker, pair in enumerate(pairs, start=1))
    else:
        cited = {c["marker"]: c for c in json.loads(prediction["citations"])}
        yield from ((n, c["chunk_id"], c["document_id"]) for n, c in sorted(cited.items()))


def _trained_on(datasets: Collection[str], registry: Registry) -> Iterator[str]:
    """References of the model versions that were trained on one of the datasets."""
    for name in registry.names():
        for number, manifest in _model_manifests(name, registry).items():
            if manifest.get("dataset") in datasets:
                yield f"{name}@{number}"


def _model_manifests(name: str, registry: Registry) -> dict[int, Mapping[str, Any]]:
    """Manifests by number, also of versions that garbage collection removed."""
    present = {version.version: version.manifest for version in registry.versions(name)}
    return dict(sorted({**registry.retired(name), **present}.items()))


def _model_summary(reference: str, stores: Stores) -> dict[str, Any]:
    registry = stores.registry
    name, _, number = reference.partition("@")
    manifests = _model_manifests(name, registry) if name in registry.names() else {}
    manifest = manifests.get(int(number)) if number.isdecimal() else None
    if manifest is None:
        return {
            "id": reference,
            "base_model": None,
            "dataset": None,
            "manifest": None,
            "aliases": [],
            "retired": False,
        }
    retired = int(number) in registry.retired(name)
    place = f"retired/{number}.json" if retired else f"versions/{number}/manifest.json"
    return {
        "id": reference,
        "base_model": manifest.get("base_model"),
        "dataset": manifest.get("dataset"),
        "manifest": f"{registry.root}/{name}/{place}",
        "aliases": [a for a, n in registry.aliases(name).items() if n == int(number)],
        "retired": retired,
    }


def _chunk_now(chunk_id: str, stores: Stores) -> dict[str, Any] | None:
    """Where a chunk stands in the newest snapshot, or None when it is gone."""
    hits = stores.features.get_chunks([chunk_id])
    if not hits:
        return None
    hit = hits[0]
    return {"source": hit.source, "heading": hit.heading, "start": hit.start, "end": hit.end}


def _feedback(response_id: str, stores: Stores) -> list[dict[str, Any]]:
    where = f"response_id = {_sql_string(response_id)}"
    rows = stores.features.rows("feedback", where=where).to_pylist()
    return [{key: row[key] for key in ("rating", "correction", "comment")} for row in rows]


def _dataset_uses(directory: Path, documents: pa.Array) -> bool:
    return any(
        pc.any(pc.is_in(column, value_set=documents)).as_py()
        for column in _columns(directory, "document_ids")
        if len(column)
    )


def _sql_string(text: str) -> str:
    from rag_fti.feature_store import sql_string

    return sql_string(text)


def _values(directory: Path, name: str) -> Iterable[str]:
    for column in _columns(directory, name):
        yield from column.to_pylist()


def _columns(directory: Path, name: str) -> Iterator[pa.Array]:
    """A list column of every split, flattened."""
    for split in SPLITS:
        path = directory / f"{split}.parquet"
        # Preferences of earlier releases do not say their documents.
        if path.is_file() and name in pq.read_schema(path).names:
            yield pc.list_flatten(pq.read_table(path, columns=[name])[name]).combine_chunks()
