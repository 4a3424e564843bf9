"""Instruction datasets: immutable, content-hashed directories of parquet files.

This package only reads and writes them (it is all the training machine needs); they are made by
:mod:`rag_fti.datasets.building` and the ``instruction_dataset`` pipeline.
"""

from rag_fti.datasets.storage import (
    SPLITS,
    DatasetVersion,
    dataset_versions,
    open_dataset,
    read_manifest,
    write_dataset,
)

__all__ = [
    "SPLITS",
    "DatasetVersion",
    "dataset_versions",
    "open_dataset",
    "read_manifest",
    "write_dataset",
]
